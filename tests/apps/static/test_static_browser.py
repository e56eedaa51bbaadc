"""The page in a real browser: the probabilities of `predict`, its inputs, and no request to another host."""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import Browser, shown
from hosting import hosting
from photos import save_photos
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize
from vit import model_of, random_backbone

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")

from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.static.page import write_page
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.features.backbones.transforms import Preprocess
from trainers.hegraph.models.export.onnx_file import write_onnx
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.saved import Preprocessing

pytestmark = pytest.mark.slow
CLASSIFY = """
const [files, done] = arguments;
const blob = text => new Blob([Uint8Array.from(atob(text), character => character.charCodeAt(0))]);
import("/page.js").then(async ({classify, isUnknown}) => {
    const answers = [];
    for (const file of files) {
        const {logits, probabilities} = await classify(blob(file));
        answers.push([probabilities, isUnknown(logits)]);
    }
    done(answers);
}).catch(error => done(`${error}`));
"""


def classify(page: Browser, paths: list[Path]) -> tuple[np.ndarray, list[bool]]:
    """Probabilities `[M, K]` that the page computes for files, and whether each is unknown."""
    page.driver.set_script_timeout(600)
    answers = []
    for path in paths:
        found = page.driver.execute_async_script(CLASSIFY, [base64.b64encode(path.read_bytes()).decode()])
        assert not isinstance(found, str), f"{path.name}: {found}"
        answers += found
    return np.array([probabilities for probabilities, _ in answers]), [unknown for _, unknown in answers]


@pytest.fixture(scope="module")
def site(finished_digits_once, runtime, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "site"
    assert main(["export", str(finished_digits_once), "--page", str(folder), "--runtime", str(runtime)]) == 0
    return folder


@contextmanager
def showing(folder: Path, profile: Path) -> Iterator[Browser]:
    """Show the page of a folder, as `shown`."""
    with hosting(folder) as address, shown(profile, address) as browser:
        yield browser


@pytest.fixture(scope="module")
def window(site, tmp_path_factory) -> Iterator[Browser]:
    with showing(site, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def open_page(window: Browser) -> None:
    """Open the page and wait for its model."""
    window.open(".drop")
    window.wait(lambda: "is loaded" in window.text("#status"))


@pytest.fixture
def page(window) -> Browser:
    """The page, freshly opened, with its model loaded."""
    open_page(window)
    return window


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Path]:
    """Files of 300 test digits."""
    folder = tmp_path_factory.mktemp("scans")
    dataset = load_digits_dataset()
    paths = []
    for item in dataset.test[:300]:
        paths.append(folder / f"{Path(item.path).name}.png")
        dataset.open(item.path).save(paths[-1])
    return paths


def test_digits_have_the_probabilities_of_predict(page, scans, images):
    logits = images.logits(images.features(scans))
    expected = images.model.calibrate(logits).numpy()
    found, unknown = classify(page, scans)
    assert np.abs(found - expected).max() <= 1e-4
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert unknown == (~images.model.is_known(logits, 0.95)).tolist() and 0 < sum(unknown) < 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def random_vit(photos) -> ImageModel:
    """Model of ten classes of photos, with a random ViT-B/32 that decodes large photos at a reduced scale."""
    backbone = random_backbone()
    features = backbone.encode_images(photos)
    model = model_of(backbone, F.normalize(features[::5] - features.mean(dim=0), dim=1))
    return ImageModel(model, backbone)


def test_photos_have_the_probabilities_of_predict(random_vit, photos, runtime, tmp_path):
    expected = random_vit.probabilities(photos).numpy()
    assert len(photos) == 50 and len(set(expected.argmax(1))) >= 5
    write = partial(write_onnx, random_vit.model, random_vit.backbone)
    write_page(random_vit.model, tmp_path / "site", runtime, write)
    with showing(tmp_path / "site", tmp_path / "profile") as browser:
        browser.open(".drop")
        found, unknown = classify(browser, photos)
    differences = np.abs(found - expected).max(axis=1)
    assert differences.max() <= 1e-4, {path.name: value for path, value in zip(photos, differences) if value > 1e-4}
    assert (found.argmax(1) == expected.argmax(1)).all() and not any(unknown)


def test_bilinear_squashing_equals_predict(images, photos, runtime, tmp_path):
    steps = [Resize((32, 32), InterpolationMode.BILINEAR), *images.backbone.preprocess.transforms[1:]]
    preprocess = Preprocess(steps, "auto")
    fingerprint = {"preprocess": repr(preprocess)}
    backbone = replace(images.backbone, preprocess=preprocess, fingerprint=fingerprint)
    config = BackboneConfig(title=backbone.name, fingerprint=fingerprint, decode="auto")
    update = {"preprocessing": Preprocessing.of(backbone), "backbone": config}
    changed = ImageModel(images.model.model_copy(update=update), backbone)
    write_page(changed.model, tmp_path / "site", runtime, partial(write_onnx, changed.model, backbone))
    with showing(tmp_path / "site", tmp_path / "profile") as browser:
        browser.open(".drop")
        found, _ = classify(browser, photos)
    assert np.abs(found - changed.probabilities(photos).numpy()).max() <= 1e-4


def one_of(scans: list[Path], images: ImageModel, name: str) -> Path:
    """A scan that the model classifies as a class, with certainty."""
    best = images.probabilities(scans)[:, images.model.classnames.index(name)].argmax()
    return scans[int(best)]


@pytest.fixture(scope="module")
def images(finished_digits_once) -> ImageModel:
    return ImageModel.load(finished_digits_once)


def choose(page: Browser, file: Path) -> None:
    """Choose a file by the input of the page."""
    page.driver.find_element("css selector", "input[type=file]").send_keys(str(file))


def test_chosen_file_is_classified_without_a_network(page, scans, images):
    page.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        choose(page, one_of(scans, images, "three"))
        page.wait(lambda: page.winner() == "three")
        choose(page, one_of(scans, images, "seven"))
        page.wait(lambda: page.winner() == "seven")
    finally:
        page.driver.delete_network_conditions()
    shares = "return [...document.querySelectorAll('#answer .bar')].map(bar => bar.style.getPropertyValue('--share'))"
    bars = [float(share) for share in page.driver.execute_script(shares)]
    assert len(bars) == 5 and bars == sorted(bars, reverse=True) and bars[0] > 0.9


GIVE = """
const [kind, text, target] = arguments;
const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0)), files = new DataTransfer();
files.items.add(new File([bytes], "image.png", {type: "image/png"}));
const options = {bubbles: true, cancelable: true, dataTransfer: files, clipboardData: files};
const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
document.querySelector(target).dispatchEvent(event);
"""


@pytest.mark.parametrize(("kind", "target", "name"), [("paste", "body", "four"), ("drop", ".drop", "six")])
def test_pasted_and_dropped_images_are_classified(kind, target, name, page, scans, images):
    content = base64.b64encode(one_of(scans, images, name).read_bytes()).decode()
    page.driver.execute_script(GIVE, kind, content, target)
    page.wait(lambda: page.winner() == name)


def test_image_with_a_low_score_is_unknown(page, scans, images):
    known = images.model.is_known(images.logits(images.features(scans)), 0.95)
    choose(page, scans[int(known.int().argmin())])
    page.wait(lambda: page.winner() == "unknown")
    assert "95 % of the images of known classes have a higher score" in page.text("#answer")


def test_unusable_files_are_refused_in_words(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(100))
    Image.new("CMYK", (64, 64)).save(tmp_path / "print.jpg")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    Image.new("L", (2_000, 1)).save(tmp_path / "line.png")
    for name, message in (
        ("notes.txt", "This file is not a JPEG, PNG, WebP, GIF or BMP image"),
        ("damaged.png", "This file is damaged"),
        ("print.jpg", "This JPEG image has CMYK colours"),
        ("huge.png", "This image has more than 50 million pixels"),
        ("line.png", "The sides of this image differ too much"),
    ):
        choose(page, tmp_path / name)
        page.wait(lambda message=message: message in page.text("#answer .problem"))


def test_bars_follow_the_camera(page):
    page.find("[data-source=camera]")[0].click()
    page.wait(lambda: page.find("#answer .chart"))
    frames = {page.text("#answer .chart")}
    page.wait(lambda: frames.add(page.text("#answer .chart")) or len(frames) >= 3)
    page.find("[data-source=image]")[0].click()
    assert page.driver.execute_script("return document.querySelector('video').srcObject.active") is False


def test_page_is_accessible(window, scans):
    def show() -> None:
        open_page(window)
        choose(window, scans[0])
        window.wait(window.winner)

    window.check_accessibility(show)


@contextmanager
def classified_one(images: ImageModel, changes: dict, scan: Path, runtime: Path, folder: Path) -> Iterator[Browser]:
    """Show the page of a changed model of the digits, and choose a scan."""
    model = images.model.model_copy(update={"preprocessing": Preprocessing.of(images.backbone), **changes})
    write_page(model, folder / "site", runtime, partial(write_onnx, model, images.backbone))
    with showing(folder / "site", folder / "profile") as browser:
        open_page(browser)
        choose(browser, scan)
        yield browser


def test_labels_are_predicted_by_their_thresholds(images, scans, runtime, tmp_path):
    thresholds = torch.full((10,), 50.0)
    thresholds[:2] = -50.0
    changes = {"thresholds": thresholds, "known": None}
    with classified_one(images, changes, one_of(scans, images, "one"), runtime, tmp_path) as browser:
        browser.wait(lambda: browser.winner() == "one, zero")
        [marked, *_] = browser.find("#answer .bar i")
        assert marked.get_attribute("style") == "left: 0%;"


def test_class_names_run_no_script(images, scans, runtime, tmp_path):
    evil = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>${window.evil=1}"
    names = tuple(f"{evil} {position}" for position in range(10))
    changes = {"classnames": names, "method": evil}
    with classified_one(images, changes, one_of(scans, images, "one"), runtime, tmp_path) as browser:
        browser.wait(lambda: browser.winner() == names[1])
        assert browser.driver.title.startswith(evil)
        assert browser.driver.execute_script("return window.evil") is None
