"""Plugin in the real FiftyOne: fields and saved views of the operator."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from browser import HTTP, Browser

from tools.free_ports import free_port
from trainers.hegraph.datasets.digits import load_digits_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("fiftyone_run.py")


def fiftyone_python() -> str:
    """Python that has FiftyOne and this package's requirements; skip the test without it."""
    named = os.environ.get("HEGRAPH_FIFTYONE_PYTHON")
    if named is None and find_spec("fiftyone") is None:
        pytest.skip("fiftyone is not installed, and HEGRAPH_FIFTYONE_PYTHON does not name a Python that has it")
    return named or sys.executable


def environment(folder: Path) -> dict[str, str]:
    """Variables of FiftyOne, whose files and database are in a folder, with the plugin of this checkout."""
    own = {
        "FIFTYONE_DATABASE_DIR": str(folder / "database"), "FIFTYONE_CONFIG_PATH": str(folder / "config.json"),
        "FIFTYONE_APP_CONFIG_PATH": str(folder / "app.json"), "FIFTYONE_PLUGINS_DIR": str(ROOT / "integrations"),
        "FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_VALIDATION": "0", "PYTHONPATH": str(ROOT / "trainers"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return {**os.environ, **own}


def save_digits(folder: Path) -> None:
    """Save 20 scans of each digit."""
    dataset = load_digits_dataset()
    for item in dataset.train[:260]:
        place = folder / item.classname
        place.mkdir(parents=True, exist_ok=True)
        if len([*place.iterdir()]) < 20:
            dataset.open(item.path).save(place / f"{Path(item.path).name}.png")


def test_operator_writes_predictions_suspicious_labels_and_suggestions(tmp_path):
    python = fiftyone_python()
    save_digits(tmp_path / "images")
    words = [python, str(PROGRAM), str(tmp_path / "images")]
    ran = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert answer["listed"] and answer["result"]["labelled"] == 120 and answer["result"]["predicted"] == 200
    assert answer["suspicious"][:3] == [["planted"]] * 3
    assert answer["result"]["suspicious"] == len(answer["suspicious"]) <= 15
    assert answer["next"] == [1, 2, 3, 4, 5] and answer["next labels"] == [None] * 5
    assert sum(answer["right"]) > 180
    assert answer["confidence"] == sorted(answer["confidence"]) and len(answer["confidence"]) == 200


@contextmanager
def showing_app(folder: Path) -> Iterator[Browser]:
    """Show the App with the dataset of `fiftyone_run.py`; `folder` is empty."""
    save_digits(folder / "images")
    port = str(free_port())
    words = [fiftyone_python(), str(PROGRAM), str(folder / "images"), port]
    with subprocess.Popen(words, env=environment(folder), stdin=subprocess.PIPE) as process:
        browser = None
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address)
            browser = Browser(folder / "profile", f"{address}/datasets/digits")
            yield browser
        finally:
            if browser is not None:
                browser.driver.quit()
            assert process.stdin is not None
            process.stdin.close()


def wait_for(address: str) -> None:
    """Wait until the App answers, for at most 200 s."""
    for _ in range(200):
        with suppress(requests.RequestException):
            if HTTP.get(address, timeout=10).ok:
                return
        time.sleep(1)
    raise AssertionError("the App does not start")


def run_operator(page: Browser) -> None:
    """Choose the operator by the keyboard, fill in its form, and execute it."""
    page.open("body")
    page.wait(lambda: "200 samples" in page.text("body"), 120)
    page.actions().send_keys("`").perform()
    page.wait(lambda: page.find("input[placeholder*='operat' i]"))
    page.actions().send_keys("HeGraph").perform()
    page.wait(lambda: "HeGraph: train and predict" in page.text("body"))
    page.actions().send_keys(page.keys.ENTER).perform()

    def encoders() -> list:
        return [field for field in page.find("input") if field.get_attribute("value") == "ViT-B-16"]

    page.wait(encoders)
    [encoder] = encoders()
    encoder.send_keys(page.keys.CONTROL, "a")
    encoder.send_keys("mini")
    page.wait(lambda: encoder.get_attribute("value") == "mini")
    time.sleep(2)  # the App sends the form to the operator after a pause
    [execute] = [button for button in page.find("button") if button.text == "Execute"]
    execute.click()
    page.wait(lambda: "Labelled samples" in page.text("body"), 120)


def show_suspicious(page: Browser) -> None:
    """Open the saved view of suspicious labels."""
    page.driver.get(f"{page.address}?view=hegraph-suspicious-labels")
    page.wait(lambda: "hegraph_label_score" in page.text("body") and "samples" in page.text("body"), 120)
    time.sleep(5)  # until the images have arrived


def test_operator_is_listed_in_the_app_and_runs(tmp_path):
    with showing_app(tmp_path) as page:
        run_operator(page)
        show_suspicious(page)
        assert "hegraph suspicious labels" in page.text("body")
