"""Folder of the page: its files, the checked runtime, and refusals."""

import hashlib
import io
import json
import re
import tarfile
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")

from trainers.hegraph import UserError
from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.static import runtime as runtime_module
from trainers.hegraph.apps.static.page import write_page
from trainers.hegraph.apps.static.runtime import HASHES, read_runtime
from trainers.hegraph.models.export.onnx_file import write_onnx
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.saved import Preprocessing

CONTENT = {name: f"content of {name}".encode() for name in HASHES}


def save_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """Archive whose files have the expected hashes."""
    for name, content in CONTENT.items():
        monkeypatch.setitem(runtime_module.HASHES, name, hashlib.sha256(content).hexdigest())
    return save_archive(tmp_path / "runtime.tgz", CONTENT)


@pytest.fixture
def exportable(finished_digits_once) -> ImageModel:
    images = ImageModel.load(finished_digits_once)
    images.model = images.model.model_copy(update={"preprocessing": Preprocessing.of(images.backbone)})
    return images


def write(images: ImageModel, folder: Path, runtime: Path) -> None:
    write_page(images.model, folder, runtime, partial(write_onnx, images.model, images.backbone))


def test_export_writes_a_page_without_other_hosts(finished_digits_once, archive, tmp_path, capsys):
    site = tmp_path / "site"
    assert main(["export", str(finished_digits_once), "--page", str(site), "--runtime", str(archive)]) == 0
    assert {path.name for path in site.iterdir()} == {"index.html", "page.js", "model.onnx", *HASHES}
    printed = capsys.readouterr().out
    assert f"{site}: 11.9" in printed and f"python -m http.server --directory {site}" in printed
    for name in ("index.html", "page.js"):
        assert re.findall(r"(?:https?:)?//[a-z]+\.[a-z.]+", (site / name).read_text()) == []


def test_page_has_the_values_of_the_model(exportable, archive, tmp_path):
    write(exportable, tmp_path / "site", archive)
    html = (tmp_path / "site" / "index.html").read_text()
    values = json.loads(re.search(r'id="model">(.*?)</script>', html)[1])
    assert values["classes"][:3] == ["zero", "one", "two"] and values["thresholds"] is None
    assert values["bytes"] == (tmp_path / "site" / "model.onnx").stat().st_size
    assert values["unknown"]["threshold"] == pytest.approx(exportable.model.known.threshold(0.95))
    assert values["preprocessing"] == {
        "size": [32, 32], "resize": "shortest", "interpolation": "bicubic", "crop": "center", "decode": "full",
        "mean": list(exportable.backbone.mean), "std": list(exportable.backbone.std),
    }  # fmt: skip


def test_earlier_page_is_replaced_and_other_folders_are_not(exportable, archive, tmp_path):
    site = tmp_path / "site"
    write(exportable, site, archive)
    (site / "page.js").write_text("old")
    write(exportable, site, archive)
    assert (site / "page.js").read_text() != "old"
    (site / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has other files, such as thesis\.txt; choose another folder"):
        write(exportable, site, archive)
    assert (site / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["", "dist"])
def test_runtime_is_read_from_a_folder(place, archive, tmp_path):
    folder = tmp_path / "package" / place
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    assert read_runtime(tmp_path / "package") == read_runtime(archive) == CONTENT


def test_changed_runtime_is_refused(archive, tmp_path):
    changed = save_archive(tmp_path / "changed.tgz", {name: content + b" " for name, content in CONTENT.items()})
    with pytest.raises(UserError, match=r"--runtime: expected ort.* of onnxruntime-web 1\..*, got another file"):
        read_runtime(changed)


def test_incomplete_or_unreadable_runtime_is_refused(archive, tmp_path):
    (tmp_path / "notes.tgz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    some = save_archive(tmp_path / "some.tgz", dict([*CONTENT.items()][:1]))
    for path in (tmp_path / "notes.tgz", tmp_path / "empty", tmp_path / "missing.tgz", some):
        with pytest.raises(UserError, match=r"is not onnxruntime-web: .*; get it with `npm pack onnxruntime-web@"):
            read_runtime(path)


def test_preprocessing_that_a_browser_cannot_compute_is_refused(exportable, archive, tmp_path):
    transform = exportable.model.preprocessing.transform.replace("bicubic", "lanczos")
    preprocessing = exportable.model.preprocessing.model_copy(update={"transform": transform})
    exportable.model = exportable.model.model_copy(update={"preprocessing": preprocessing})
    with pytest.raises(UserError, match=r"a browser cannot compute the preprocessing .*lanczos.*; use --onnx"):
        write(exportable, tmp_path / "site", archive)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--page", "site"], "--page needs --runtime PATH"),
    (["--onnx", "a.onnx", "--runtime", "x.tgz"], "--runtime is for --page"),
    (["--page", "site", "--runtime", "x.tgz", "--part", "head"], "--page classifies images"),
    (["--page", "site", "--onnx", "a.onnx"], "not allowed with argument"),
    ([], "one of the arguments --onnx --page is required"),
])  # fmt: skip
def test_contradicting_flags_are_refused(finished_digits_once, tmp_path, cli_error, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in cli_error("export", finished_digits_once, *flags)
    assert not [*tmp_path.iterdir()]
