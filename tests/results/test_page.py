"""The page: one file, nothing loaded from elsewhere, legible on a phone."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph.results.page import write_report
from trainers.hegraph.results.records import TEXT_NODES, write_predictions, write_record
from trainers.hegraph.utils.errors import UserError

CHROMIUM = shutil.which("chromium")
PHONE = 390  # CSS pixels


class Page(HTMLParser):
    """Tags with their attributes, the text, and tags that are not closed in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_run(folder: Path, record: dict, wrong: int = 1) -> None:
    """A run's folder with text nodes and predictions, of which so many of the class "<cat>" are "dog"."""
    names = ["<cat>", "dog", "a class with a rather long name"]
    write_record(folder, record)
    predicted = torch.tensor([1] * wrong + [0] * (9 - wrong) + [1] * 9 + [2] * 9)
    write_predictions(folder, predicted, torch.arange(3).repeat_interleave(9), names)
    nodes = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    save_file({"before": nodes[0], "after": nodes[1].clone()}, folder / TEXT_NODES, {"classnames": json.dumps(names)})


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of runs of several kinds."""
    folder = tmp_path_factory.mktemp("page")
    base = {
        "dataset": "Toy", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "mini/mini", "shots": 4,
        "seed": 1, "accuracy": 80.0, "accuracy_text": 79.0, "accuracy_zero_shot": 50.0, "macro_f1": 79.0,
        "num_test": 27, "selected_on": "last_step", "selected": {}, "run_id": "1",
        "config": {"DATASET.SUBSAMPLE_CLASSES": "all", "A.X": 1}, "config_hash": "c",
        "versions": {"torch": "9.8.7"}, "targets": {}, "seconds": {"training": 1.0}, "epochs": 2,
        "num_parameters": 7, "peak_memory_mb": 5.0, "device": "cpu", "threads": 2, "finished_at": "2026-01-01",
        "rejection": {"keep": 0.95, "kept": 93.75},
    }  # fmt: skip
    there = {"accuracy": 60.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    new = {"Toy:new": there | {"rule": "other classes"}}
    on_base = {"config": {"DATASET.SUBSAMPLE_CLASSES": "base", "A.X": 1}, "config_hash": "b", "num_test": 13}
    runs = {
        "four": base,
        "sixteen": base | {"shots": 16, "accuracy": 90.0},
        "sixteen, earlier": base | {"shots": 16, "seed": 2, "accuracy": 91.0, "finished_at": "2025-01-01"},
        "swept": base | {"config": base["config"] | {"A.X": 2}, "config_hash": "d", "accuracy": 70.0},
        "elsewhere": base | {"targets": {"Toy2": there}, "config_hash": "e"},
        "base": base | on_base | {"shots": 16, "targets": new, "finished_at": "2027-01-01"},
    }
    for number, (name, record) in enumerate(runs.items()):
        write_run(folder / "<runs> & more" / name, record, wrong=1 + number)
    out = folder / "out" / "report.html"
    write_report([folder / "<runs> & more"], out)
    return out


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(page, report):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = report.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_tag_is_closed_in_order(page):
    assert page.open == []


def test_it_says_its_language_title_and_that_it_fits_a_phone(page):
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("title")) == 1


def test_every_image_has_a_text_in_its_place(page):
    assert len(page.all("img")) == 3  # curves, text nodes, confusions
    assert all(len(image["alt"]) > 20 for image in page.all("img"))


def test_tables_are_of_the_records_each_kind_apart(page):
    assert len(page.all("table")) == 6
    for words in (
        "Accuracy on test (%) by shots", "by setting", "targets with same classes", "base and new classes",
        "What training takes", "kept by the threshold for 95%", "93.75", "X=2", "Toy (source)", "80.00", "90.50 ± 6.35",
    ):  # fmt: skip
        assert words in page.text
    assert "Not shown" not in page.text


def test_confusions_are_of_the_last_run_of_the_most_shots_on_all_classes(page):
    assert "Confusion matrix on test, Toy, mini/mini, 16 shots, seed 1." in page.text
    assert "<cat> and dog: 2 (<cat> as dog 2, dog as <cat> 0)" in page.text


def test_protocol_and_versions_are_told(page):
    for words in ("torch 9.8.7", "last step", "CoOp's few-shot protocol", "cpu, 2 threads"):
        assert words in page.text


def test_names_are_escaped_and_no_folder_of_the_machine_is_told(page, report):
    assert "<runs> & more" in page.text
    assert str(report.parents[1]) not in report.read_text(encoding="utf-8")


def test_whatever_a_record_says_is_text_and_no_markup(run, tmp_path):
    evil = '"><script>alert(1)</script>'
    changes = {"dataset": evil, "backbone": f"b{evil}", "versions": {"torch": evil}, "git_commit": evil}
    for seed, more in ((1, {}), (2, {"trainer": f"M{evil}", "variant": ""}), (3, {"versions": {"torch": evil + "2"}})):
        write_record(tmp_path / "runs" / str(seed), run(seed, **changes | more))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.all("script") == []
    assert f"Not shown: {evil}, b{evil}" in page.text
    assert f"torch {evil}2" in page.text and f"M{evil}" in page.text


def test_what_cannot_be_shown_says_why(run, tmp_path):
    write_record(tmp_path / "runs" / "1", run(1))
    write_record(tmp_path / "runs" / "2", run(2, versions={"torch": "1.0"}))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    assert "Not shown: Toy, mini/mini" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_a_source_without_records_leaves_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(UserError, match="no complete record"):
        write_report([tmp_path / "nothing"], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"


PROBE = """<script>
addEventListener("load", () => {
  const page = document.documentElement, boxes = [...document.querySelectorAll(".scroll")];
  document.title = JSON.stringify({
    width: innerWidth, overflow: page.scrollWidth - page.clientWidth, errors: window.failed || [],
    boxes: boxes.length, wide: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    requests: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  });
});
addEventListener("error", event => (window.failed ||= []).push(String(event.message)), true);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it_on_a_phone_without_overflow_or_request(report, tmp_path):
    # headless windows have a least width above a phone's, a frame has none
    probed = report.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    (tmp_path / "phone.html").write_text(
        f'<iframe id="phone" src="probed.html" style="border: 0; width: {PHONE}px; height: 800px"></iframe><pre></pre>'
        '<script>phone.onload = () => setTimeout(() => document.querySelector("pre").textContent = '
        "phone.contentDocument.title, 500)</script>"
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "phone.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=900)
    seen = json.loads(Page(shown.stdout[shown.stdout.index("<pre>") :].split("</pre>")[0] + "</pre>").text)
    assert seen["width"] == PHONE
    assert seen["overflow"] == 0
    assert seen["boxes"] == 9
    assert seen["wide"] > 0  # so that something could overflow
    assert (seen["errors"], seen["broken"], seen["requests"]) == ([], 0, 0)
