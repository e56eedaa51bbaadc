"""Teach page in a real browser: from two classes to an exported model."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser, browsing, serving, shown
from PIL import Image

from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.datasets.groups import groups_in_paths
from trainers.hegraph.utils.reading import read_tensors

pytestmark = pytest.mark.slow


def scans(folder: Path, name: str, start: int, count: int) -> list[Path]:
    """Write scans of a digit; returns the files."""
    dataset = load_digits_dataset()
    items = [item for item in dataset.train if item.classname == name][start : start + count]
    files = {folder / f"{item.path[-4:]}.png": item.path for item in items}
    folder.mkdir(exist_ok=True)
    for file, path in files.items():
        dataset.open(path).save(file)
    return [*files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with unlabelled images and a class of the digits, for which the page has a canvas."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "train/three").mkdir(parents=True)
    for name in ("zero", "one", "two"):
        scans(folder / "unlabelled", name, 10, 6)
    return folder


@pytest.fixture(scope="module")
def window(folder, tmp_path_factory) -> Iterator[Browser]:
    words = ("teach", str(folder), "--backbone", "hegraph-mini")
    with browsing(tmp_path_factory.mktemp("profile"), *words) as browser:
        browser.open("#panel-classes form")
        yield browser


@pytest.fixture
def filled(window, folder) -> Browser:
    """The page, with images in the classes zero and one also in a process that does not run the first test."""
    for name in ("zero", "one"):
        place = folder / "train" / name
        if not any(place.glob("*")):
            scans(place, name, 0, 3)
    window.tab("Classes")
    for name in ("zero", "one"):
        window.wait(lambda name=name: len(window.find(f"{card(window, name)} .thumb")) >= 3)
    return window


def card(page: Browser, name: str) -> str:
    return f'#panel-classes section[data-place="{name}"]'


def counts(folder: Path) -> dict[str, int]:
    found = {each.name: len(list(each.iterdir())) for each in sorted((folder / "train").iterdir())}
    return {name: count for name, count in found.items() if count}


def add_class(page: Browser, name: str, *files: Path) -> None:
    """Add a class and choose images for it."""
    page.find("#panel-classes input[name=name]")[0].send_keys(name, page.keys.ENTER)
    page.wait(lambda: page.find(card(page, name)))
    if files:
        [chooser] = page.driver.find_elements("css selector", f"{card(page, name)} input[type=file]")
        chooser.send_keys("\n".join(map(str, files)))
        page.wait(lambda: len(page.find(f"{card(page, name)} .thumb")) == len(files))


def suggestions(page: Browser) -> list[str]:
    """Paths of the suggested images in their order."""
    return page.driver.execute_script(
        "return [...document.querySelectorAll('#panel-label article')].map(each => each.dataset.image)"
    )


def click(page: Browser, selector: str, text: str) -> None:
    """Wait for a button below a selector whose text starts with `text`, and click it."""
    script = """
        const buttons = [...document.querySelectorAll(`${arguments[0]} button`)];
        const found = buttons.find(button => button.textContent.startsWith(arguments[1]));
        found?.click();
        return Boolean(found);
    """
    page.wait(lambda: page.driver.execute_script(script, selector, text))


def test_classes_are_added_checked_labelled_and_exported(window, folder, tmp_path):
    page = window
    for name in ("zero", "one"):
        add_class(page, name, *scans(tmp_path / name, name, 0, 3))
    assert counts(folder) == {"one": 3, "zero": 3}
    [wrong] = scans(tmp_path / "wrong", "zero", 5, 1)
    add_class(page, "two", *scans(tmp_path / "two", "two", 0, 3), wrong)

    page.tab("Check")
    click(page, f'#panel-check [data-image="train/two/{wrong.name}"]', "Move to zero")
    page.wait(lambda: counts(folder) == {"one": 3, "two": 3, "zero": 4})
    page.wait(lambda: "Undo: an image moved to zero" in page.text("#top"))

    page.tab("Label")
    waiting = len(list((folder / "unlabelled").iterdir()))
    page.wait(lambda: len(suggestions(page)) == waiting)
    for number in range(1, 6):
        first = suggestions(page)[0]
        click(page, f'#panel-label [data-image="{first}"]', "Yes, ")
        page.wait(lambda first=first: first not in suggestions(page))
        assert len(list((folder / "unlabelled").iterdir())) == waiting - number
    page.wait(lambda: len(suggestions(page)) == waiting - 5)
    assert sum(counts(folder).values()) == 15

    page.tab("Export")
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    assert "HeGraphClassifier.from_pretrained" in page.text("#panel-export")
    page.find("#export-model-zip")[0].click()
    page.wait((tmp_path / "model.zip").exists)
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        assert "model/config.json" in file.namelist()

    before, [new] = counts(folder)["two"], scans(tmp_path / "new", "two", 20, 1)
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as file:
        file.write(new, "train/two/new.png")
    page.driver.find_element("css selector", "#zip input[type=file]").send_keys(str(tmp_path / "project.zip"))
    page.wait(lambda: counts(folder)["two"] == before + 1)
    page.wait(lambda: "1 image added" in page.text("#top"))


def test_tab_shows_and_undoes_changes_of_another(window, folder):
    first = window.driver.current_window_handle
    window.driver.switch_to.new_window("tab")
    try:
        window.open("#panel-classes form")
        add_class(window, "six")
    finally:
        window.driver.close()
        window.driver.switch_to.window(first)
    window.tab("Classes")
    window.wait(lambda: window.find(card(window, "six")))
    click(window, "#top", "Undo: the class six added")
    window.wait(lambda: not window.find(card(window, "six")))


def test_drawing_is_added_and_classified(filled, folder):
    window = filled
    before = counts(folder)["one"]
    window.find("#draw summary")[0].click()
    window.wait(lambda: window.find("#draw canvas"))
    window.draw([[(0.5, 0.1), (0.5, 0.9)]], "draw")
    click(window, card(window, "one"), "Add the drawing")
    window.wait(lambda: counts(folder)["one"] == before + 1)
    window.wait(lambda: "1 image added." in window.text("#top"))
    window.wait(lambda: "left to encode" not in window.text("#top"))  # after that, the layout is stable
    window.tab("Try")
    window.draw([[(0.5, 0.1), (0.5, 0.9)]])
    window.wait(lambda: window.winner() == "one")
    window.wait(lambda: window.find("#answer .nearest img"))


def test_thirty_uploads_are_one_change(window, folder, tmp_path):
    before = counts(folder)
    window.tab("Classes")
    add_class(window, "seven", *scans(tmp_path / "seven", "seven", 0, 30))
    window.wait(lambda: "30 images added." in window.text("#top"))
    assert counts(folder) == before | {"seven": 30}
    click(window, "#top", "Undo: 30 images added to seven")
    window.wait(lambda: counts(folder) == before)
    click(window, "#top", "Undo: the class seven added")
    window.wait(lambda: not window.find(card(window, "seven")))


# The command line, with an encoder that takes 0.02 s for an image, so that a page sees it at work on every machine
SLOW = """
import sys, time
from trainers.hegraph.__main__ import main
from trainers.hegraph.features.backbones.base import Backbone
encode = Backbone.encode_images

def encode_slowly(self, images, *batch_size):
    time.sleep(0.02 * len(images))
    return encode(self, images, *batch_size)

Backbone.encode_images = encode_slowly
raise SystemExit(main(sys.argv[1:]))
"""


def test_closing_a_tab_saves_features(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("many")
    (folder / "unlabelled").mkdir()
    for number in range(3000):
        Image.new("RGB", (40, 40), (number % 256, number // 256, 0)).save(folder / f"unlabelled/{number}.png")
    words = (str(python), "-c", SLOW, "teach", str(folder), "--backbone", "hegraph-mini")
    with serving(words) as address, shown(tmp_path_factory.mktemp("profile"), address) as browser:

        def images_left() -> int:
            found = re.search(r"(\d+) images left", browser.text("#top"))
            return int(found[1]) if found else 3000

        browser.open("#panel-classes form")
        browser.wait(lambda: images_left() < 3000)
        left = images_left()
        browser.driver.get("about:blank")
        browser.wait(lambda: [*(folder / ".hegraph").glob("features-*.safetensors")])
        [file] = (folder / ".hegraph").glob("features-*.safetensors")
        browser.wait(lambda: len(read_tensors(file, "features")[0]) >= 3000 - left)
    assert 0 < left < 3000


def boxes(page: Browser, name: str) -> list:
    return page.driver.find_elements("css selector", f"{card(page, name)} .thumb input")


def test_held_button_records_distinct_frames(window, folder):
    window.tab("Classes")
    add_class(window, "film")
    click(window, card(window, "film"), "Camera")
    playing = "return document.querySelector('.hg-camera video').videoWidth"
    window.wait(lambda: window.driver.execute_script(playing))
    assert window.violations() == []
    [record] = window.find(".hg-camera .record")
    window.actions().click_and_hold(record).perform()

    def frames() -> tuple[int, int]:
        """Numbers of recorded frames, and of those that are left out."""
        recorded, left_out = re.findall(r"\d+", window.text(".hg-camera p")) or (0, 0)
        return int(recorded), int(left_out)

    window.wait(lambda: min(frames()) > 0 and frames()[0] > 1)
    window.actions().release().perform()
    recorded, _ = frames()
    window.wait(lambda: counts(folder).get("film") == recorded)
    frames = [path.name for path in folder.glob("train/film/*")]
    recordings = groups_in_paths(frames, r"(camera-\d+)-")
    assert len(recordings) == recorded and len(set(recordings.values())) == 1
    window.wait(lambda: f"Undo: {recorded} images added to film" in window.text("#top"))
    click(window, ".hg-camera", "Close")
    window.wait(lambda: not window.find(".hg-camera"))


def test_selected_images_are_one_change(filled, folder):
    window = filled
    before = counts(folder)["zero"]
    window.wait(lambda: len(boxes(window, "zero")) == before)
    first, *_, last = boxes(window, "zero")
    window.driver.execute_script("arguments[0].click()", first)
    script = "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: true}))"
    window.driver.execute_script(script, last)
    assert f"{before} selected" in window.text(".hg-selection")
    click(window, f"{card(window, 'zero')} .thumb", "")
    window.wait(lambda: window.find("dialog img"))
    assert window.violations() == []
    window.actions().send_keys(window.keys.ESCAPE).perform()
    click(window, ".hg-selection", "Remove")
    window.wait(lambda: "zero" not in counts(folder))
    click(window, "#top", f"Undo: {before} images removed")
    window.wait(lambda: counts(folder).get("zero") == before)
    window.wait(lambda: len(boxes(window, "zero")) == before)
    assert not window.find(".hg-selection")


def test_keys_label_images_and_undo(filled, folder):
    window = filled

    def unlabelled() -> int:
        return len(list((folder / "unlabelled").iterdir()))

    def press(key: str, more: int) -> None:
        expected = unlabelled() + more
        window.actions().send_keys(key).perform()
        window.wait(lambda: unlabelled() == len(suggestions(window)) == expected)

    window.tab("Label")
    window.wait(lambda: unlabelled() == len(suggestions(window)))
    window.actions().send_keys(window.keys.ARROW_RIGHT).perform()
    before, classes = counts(folder), sorted(each.name for each in (folder / "train").iterdir())
    press("2", -1)
    assert counts(folder)[classes[1]] == before.get(classes[1], 0) + 1
    press(window.keys.ENTER, -1)
    press("0", -1)
    assert len(list((folder / "none of these").iterdir())) == 1
    window.tab("Classes")
    window.driver.execute_script("window.scrollTo(0, 100_000)")
    window.wait(lambda: window.find(card(window, "none of these") + " .thumb"))
    window.tab("Label")
    for _ in range(3):
        press("u", 1)
    assert counts(folder) == before


def test_key_works_again_after_a_refused_action(filled, folder):
    window = filled
    window.tab("Label")
    window.wait(lambda: suggestions(window))
    first = suggestions(window)[0]
    (folder / "train/ZERO").mkdir()  # next to zero, which no project may have
    window.actions().send_keys(window.keys.ENTER).perform()
    window.wait(lambda: "differ only in case" in window.text("#problem"))
    (folder / "train/ZERO").rmdir()
    window.actions().send_keys(window.keys.ENTER).perform()
    window.wait(lambda: first not in suggestions(window))
    click(window, "#top", "Undo: an image moved")
    window.wait(lambda: first in suggestions(window))


def drop(page: Browser, selector: str, path: Path) -> None:
    """Drop a file or folder on an element."""
    script = """
        const target = document.querySelector(arguments[0]);
        target.scrollIntoView({block: "center"});
        const box = target.getBoundingClientRect();
        return [box.x, box.y];
    """
    x, y = page.driver.execute_script(script, selector)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        command = {"type": kind, "x": x + 5, "y": y + 5, "data": data}
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", command)


def test_dropped_folder_is_added_to_its_class(window, folder, tmp_path):
    window.tab("Classes")
    add_class(window, "drop")
    scans(tmp_path / "photos", "one", 40, 3)
    (tmp_path / "photos/.DS_Store").write_text("no image")
    drag = """
        const event = new DragEvent("dragover", {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()});
        document.body.dispatchEvent(event);
        return event.defaultPrevented;
    """
    assert window.driver.execute_script(drag), "the browser would open a file that misses the classes"
    drop(window, card(window, "drop"), tmp_path / "photos")
    window.wait(lambda: counts(folder).get("drop") == 3)
    window.wait(lambda: "Undo: 3 images added to drop" in window.text("#top"))
    assert not window.text("#problem")


def test_refused_class_name_stays_in_its_field(window):
    window.tab("Classes")
    [field] = window.find("#panel-classes input[name=name]")
    field.send_keys("a/b", window.keys.ENTER)
    window.wait(lambda: "expected a class name without" in window.text("#problem"))
    assert field.get_attribute("value") == "a/b" and "bytes" not in window.text("#problem")
    field.clear()


def test_images_of_a_class_are_one_tab_stop(filled):
    window = filled
    stops = "return document.querySelectorAll(`${arguments[0]} .thumbs [tabindex='0']`).length"
    assert len(boxes(window, "zero")) > 2
    assert window.driver.execute_script(stops, card(window, "zero")) == 1
    focus = "document.querySelector(`${arguments[0]} .thumbs [tabindex='0']`).focus()"
    window.driver.execute_script(focus, card(window, "zero"))
    window.actions().send_keys(window.keys.ARROW_RIGHT, "x").perform()
    assert [box.is_selected() for box in boxes(window, "zero")][:3] == [False, True, False]
    assert "1 selected" in window.text(".hg-selection")
    window.actions().send_keys("x").perform()
    assert not window.find(".hg-selection")


def test_place_below_a_dragged_file_is_highlighted(filled):
    window = filled
    drag = """
        const event = new DragEvent(arguments[1], {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()});
        document.querySelector(arguments[0]).dispatchEvent(event);
        return [...document.querySelectorAll(".over")].map(each => each.dataset.place);
    """
    assert window.driver.execute_script(drag, f"{card(window, 'zero')} h2", "dragover") == ["zero"]
    assert window.driver.execute_script(drag, f"{card(window, 'one')} h2", "dragover") == ["one"]
    assert window.driver.execute_script(drag, f"{card(window, 'one')} h2", "dragleave") == []


def test_reload_during_an_upload_asks(window, folder, tmp_path):
    asks = """
        const event = new Event("beforeunload", {cancelable: true});
        window.dispatchEvent(event);
        return event.defaultPrevented;
    """
    window.tab("Classes")
    add_class(window, "slow")
    assert not window.driver.execute_script(asks)
    window.driver.execute_cdp_cmd("Network.enable", {})
    limits = {"offline": False, "latency": 30_000, "downloadThroughput": -1, "uploadThroughput": -1}
    window.driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits)
    [chooser] = window.driver.find_elements("css selector", f"{card(window, 'slow')} input[type=file]")
    chooser.send_keys("\n".join(map(str, scans(tmp_path / "slow", "two", 40, 12))))
    window.wait(lambda: "Keep this page open" in window.text(".hg-sending"))
    assert window.driver.execute_script(asks)
    window.driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits | {"latency": 0})
    window.wait(lambda: counts(folder).get("slow") == 12)
    window.wait(lambda: not window.find(".hg-sending"))
    assert not window.driver.execute_script(asks)
    window.open("#panel-classes form")
    window.wait(lambda: "12 images" in window.text(card(window, "slow")))


def test_change_of_another_program_appears(window, folder):
    window.tab("Classes")
    (folder / "train/outside").mkdir()
    window.wait(lambda: window.find(card(window, "outside")))
    (folder / "train/outside").rmdir()
    window.wait(lambda: not window.find(card(window, "outside")))


def test_preview_stands_beside_the_classes_on_wide_windows(window):
    window.tab("Classes")
    with window.emulating(DESKTOP):
        assert window.find("#try [data-source=camera]")
        left, preview = (
            window.driver.execute_script("return document.querySelector(arguments[0]).getBoundingClientRect()", name)
            for name in ("#panel-classes", "#panel-try")
        )
        assert left["right"] <= preview["left"]
        window.tab("Check")
        assert not window.find("#try [data-source=camera]")
    with window.emulating(PHONE):
        window.tab("Classes")
        window.wait(lambda: not window.find("#try [data-source=camera]"))
        window.tab("Try")
        assert window.find("#try [data-source=camera]")


def test_first_page_takes_a_folder_of_class_folders(tmp_path_factory, python):
    photos = tmp_path_factory.mktemp("photos")
    for name in ("zero", "one"):
        scans(photos / name, name, 0, 4)
    folder = tmp_path_factory.mktemp("empty")
    words = ("teach", str(folder), "--backbone", "hegraph-mini")
    with browsing(tmp_path_factory.mktemp("profile"), *words, python=python) as browser:
        browser.check_accessibility(lambda: browser.open(".zone", ".steps"))
        browser.open(".zone", ".steps")
        height = "return document.querySelector('.zone').offsetHeight"
        assert browser.driver.execute_script(height) >= 200
        drop(browser, ".zone", photos)
        browser.wait(lambda: "8 images added." in browser.text("#message"))
        assert counts(folder) == {"one": 4, "zero": 4}
        browser.wait(lambda: browser.find("#accuracy"))
        assert not browser.find(".steps")
        click(browser, "#top", "Undo: 8 images added from folders")
        browser.wait(lambda: browser.find(".steps"))
        click(browser, "#panel-classes", "Open the example")
        browser.wait(lambda: "180 images added." in browser.text("#message"))
        browser.tab("Label")
        click(browser, "#panel-label", "Accept all above 95 %")
        browser.wait(lambda: "accepted; Undo takes all back" in browser.text("#message"))


def test_large_project_sends_only_visible_images(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("large")
    for number in range(200):
        (folder / f"train/class {number:03}").mkdir(parents=True)
        for shade in range(5):
            image = Image.new("RGB", (8, 8), (number, 50 * shade, 0))
            image.save(folder / f"train/class {number:03}/{shade}.png")
    words = ("teach", str(folder), "--backbone", "hegraph-mini")
    with browsing(tmp_path_factory.mktemp("profile"), *words, python=python) as browser:
        browser.open("#panel-classes section")
        browser.wait(lambda: len(browser.driver.find_elements("css selector", "#panel-classes section")) == 200)
        browser.wait(lambda: browser.find(f"{card(browser, 'class 000')} .thumb img"))
        thumbs = "return document.querySelectorAll('.thumb').length"
        assert 5 <= browser.driver.execute_script(thumbs) <= 200
        browser.driver.execute_script("document.body.scrollIntoView(false)")
        browser.wait(lambda: browser.find(f"{card(browser, 'class 199')} .thumb img"))
        assert browser.driver.execute_script(thumbs) <= 400


def test_status_and_tabs_stay_in_view_on_a_phone(window):
    with window.emulating(PHONE):
        window.tab("Classes")
        window.driver.execute_script("window.scrollTo(0, 100_000)")
        script = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
        window.wait(lambda: window.driver.execute_script("return window.scrollY") > 0)
        tops = [window.driver.execute_script(script, f"#{name}") for name in ("top", "tab-classes", "tab-backbone")]
        assert 0 <= tops[0] < tops[1] == tops[2] < 300, "the tabs are in one row"


def test_backbones_are_compared(window):
    window.tab("Backbone")
    click(window, "#panel-backbone", "Compare backbones")
    window.wait(lambda: "No backbone is recommended" in window.text("#backbones"))
    assert "CLIP ViT-B/16 (OpenAI)" in window.text("#backbones")
    assert "its weights are not on this machine" in window.text("#backbones .problem")
    assert "In use" in window.text("#backbones .card")


def test_page_is_accessible(filled):
    window = filled
    tabs = ("Classes", "Check", "Label", "Try", "Export", "Backbone")
    window.check_accessibility(lambda: window.open("#panel-classes form"), *tabs)
