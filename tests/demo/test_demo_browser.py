"""Demo page in a real browser. The tests share one window."""

import json
import math
import os
import shutil
from collections.abc import Iterator

import pytest
from browser import Browser, browsing
from PIL import Image

from trainers.hegraph.datasets.digits import CLASSNAMES, open_digit

pytestmark = pytest.mark.slow
ZERO = [(0.5 + 0.25 * math.sin(angle / 4), 0.5 - 0.4 * math.cos(angle / 4)) for angle in range(27)]


@pytest.fixture(scope="module")
def window(model_folder, tmp_path_factory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile"), "demo", str(model_folder)) as browser:
        yield browser


@pytest.fixture
def page(window) -> Browser:
    """The page, freshly opened."""
    window.open("#drawing canvas", '#answer[aria-live="polite"]')
    return window


def test_digit_drawn_with_mouse_is_explained(page):
    page.draw([ZERO])
    page.wait(lambda: page.winner() == "zero")
    for name in ("adapted", "zero-shot"):
        assert len(page.find(f"#{name} [data-testid$='-confidence']") or page.find(f"#{name} .confidence-set")) == 5
    for text in ("Parts of the logits", "lead of zero"):
        assert text in page.text("#answer")
    page.wait(lambda: len(page.find("#nearest img")) == 4)
    page.find("#drawing button")[0].click()
    page.wait(lambda: not page.winner())


def test_digit_is_drawn_by_keyboard(page):
    keys = page.keys
    for _ in range(20):
        page.actions().send_keys(keys.TAB).perform()
        if page.driver.switch_to.active_element.tag_name == "canvas":
            break
    page.actions().send_keys(" ", *[keys.ARROW_DOWN] * 16).perform()
    page.wait(lambda: page.winner() == "one")
    page.actions().send_keys(keys.DELETE).perform()
    page.wait(lambda: not page.winner())


def test_scan_is_chosen_by_keyboard(page):
    page.tab("Image")
    buttons = page.find("#scans button")
    assert [button.accessible_name for button in buttons] == [f"Scan of {name}" for name in CLASSNAMES]
    buttons[1].send_keys(page.keys.ENTER)
    page.wait(lambda: page.winner() == "one")


def test_unusable_uploads_give_a_message(page, tmp_path):
    page.tab("Image")
    (tmp_path / "notes.txt").write_text("no image")
    page.upload(tmp_path / "notes.txt")
    page.wait(lambda: any("Invalid file type: notes.txt" in toast.text for toast in page.find(".toast-body")))
    Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    page.upload(tmp_path / "huge.png")
    page.wait(lambda: "This file has more than 50 million pixels; take a smaller one." in page.text("#answer"))
    (tmp_path / "long.png").write_bytes(os.urandom(21 * 2**20))
    page.upload(tmp_path / "long.png")
    page.wait(lambda: any("exceed the maximum allowed size of 20" in toast.text for toast in page.find(".toast-body")))


def test_page_is_accessible(window):
    def show() -> None:
        window.open("#drawing canvas", '#answer[aria-live="polite"]')
        window.draw([ZERO])
        window.wait(window.winner)

    window.check_accessibility(show, "Draw", "Image")


def test_model_folder_runs_no_script(model_folder, tmp_path):
    evil = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>${window.evil=1}{{constructor}}"
    shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model_folder / "config.json").read_text())
    config["method"] = config["trained_on"]["dataset"] = config["backbone"]["title"] = evil
    config["classnames"] = [f"{evil} {i}" for i in range(10)]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    open_digit("digits/0900").save(tmp_path / "scan.png")
    with browsing(tmp_path / "profile", "demo", str(tmp_path / "model")) as browser:
        browser.open()
        browser.upload(tmp_path / "scan.png")
        browser.wait(browser.winner)
        assert evil in browser.text("#answer")
        assert browser.driver.title == f"{evil} on {evil}"
        assert browser.driver.execute_script("return window.evil") is None
