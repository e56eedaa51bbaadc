"""Demo page in a real browser. The tests share one window."""

import json
import math
import os
import shutil
from collections.abc import Iterator

import pytest
from browser import PHONE, Browser, browsing
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
    window.open("#drawing canvas")
    return window


def test_digit_drawn_with_mouse_is_explained(page):
    page.draw([ZERO])
    page.wait(lambda: page.winner() == "zero")
    assert len(page.find("#answer .chart .bar")) == 10 and len(page.find("#answer .nearest img")) == 4
    assert page.driver.execute_script("return document.documentElement.scrollHeight <= innerHeight")
    page.find("#answer summary")[0].click()
    assert "lead of zero" in page.text("#answer")
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


def choose(page: Browser, source: str) -> None:
    page.find(f"#try [data-source={source}]")[0].click()


def test_scan_is_chosen_by_keyboard(page):
    choose(page, "image")
    buttons = page.find("#try .scans button")
    assert [button.accessible_name for button in buttons] == [f"Scan of {name}" for name in CLASSNAMES]
    buttons[1].send_keys(page.keys.ENTER)
    page.wait(lambda: page.winner() == "one")


def test_unusable_uploads_give_a_message(page, tmp_path):
    choose(page, "image")
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    (tmp_path / "long.png").write_bytes(os.urandom(21 * 2**20))
    for name, text in (
        ("notes.txt", "This file is not an image"),
        ("huge.png", "This file has more than 50 million pixels; take a smaller one."),
        ("long.png", "The image did not arrive, or has more than 20 MB."),
    ):
        page.upload(tmp_path / name)
        page.wait(lambda text=text: text in page.text("#answer"))


def test_bars_follow_the_camera(page):
    choose(page, "camera")
    page.wait(lambda: page.find("#answer .chart"))
    frames = {page.text("#answer .chart")}
    page.wait(lambda: frames.add(page.text("#answer .chart")) or len(frames) >= 3)
    choose(page, "draw")
    assert page.driver.execute_script("return document.querySelector('video').srcObject.active") is False


def test_page_is_accessible(window):
    def draw() -> None:
        window.open("#drawing canvas")
        window.draw([ZERO])
        window.wait(window.winner)

    def choose_scan() -> None:
        window.open("#drawing canvas")
        choose(window, "image")
        window.find("#try .scans button")[0].click()
        window.wait(window.winner)

    for show in (draw, choose_scan):
        window.check_accessibility(show)


def test_long_class_names_have_two_lines_on_a_phone(model_folder, tmp_path, python):
    shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model_folder / "config.json").read_text())
    config["classnames"] = [f"acinonyx jubatus hecki, subspecies number {i}" for i in range(10)]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    open_digit("digits/0900").save(tmp_path / "scan.png")
    words = ("demo", str(tmp_path / "model"))
    with browsing(tmp_path / "profile", *words, python=python) as browser, browser.emulating(PHONE):
        browser.open()
        browser.upload(tmp_path / "scan.png")
        browser.wait(browser.winner)
        script = "return Math.max(...[...document.querySelectorAll('.chart tbody th')].map(each => each.offsetHeight))"
        assert browser.driver.execute_script(script) <= 60
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]


def test_model_folder_runs_no_script(model_folder, tmp_path, python):
    evil = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>${window.evil=1}{{constructor}}"
    shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model_folder / "config.json").read_text())
    config["method"] = config["trained_on"]["dataset"] = config["backbone"]["title"] = evil
    config["classnames"] = [f"{evil} {i}" for i in range(10)]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    open_digit("digits/0900").save(tmp_path / "scan.png")
    with browsing(tmp_path / "profile", "demo", str(tmp_path / "model"), python=python) as browser:
        browser.open()
        browser.upload(tmp_path / "scan.png")
        browser.wait(browser.winner)
        assert evil in browser.text("#answer")
        assert browser.driver.title == f"{evil} on {evil}"
        assert browser.driver.execute_script("return window.evil") is None
