"""The pages of commands: served, asked as a program does, and shown in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import requests

T = TypeVar("T")
HTTP = requests.Session()
HTTP.trust_env = False  # no proxy

PHONE = (360, 740)  # CSS pixels
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
)
SENT = ("Network.requestWillBeSent", "Network.webSocketCreated")
# Gradio asks for the progress of an upload, and says so in the console if the upload has ended before, or a page that
# is left had asked for something
OF_GRADIO = ("/gradio_api/upload_progress", " Response", "AbortError", "errored out")


@contextmanager
def serving(words: Sequence[str], cwd: Path = Path(__file__).parents[1], **environment: str) -> Iterator[str]:
    """The address where a command, which is given without its port, shows its page."""
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    words = [*words, "--port", str(port)]
    with subprocess.Popen(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            line = next((line for line in lines if line.startswith("http://")), "")
            assert line, f"{words} ended without showing a page"
            yield line.split()[0]
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def browsing(profile: Path, *arguments: str) -> Iterator[Browser]:
    """Chromium on the page of a command of ours; `profile` is an empty folder. In the end no script has failed, and no
    request has left the machine.
    """
    with serving([sys.executable, "-m", "trainers.hegraph", *arguments]) as address:
        browser = Browser(profile, address)
        try:
            yield browser
            browser.check_logs()
        finally:
            browser.driver.quit()


class Browser:
    """Chromium on the page at an address; `profile` is an empty folder."""

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
        """Opens the page anew, and waits until it can be used: elements of these CSS selectors are displayed."""
        self.driver.get(self.address)
        for selector in selectors:
            self.wait(lambda selector=selector: self.find(selector))

    def settled(self, ask: Callable[[], T]) -> T:
        """What `ask` gives of elements, asked again where the page is renewed meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(20):
            with suppress(StaleElementReferenceException):
                return ask()
            time.sleep(0.1)
        raise AssertionError("the page is renewed again and again")

    def find(self, selector: str) -> list:
        """The elements of a CSS selector that are displayed."""
        elements = partial(self.driver.find_elements, "css selector", selector)
        return self.settled(lambda: [element for element in elements() if element.is_displayed()])

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits until a condition holds, and fails with the page's answer if it does not."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"nothing came in {seconds} s; the page says: {self.text('body')[:300]}"
            time.sleep(0.1)

    def text(self, selector: str) -> str:
        """The text of an element; "" if it is not there."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, selector)

    def winner(self) -> str:
        """The likeliest class; "" if there is no answer."""
        return self.text("#adapted [data-testid=label-output-value]").strip()

    def tab(self, name: str) -> None:
        """Opens a tab."""
        [tab] = self.settled(lambda: [tab for tab in self.find("button[role=tab]") if tab.text == name])
        tab.click()
        self.wait(lambda: tab.get_attribute("aria-selected") == "true")

    def draw(self, strokes: Sequence[Sequence[tuple[float, float]]], name: str = "drawing") -> None:
        """Draws a digit with the mouse."""
        [canvas] = self.find(f"#{name} canvas")
        side = 0.8 * canvas.rect["width"]
        for stroke in strokes:
            points = [(round((x - 0.5) * side), round((y - 0.5) * side)) for x, y in stroke]
            actions = self.actions().move_to_element_with_offset(canvas, *points[0]).click_and_hold()
            for point in points[1:]:
                actions.move_to_element_with_offset(canvas, *point)
            actions.release().perform()

    def upload(self, file: Path) -> None:
        """Chooses a file for the image, in place of the one that is there."""
        for button in self.find("#image button[aria-label='Clear']"):
            button.click()
        self.wait(lambda: self.driver.find_elements("css selector", "#image input[type=file]"))
        self.driver.find_element("css selector", "#image input[type=file]").send_keys(str(file))

    def check_on_a_phone(self, *tabs: str) -> None:
        """On a phone nothing is wider than the page, and every control of every tab has a name for a screen reader."""

        def unnamed() -> list[str]:
            # Gradio keeps copies of its tabs to measure how wide they are; nobody sees or reaches them
            controls = self.find("button:not(.tab-container.visually-hidden *), input, canvas, textarea, select, a")
            return [each.get_attribute("outerHTML")[:200] for each in controls if not each.accessible_name]

        metrics = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            for tab in tabs:
                shown = self.settled(lambda: [button.text for button in self.find("button[role=tab]")])
                self.tab(tab) if tab in shown else None
                assert self.driver.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
                assert self.settled(unnamed) == []
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def check_logs(self) -> None:
        """What the browser has logged is no failure of a script, and no request to another host."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] in SENT]
        urls = [urlsplit(each.get("request", each)["url"]) for each in sent]
        inside = ("data", "blob", "chrome", "about", "chrome-extension")  # pages and data of the browser itself
        assert {url.netloc for url in urls if url.scheme not in inside} == {urlsplit(self.address).netloc}
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert [error for error in errors if not any(part in error for part in OF_GRADIO)] == []
