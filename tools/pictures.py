"""Make the pictures of the pages: graph, predictions, labels, confidence, a sweep, and web pages.

    python -m tools.pictures [NAME ...]

All models are of the embedded digits, without a network, apart from `teach_photos`, which needs scikit-image. The pages
are shown in a headless Chromium. The pictures `label_studio` need Label Studio: `tests/apps/serve/studio.py` installs
it, unless $HEGRAPH_LABEL_STUDIO names its program. The picture `fiftyone` needs FiftyOne
(`tests/integrations/test_fiftyone.py`). The images have few colours, so that the files are small.
"""

import html
import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tests.apps.serve.serving import serving
from tests.apps.serve.studio import PASSWORD, USER, Studio, configuration, running
from tests.apps.static.hosting import hosting, npm_runtime
from tests.browser import Browser, browsing
from trainers.hegraph import HeGraphClassifier, load_few_shot
from trainers.hegraph.apps.teach.sample import write_sample
from trainers.hegraph.method.relations import RELATIONS
from trainers.hegraph.method.training.confidence import known_score
from trainers.hegraph.results.figures import COLOURS

from .mini.letters import LETTERS, SIZES, draw_letter
from .outputs import make_checkout
from .photos import CROPS, crops, write_project

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COLOURS_OF_A_PICTURE = 48
COLOURS_OF_PHOTOS = 256
GOOD, BAD = COLOURS[2], COLOURS[1]
SHOTS = 4
ZERO = [(0.5 + 0.25 * math.sin(angle / 4), 0.5 - 0.4 * math.cos(angle / 4)) for angle in range(27)]
NODES = {"positive": ("positive text", 150, 90), "negative": ("negative text", 450, 90), "visual": ("visual", 300, 240)}


def save(image: Image.Image, name: str, colours: int = COLOURS_OF_A_PICTURE) -> None:
    """Write a picture with few colours."""
    image.convert("RGB").quantize(colours).save(IMAGES / f"{name}.png", optimize=True)


def save_figure(figure: Figure, name: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    save(Image.open(buffer), name)


# Models of the digits


@cache
def digits(split: str) -> tuple[list[Image.Image], np.ndarray]:
    """Images and labels of a split of the few-shot task."""
    task = load_few_shot("Digits", "", SHOTS, 1)
    items = getattr(task, split)
    return [task.open(item.path) for item in items], np.array([item.label for item in items])


@cache
def classifier(variant: str = "full") -> HeGraphClassifier:
    """HeGraphAdapter, fitted to the few-shot images."""
    images, labels = digits("train")
    model = HeGraphClassifier(config="mini", dataset_config="digits", variant=variant)
    return model.fit(images, labels, classnames=load_few_shot("Digits", "", SHOTS, 1).classnames)


def show_images(images: Sequence[Image.Image], titles: Sequence[str], colours: Sequence[str], columns: int) -> Figure:
    """Images in rows, with a title each."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.95 * columns, 1.3 * rows), squeeze=False)
    for axis, image, title, colour in zip(axes.flat, images, titles, colours):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=8, color=colour)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def predict() -> None:
    """Every 56th test scan, with predicted class and probability."""
    images, labels = (values[::56][:16] for values in digits("test"))
    probabilities = classifier().predict_proba(images)
    predicted = probabilities.argmax(axis=1)
    names = [classifier().model_.classnames[label] for label in predicted]
    titles = [f"{name}\n{100 * row.max():.1f} %" for name, row in zip(names, probabilities)]
    save_figure(show_images(images, titles, [GOOD if ok else BAD for ok in predicted == labels], 8), "predict")


def wrong_labels() -> None:
    """The most suspicious images of 200, of which five have a wrong label."""
    images, labels = digits("test")
    changed = labels[:200].copy()
    places = [7, 42, 85, 120, 163]
    changed[places] = (changed[places] + 5) % 10
    names = classifier().model_.classnames
    issues = classifier("training_free").label_issues(images[:200], changed)[:8]
    titles = [f"label {names[i.label]}\nlikely {names[i.suggested]}\nscore {i.score:.1f}" for i in issues]
    colours = [BAD if issue.index in places else "black" for issue in issues]
    save_figure(show_images([images[i.index] for i in issues], titles, colours, 8), "wrong_labels")


def suggested() -> None:
    """The first unlabelled images to label, of 400."""
    images, _ = digits("test")
    order = classifier().suggest(images[:400], 16)
    predicted = classifier().predict([images[i] for i in order])
    titles = [f"{place}. {classifier().model_.classnames[label]}?" for place, label in enumerate(predicted, start=1)]
    save_figure(show_images([images[i] for i in order], titles, ["black"] * len(order), 8), "suggested")


# Confidence


def draw_reliability(axis: Axes, probabilities: np.ndarray, labels: np.ndarray, name: str, colour: str) -> None:
    """Accuracy by confidence, in groups of equal size."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    groups = np.array_split(np.argsort(confidence), 10)
    points = [(100 * confidence[group].mean(), 100 * right[group].mean()) for group in groups]
    axis.plot(*zip(*points), marker="o", markersize=4, color=colour, label=name)


def reliability() -> None:
    """Reliability diagram of zero-shot CLIP and HeGraphAdapter."""
    images, labels = digits("test")
    figure, axis = plt.subplots(figsize=(4, 3.6))
    axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    for name, variant, colour in (("zero-shot CLIP", "base", COLOURS[1]), ("HeGraphAdapter", "full", COLOURS[2])):
        draw_reliability(axis, classifier(variant).predict_proba(images), labels, name, colour)
    axis.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 101), ylim=(0, 101), aspect="equal")
    axis.legend(frameon=False)
    save_figure(figure, "reliability")


def open_set() -> None:
    """Histogram of the scores of digits and of letters, which are of no known class."""
    model = classifier().model_
    letters = [draw_letter(letter, size) for letter in LETTERS for size in SIZES]
    figure, axis = plt.subplots(figsize=(5.4, 2.8))
    bins = None
    for name, images, colour in (("digits", digits("test")[0], COLOURS[2]), ("letters", letters, COLOURS[1])):
        logits = model.classifier.logits(classifier()._encoded(images).cpu())
        scores = known_score(logits, model.temperature, model.known.score).numpy()
        bins = np.linspace(scores.min() - 8, scores.max() + 2, 45) if bins is None else bins
        axis.hist(scores, bins=bins, density=True, alpha=0.6, color=colour, label=name)
    axis.axvline(model.known.threshold(0.95), color="black", linewidth=1, label="threshold of 95 %")
    axis.set(xlabel="energy", ylabel="density")
    axis.legend(frameon=False)
    save_figure(figure, "open_set")


# Vector graphics


def graph() -> None:
    """The graph with its node types and six relations, for light and dark pages."""
    for theme, ink, fill in (("light", "#1F2328", "#DDF4FF"), ("dark", "#E6EDF3", "#1F3A5F")):
        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 310" font-family="sans-serif" font-size="15">',
            f'<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{ink}"/></marker></defs>',
        ]
        for relation in RELATIONS:
            (_, x, y), (_, to_x, to_y) = NODES[relation.source], NODES[relation.target]
            parts.append(arrow(x, y, to_x, to_y, ink))
        for name, x, y in NODES.values():
            parts.append(f'<ellipse cx="{x}" cy="{y}" rx="72" ry="30" fill="{fill}" stroke="{ink}"/>')
            parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" fill="{ink}">{name}</text>')
        (IMAGES / f"graph_{theme}.svg").write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def arrow(x: float, y: float, to_x: float, to_y: float, ink: str) -> str:
    """A bent arrow between the rims of two nodes; from a node to itself, a loop."""
    style = f'fill="none" stroke="{ink}" stroke-width="1.5" marker-end="url(#a)"'
    if (x, y) == (to_x, to_y):
        side = 1 if y > 200 else -1
        rim = y + 28 * side
        return (
            f'<path d="M{x - 20} {rim}C{x - 40} {rim + 45 * side},{x + 40} {rim + 45 * side},{x + 22} {rim}" {style}/>'
        )
    length = math.hypot(to_x - x, to_y - y)
    dx, dy = (to_x - x) / length, (to_y - y) / length
    rim = 1 / math.hypot(dx / 74, dy / 32)
    start, end = (x + rim * dx, y + rim * dy), (to_x - rim * dx, to_y - rim * dy)
    bend = (x + to_x) / 2 + 22 * dy, (y + to_y) / 2 - 22 * dx
    return f'<path d="M{start[0]:.0f} {start[1]:.0f}Q{bend[0]:.0f} {bend[1]:.0f},{end[0]:.0f} {end[1]:.0f}" {style}/>'


def sweep() -> None:
    """Progress of a sweep, as a terminal shows it."""
    command = "hegraph sweep --datasets digits --configs mini --methods ZeroShot TipAdapter APE --shots 1 4 --seeds 1 2"
    with tempfile.TemporaryDirectory() as temporary:
        checkout = make_checkout(Path(temporary))
        environment = {"PATH": f"{checkout / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(checkout / "lib")}
        output = subprocess.check_output(
            command.split(), cwd=checkout, env=environment, stderr=subprocess.STDOUT, text=True
        )
    lines = [f"$ {command}", *output.splitlines()]
    size = f'width="{max(map(len, lines)) * 7.85 + 30:.0f}" height="{len(lines) * 18 + 24}"'
    texts = [f'<tspan x="14" y="{30 + 18 * i}">{html.escape(line)}</tspan>' for i, line in enumerate(lines)]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="100%" height="100%" rx="6" fill="#161B22"/>\n'
        '<text font-family="monospace" font-size="13" fill="#E6EDF3" xml:space="preserve">\n'
    )
    (IMAGES / "sweep.svg").write_text(svg + "\n".join(texts) + "\n</text></svg>\n", encoding="utf-8")


# Screenshots


def screenshot(browser: Browser, name: str, colours: int = COLOURS_OF_A_PICTURE) -> None:
    save(Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())), name, colours)


def demo() -> None:
    """The demo page with a drawn zero."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "run")
        words = "--dataset-config-file digits --config-file mini --shots 4 --keep-thumbnails".split()
        command = [sys.executable, "-m", "trainers.hegraph", *words, "--output-dir", str(folder)]
        subprocess.run(command, check=True)
        with browsing(Path(temporary, "profile"), "demo", str(folder)) as browser, browser.emulating((1280, 660)):
            browser.open("#drawing canvas")
            browser.draw([ZERO])
            browser.wait(lambda: browser.winner() == "zero")
            screenshot(browser, "demo")


def static_page() -> None:
    """The page of `export --page` on a static host, with a scan of a three."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = "--dataset-config-file digits --config-file mini --shots 16".split()
        page = ["--page", str(folder / "site"), "--runtime", str(npm_runtime())]
        for command in ([*train, "--output-dir", str(folder / "run")], ["export", str(folder / "run"), *page]):
            subprocess.run([sys.executable, "-m", "trainers.hegraph", *command], check=True)
        scans, labels = digits("test")
        scans[[*labels].index(3)].save(folder / "three.png")
        with hosting(folder / "site") as address:
            browser = Browser(folder / "profile", address)
            with browser.emulating((1280, 560)):
                browser.open(".drop")
                browser.driver.find_element("css selector", "input[type=file]").send_keys(str(folder / "three.png"))
                browser.wait(lambda: browser.winner() == "three")
                browser.wait(lambda: "is loaded" in browser.text("#status"))
                screenshot(browser, "static_page")
            browser.driver.quit()


def fiftyone() -> None:
    """The App of FiftyOne with the saved view of suspicious labels, three of which are planted."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the test finds `browser`
    from integrations.test_fiftyone import run_operator, show_suspicious, showing_app

    with tempfile.TemporaryDirectory() as temporary, showing_app(Path(temporary)) as browser:
        browser.driver.set_window_size(1200, 760)
        run_operator(browser)
        show_suspicious(browser)
        picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png()))
        save(picture.crop((0, 0, 776, 330)), "fiftyone")  # without an advertisement


def teach() -> None:
    """The tabs of the teach page, with the sample of the digits and one wrong label."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "digits")
        write_sample(folder)
        wrong = sorted((folder / "train" / "six").iterdir())[0]
        wrong.rename(folder / "train" / "four" / wrong.name)
        with browsing(Path(temporary, "profile"), "teach", str(folder), "--backbone", "hegraph-mini") as browser:
            browser.driver.set_window_size(1200, 900)
            browser.open("#panel-classes form", "#accuracy")
            browser.wait(lambda: "left to encode" not in browser.text("body"))
            for tab in ("Check", "Label", "Classes"):
                browser.tab(tab)
                browser.wait(partial(browser.find, f"#panel-{tab.lower()} img"))
                screenshot(browser, f"teach_{tab.lower()}")


def teach_photos() -> None:
    """The teach page with crops of photographs and one more crop to classify, for light and dark pages."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, profile = Path(temporary, "photos"), Path(temporary, "profile")
        write_project(folder)
        crops("galaxies")[CROPS].save(Path(temporary, "new photo.png"))
        with browsing(profile, "teach", str(folder), "--backbone", "hegraph-mini", "--no-names") as browser:
            for scheme in ("light", "dark"):
                with browser.emulating((1200, 800), scheme):
                    browser.open("#panel-classes form", "#accuracy")
                    browser.wait(lambda: "left to encode" not in browser.text("body"))
                    browser.upload(Path(temporary, "new photo.png"))
                    browser.wait(browser.winner)
                    screenshot(browser, f"teach_photos_{scheme}", COLOURS_OF_PHOTOS)


def report() -> None:
    """The beginning of the report of a run on scans of digits, a few of which have a wrong label."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, dataset = Path(temporary), load_few_shot("Digits", "", -1, 1)
        for number, item in enumerate(dataset.train[:300]):
            label = dataset.classnames[(item.label + 5) % 10] if number % 20 == 3 else item.classname
            (folder / "scans" / label).mkdir(parents=True, exist_ok=True)
            scan = dataset.open(item.path)
            scan.resize((8 * scan.width, 8 * scan.height), Image.Resampling.NEAREST).save(
                folder / "scans" / label / f"{number:04}.png"
            )
        words = ["--dataset-config-file", "folder", "--root", str(folder / "scans"), "--config-file", "mini"]
        for command in ([*words, "--output-dir", str(folder / "run")], ["results", "report", str(folder / "run")]):
            out = ["--out", str(folder / "report.html")] if command[0] == "results" else ["--shots", "8"]
            subprocess.run([sys.executable, "-m", "trainers.hegraph", *command, *out], check=True)
        browser = Browser(folder / "profile", (folder / "report.html").as_uri())
        browser.driver.set_window_size(1100, 1420)
        browser.open("h1")
        browser.driver.execute_script("document.documentElement.style.scrollbarWidth = 'none'")
        screenshot(browser, "report")
        browser.driver.quit()


def label_studio() -> None:
    """The Data Manager of Label Studio in the order of the scores, and its first task with a predicted choice."""
    names = load_few_shot("Digits", "", SHOTS, 1).classnames
    scans, labels = digits("test")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = HeGraphClassifier("hegraph-mini", variant="training_free")
        model.fit(scans[:24], [names[label] for label in labels[:24]]).save_pretrained(folder / "digits")
        files = [folder / f"{number}.png" for number in range(24)]
        for scan, file in zip(scans[24:], files):
            scan.resize((64, 64), Image.Resampling.NEAREST).save(file)
        with running(folder) as studio:
            (folder / "token").write_text(studio.token)
            words = ("--label-studio", studio.url, "--label-studio-token", folder / "token")
            with serving(folder / "digits", *words) as server:
                project = studio.create_project("Digits", configuration(*names), files)
                studio.connect(project, str(server.client.base_url))
                show_project(studio, project, studio.retrieve(project)[0].id, folder / "profile")


def show_project(studio: Studio, project: int, task: int, profile: Path) -> None:
    """Show the Data Manager and a task of a project of Label Studio."""
    browser, tab = Browser(profile, studio.url), studio.create_tab(project)
    browser.driver.set_window_size(1060, 660)
    browser.driver.get(f"{studio.url}/user/login/")
    for field, value in (("email", USER), ("password", f"{PASSWORD}{browser.keys.ENTER}")):
        browser.driver.find_element("name", field).send_keys(value)
    browser.wait(lambda: "Digits" in browser.text("body"))
    for name, opened, text in (("order", "", "0.042"), ("task", f"&task={task}", "Submit")):
        browser.driver.get(f"{studio.url}/projects/{project}/data?tab={tab}{opened}")
        browser.wait(lambda text=text: text in browser.text("body"))
        time.sleep(5)  # until the images have arrived
        screenshot(browser, f"label_studio_{name}")
    browser.driver.quit()


MAKERS = (
    predict, wrong_labels, suggested, reliability, open_set, graph, sweep, demo, static_page, teach, teach_photos,
    report, label_studio, fiftyone,
)  # fmt: skip
PICTURES: dict[str, Callable[[], None]] = {make.__name__: make for make in MAKERS}


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main()
