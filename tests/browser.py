"""Servers of the pages, and a headless Chromium that shows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import requests

from tools.free_ports import free_port

T = TypeVar("T")
HTTP = requests.Session()
HTTP.trust_env = False  # no proxy

PHONE = (390, 844)  # CSS pixels
DESKTOP = (1280, 800)
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera that shows a test picture
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)
SENT = ("Network.requestWillBeSent", "Network.webSocketCreated")
OWN_PAGES = ("chrome://", "chrome-untrusted://")  # of Chromium
# Gradio logs an error if an upload ends before a request for its progress, or if a page is left before a response
GRADIO_ERRORS = ("/gradio_api/upload_progress", " Response", "AbortError", "errored out")
# Violations of Gradio's own components, as rule of axe-core and part of the element's HTML
GRADIO_VIOLATIONS = (
    ("aria-prohibited-attr", '<div aria-label="Empty value" class="empty svelte-'),  # of a File, Gallery or Label
)


@cache
def axe() -> str:
    """Script of axe-core, which checks accessibility."""
    spec = find_spec("axe_playwright_python")  # its import needs playwright
    if spec is None or spec.origin is None:
        pytest.skip("axe-playwright-python, which contains axe-core, is not installed")
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@contextmanager
def serving(words: Sequence[str], cwd: Path = Path(__file__).parents[1], **environment: str) -> Iterator[str]:
    """Run a command with a free --port; the context is the address of its page."""
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    words = [*words, "--port", str(free_port())]
    with subprocess.Popen(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            line = next((line for line in lines if line.startswith("http://")), "")
            assert line, f"{words} ended without showing a page"
            yield line.split()[0]
        finally:
            process.terminate()
            process.wait(timeout=240)


@contextmanager
def browsing(profile: Path, *arguments: str, python: Path = Path(sys.executable)) -> Iterator[Browser]:
    """Run a command of the package by an interpreter and show its page in Chromium, as `shown`."""
    with serving([str(python), "-m", "trainers.hegraph", *arguments]) as address, shown(profile, address) as browser:
        yield browser


@contextmanager
def shown(profile: Path, address: str) -> Iterator[Browser]:
    """Show the page at an address in Chromium. `profile` is an empty folder.

    At the end, check that no script failed and no request left the machine.
    """
    browser = Browser(profile, address)
    try:
        yield browser
        browser.check_logs()
    finally:
        browser.driver.quit()


class Browser:
    """Chromium that shows the page at an address. `profile` is an empty folder."""

    def __init__(self, profile: Path, address: str) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not there")
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("Debian's packages chromium and chromium-driver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.actions = lambda: webdriver.ActionChains(self.driver, duration=10)
        self.keys = webdriver.Keys
        self.address = address

    def open(self, *selectors: str) -> None:
        """Open the page and wait until elements of the CSS selectors are displayed."""
        self.driver.get(self.address)
        for selector in selectors:
            self.wait(lambda selector=selector: self.find(selector))

    def settled(self, ask: Callable[[], T]) -> T:
        """Call `ask`, again if the page replaces an element meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(20):
            with suppress(StaleElementReferenceException):
                return ask()
            time.sleep(0.1)
        raise AssertionError("the page replaces its elements again and again")

    def find(self, selector: str) -> list:
        """Displayed elements of a CSS selector."""
        elements = partial(self.driver.find_elements, "css selector", selector)
        return self.settled(lambda: [element for element in elements() if element.is_displayed()])

    def wait(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until a condition holds; fail with the text of the page after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not met in {seconds} s; text of the page: {self.text('body')[:300]}"
            time.sleep(0.1)

    def text(self, selector: str) -> str:
        """Text of an element; "" if it is missing."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, selector)

    def winner(self) -> str:
        """Likeliest class; "" without an answer."""
        return self.text("#answer .winner").strip()

    def tab(self, name: str) -> None:
        """Open a tab."""
        [tab] = self.settled(lambda: [tab for tab in self.find("button[role=tab]") if tab.text == name])
        tab.click()
        self.wait(lambda: tab.get_attribute("aria-selected") == "true")

    def draw(self, strokes: Sequence[Sequence[tuple[float, float]]], name: str = "drawing") -> None:
        """Draw strokes with the mouse."""
        [canvas] = self.find(f"#{name} canvas")
        side = 0.8 * canvas.rect["width"]
        for stroke in strokes:
            points = [(round((x - 0.5) * side), round((y - 0.5) * side)) for x, y in stroke]
            actions = self.actions().move_to_element_with_offset(canvas, *points[0]).click_and_hold()
            for point in points[1:]:
                actions.move_to_element_with_offset(canvas, *point)
            actions.release().perform()

    def upload(self, file: Path) -> None:
        """Choose a file for the image, which replaces the current one."""
        self.wait(lambda: self.driver.find_elements("css selector", "#try input[type=file]"))
        self.driver.find_element("css selector", "#try input[type=file]").send_keys(str(file))

    @contextmanager
    def emulating(self, size: tuple[int, int], scheme: str = "light") -> Iterator[None]:
        """Show the page in a size, `DESKTOP` or `PHONE`, and in the "light" or "dark" colour scheme."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def violations(self, *rules: str) -> list[str]:
        """Serious and critical violations that axe-core finds in the page, without those of Gradio itself.

        Args:
            rules: Rules that are tried; all by default.
        """
        if not self.driver.execute_script("return window.axe !== undefined"):
            self.driver.execute_script(axe())
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        script = "axe.run(document, arguments[0]).then(arguments[1])"
        return [
            f"{rule['id']}: {node['target']}: {node['html'][:200]}"
            for rule in self.driver.execute_async_script(script, options)["violations"]
            for node in rule["nodes"]
            if node["impact"] in ("serious", "critical")
            if not any(rule["id"] == known and part in node["html"] for known, part in GRADIO_VIOLATIONS)
        ]

    def check_accessibility(self, show: Callable[[], object], *tabs: str) -> None:
        """Open the page at both sizes in both schemes, call `show`, and check each tab by axe-core.

        No tab may be wider than the window. Without `tabs`, the page is checked as `show` leaves it.
        """
        for size in (DESKTOP, PHONE):
            for scheme in ("light", "dark"):
                with self.emulating(size, scheme):
                    show()
                    for tab in tabs or ("",):
                        self.tab(tab) if tab else None
                        assert self.driver.execute_script("return document.documentElement.scrollWidth") <= size[0], tab
                        violations = self.settled(self.violations)
                        assert not violations, (size, scheme, tab, *violations)

    def check_logs(self) -> None:
        """Check that no script failed and no request went to another host.

        Chromium's own page of a new tab, which is open before ours, requests pictures from its maker.
        """
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] in SENT]
        sent = [each for each in sent if not each.get("documentURL", "").startswith(OWN_PAGES)]
        urls = [urlsplit(each.get("request", each)["url"]) for each in sent]
        inside = ("data", "blob", "chrome", "about", "chrome-extension")  # internal to the browser
        assert {url.netloc for url in urls if url.scheme not in inside} == {urlsplit(self.address).netloc}
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert [error for error in errors if not any(part in error for part in GRADIO_ERRORS)] == []
