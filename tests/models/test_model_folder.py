"""Model folders: writing, reading, and errors of damaged folders."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from trainers.hegraph import ModelOptions, UserError
from trainers.hegraph.method.training.confidence import KnownScores
from trainers.hegraph.models import folder as folder_module
from trainers.hegraph.models.folder import CARD, CONFIG, TENSORS, ModelWriter, load_model, model_files, save_model
from trainers.hegraph.models.saved import ModelMetadata, SavedModel
from trainers.hegraph.models.thumbnails import own_file, read_thumbnail, write_thumbnails
from trainers.hegraph.utils import files
from trainers.hegraph.utils.reading import read_json

KNOWN = KnownScores(quantiles=[0.1 * step for step in range(101)], fitted_on="val", num_images=12)


@pytest.fixture
def folder(tmp_path: Path, saved_model: Callable[..., SavedModel]) -> Path:
    save_model(saved_model(known=KNOWN, labels=(1, 2.5, "three")), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, keys: str, value: object) -> None:
    """Set an entry of config.json with a name like "backbone.title"; `...` removes it."""
    config = part = read_json(folder / CONFIG)
    *above, last = keys.split(".")
    for key in above:
        part = part[key]
    part[last] = value
    if value is ...:
        del part[last]
    (folder / CONFIG).write_text(json.dumps(config))


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Set tensors and their hash in config.json; None removes a tensor."""
    tensors = load_file(folder / TENSORS) | changes
    # copies, because the tensors of an old safetensors are parts of the file that is overwritten
    tensors = {name: value.clone() for name, value in sorted(tensors.items()) if value is not None}
    save_file(tensors, folder / TENSORS)
    change_config(folder, "tensors", files.hash_content(tensors))


def refused(folder: Path) -> str:
    """Return the one-line error of a damaged folder."""
    with pytest.raises(UserError) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Round trip


def test_saved_models_are_restored(folder, saved_model, caplog):
    read, written = load_model(folder), saved_model(known=KNOWN, labels=(1, 2.5, "three"))
    for name in (*ModelMetadata.model_fields, "transfer_rule"):
        assert getattr(read, name) == getattr(written, name), name
    assert [type(label) for label in read.labels] == [int, float, str]
    assert read.transfer.options == written.transfer.options
    rounded = replace(written.classifier, keys=written.classifier.keys.half().float())
    for found, expected in (
        (vars(read.classifier), vars(rounded)), (read.text_positive, written.text_positive),
        (read.class_nodes, written.class_nodes.half().float()),
        (read.transfer.parameters, written.transfer.parameters),
        (vars(read.transfer.messages), vars(written.transfer.messages)),
    ):  # fmt: skip
        assert_close(found, expected, rtol=0, atol=0)
    assert caplog.messages == []


def test_other_methods_keep_exact_keys(tmp_path, saved_model, unit_features):
    names = ("größer/kleiner", "ライオン \U0001f981", "a\nb")
    lacks = {"transfer": None, "class_nodes": None, "preprocessing": None, "prompts": None}
    model = saved_model(method="TipAdapterF", transfer_rule="zero-shot", classnames=names, **lacks)
    save_model(model, tmp_path / "model")
    read = load_model(tmp_path)  # the folder of the run
    assert torch.equal(read.classifier.keys, model.classifier.keys)
    assert (read.transfer_rule, read.classnames) == ("zero-shot", names)
    assert {name: getattr(read, name) for name in lacks} == lacks
    text = saved_model().classifier.text_only()
    save_model(saved_model(classifier=text), tmp_path / "model")
    features, read = unit_features(50, 8, seed=3), load_model(tmp_path / "model")
    assert read.classifier.keys is read.classifier.labels is read.classifier.key_weights is None
    assert torch.equal(read.classifier.logits(features), text.logits(features))


# Writing


def test_model_is_replaced_completely_or_not_at_all(folder, saved_model, disk_full_after):
    with pytest.raises(UserError, match=r"cannot write .*model"), disk_full_after(100):
        save_model(saved_model(method="TipAdapter"), folder)
    assert load_model(folder).method == "HeGraphAdapter" and os.listdir(folder.parent) == ["model"]
    save_model(saved_model(method="TipAdapter"), folder)
    assert load_model(folder).method == "TipAdapter" and os.listdir(folder.parent) == ["model"]
    assert "# TipAdapter on" in (folder / CARD).read_text()


@pytest.mark.parametrize("has_links", [True, False])
def test_other_files_stay_but_thumbnails(folder, saved_model, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError("no links")))
    for name in (".git/HEAD", "hegraph/config.json", "thumbnails/00000.jpg", "handler.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    for link in ("link", ".git/link"):
        (folder / link).symlink_to("nowhere")
    before = (folder / ".git" / "HEAD").stat().st_ino
    save_model(saved_model(), folder)
    assert ((folder / ".git" / "HEAD").stat().st_ino == before) == has_links
    others = {path.name for path in folder.iterdir()} - {CONFIG, TENSORS, CARD}
    assert others == {".git", "hegraph", "handler.py", "link"} and os.readlink(folder / "link") == "nowhere"
    assert os.readlink(folder / ".git" / "link") == "nowhere"
    for name in (".git/HEAD", "hegraph/config.json", "handler.py"):
        assert (folder / name).read_text() == name


CHANGES = ("os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree")


def save_until(step: int, model: SavedModel, folder: Path) -> None:
    """Save a model, and kill this process before a change on disk with this number."""
    steps = count(1)

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    save_model(model, folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_save_leaves_a_complete_model(folder, saved_model):
    fork, new, found = multiprocessing.get_context("fork"), saved_model(method="TipAdapter"), []
    for step in count(1):
        process = fork.Process(target=save_until, args=(step, new, folder))
        process.start()
        process.join()
        found.append(load_model(folder).method)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        save_model(saved_model(), folder)  # removes temporary files of the killed process
        assert os.listdir(folder.parent) == ["model"] and load_model(folder).method == "HeGraphAdapter"
    old = found.count("HeGraphAdapter")
    assert old > 5 and found == ["HeGraphAdapter"] * old + ["TipAdapter"] * (step - old) and step - old > 5


def test_failed_save_keeps_the_previous_model(folder, saved_model, disk_full_after):
    left = files._temporary_path(folder)
    left.mkdir()
    os.replace(folder, left / "old")  # state after a killed process
    files.remove_temporaries(folder.parent, os.getsid(0))
    assert load_model(folder).method == load_model(folder.parent).method == "HeGraphAdapter"
    with pytest.raises(UserError, match=r"cannot write .*model"), disk_full_after(100):
        save_model(saved_model(), folder)
    assert os.listdir(folder.parent) == ["model"] and load_model(folder).method == "HeGraphAdapter"


def test_locked_model_is_not_replaced(folder, saved_model, monkeypatch):
    monkeypatch.setattr(folder_module, "SAVE_WAIT", 0)
    with ModelWriter(folder), pytest.raises(UserError, match=f"{folder} is in use by process {os.getpid()}"):
        save_model(saved_model(method="TipAdapter"), folder)
    assert load_model(folder).method == "HeGraphAdapter"
    save_model(saved_model(method="TipAdapter"), folder)
    assert os.listdir(folder.parent) == ["model"]


def test_save_waits_for_another_one(folder, saved_model):
    writer = ModelWriter(folder)
    release = threading.Timer(0.3, writer.close)
    release.start()
    save_model(saved_model(method="TipAdapter"), folder)
    release.join()
    assert load_model(folder).method == "TipAdapter"


@pytest.mark.parametrize(("change", "word"), [
    (lambda folder: os.utime(folder / CONFIG, (1, 1)), "was changed"),
    (lambda folder: folder.rename(folder.with_name("elsewhere")), "was moved or removed"),
    (lambda folder: (folder / CONFIG).unlink(), "was moved or removed"),
])  # fmt: skip
def test_change_by_a_program_without_lock_is_noticed(folder, saved_model, change, word):
    with ModelWriter(folder) as writer:
        writer.save(saved_model(method="TipAdapter"))
        change(folder)
        before = sorted(path.name for path in folder.parent.rglob("*"))
        with pytest.raises(UserError, match=word):
            writer.save(saved_model())
        assert sorted(path.name for path in folder.parent.rglob("*")) == before


@pytest.mark.parametrize(("file", "name"), [("file", "file"), ("file", "."), (CONFIG, ".")])
def test_other_folders_are_not_overwritten(tmp_path, saved_model, file, name):
    (tmp_path / file).write_text('{"model_type": "clip"}')
    assert CONFIG in refused(tmp_path / name)
    with pytest.raises(UserError, match="expected a model folder or a new path"):
        save_model(saved_model(), tmp_path / name)
    assert (tmp_path / file).read_text() == '{"model_type": "clip"}' and os.listdir(tmp_path) == [file]


def test_model_is_saved_in_an_empty_folder(tmp_path, saved_model):
    (tmp_path / "empty").mkdir()
    save_model(saved_model(), tmp_path / "empty")
    assert load_model(tmp_path / "empty").method == "HeGraphAdapter"
    assert "missing does not exist; pass the model folder of a run, such as OUTPUT_DIR" in refused(tmp_path / "missing")
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    (tmp_path / "photos" / "ant" / "1.jpg").touch()
    for place in ("photos", "photos/ant", "photos/ant/1.jpg"):
        assert f"{place} holds images and no model, which comes before them; pass the" in refused(tmp_path / place)


# Places


def test_model_files_include_the_run(folder):
    (folder / "thumbnails").mkdir()
    for path in (folder / "thumbnails" / "00000.jpg", folder.parent / "result.json", folder.parent / "rows.csv"):
        path.touch()
    found = {str(path.relative_to(folder.parent)) for path in model_files(folder.parent)}
    assert found == {"result.json", *(f"model/{name}" for name in (CONFIG, TENSORS, CARD, "thumbnails/00000.jpg"))}


def test_links_leave_the_folder_only_to_the_cache(tmp_path, caplog):
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "77").write_text("of the cache")
    (tmp_path / "secret").write_text("mine")
    (folder / "own").write_text("own")
    links = {"inside": "own", "cached": "../../blobs/77", "out": "../../../secret", "gone": "nowhere"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    read = {name: own_file(folder, name) for name in ("own", *links, "pipe", "../../../secret")}
    expected = {"own": "own", "inside": "own", "cached": "of the cache"}
    assert {name: path.read_text() for name, path in read.items() if path} == expected
    assert "out is a link" in caplog.text


def test_thumbnail_links_are_not_followed(folder, tmp_path):
    write_thumbnails(folder, [Image.new("RGB", (80, 40), "red")])
    thumbnail = folder / "thumbnails" / "00000.jpg"
    thumbnail.symlink_to(thumbnail.rename(tmp_path / "mine.jpg"))
    assert read_thumbnail(folder, 0) is read_thumbnail(folder, 1) is None


# Damage


def test_hash_connects_the_two_files(folder, tmp_path, saved_model):
    whole = (folder / TENSORS).read_bytes()
    other = saved_model(classifier=replace(saved_model().classifier, weights=torch.ones(3, 8)))
    save_model(other, tmp_path / "other")
    for content in ((tmp_path / "other" / TENSORS).read_bytes(), whole[:-1] + bytes([whole[-1] ^ 1])):  # or one bit
        (folder / TENSORS).write_bytes(content)
        assert str(folder / TENSORS) in refused(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_damaged_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    contents = [whole[: int(share * len(whole))] for share in (0, 0.5, 0.99)]
    contents += [b"\xff" * 8, b"<html>404</html>", b"null"]
    for content in contents:
        (folder / name).write_bytes(content)
        assert str(folder / name) in refused(folder)
    (folder / name).unlink()
    assert name in refused(folder)


def test_mistyped_entries_are_named(folder):
    original = (folder / CONFIG).read_text()
    whole = json.loads(original)
    of_plain_values = ("trained_on.config.", "trained_on.versions.", "backbone.fingerprint.")
    for keys in {*whole, *pd.json_normalize(whole)}:
        last = keys.rpartition(".")[2]
        if keys.startswith(of_plain_values):
            continue
        change_config(folder, keys, [[{"deep": 1}]])
        message = refused(folder)
        assert str(folder / CONFIG) in message and last in message, keys
        (folder / CONFIG).write_text(original)
    assert whole["transfer"]["options"].keys() == {field.name for field in fields(ModelOptions)}


@pytest.mark.parametrize(("keys", "value", "expected"), [
    ("extra", 1, "extra"),
    ("classnames", ["ant", "bee"], "3 class_ids for 2 classnames"),
    ("class_ids", ["n1", "n2", "n1"], "class_ids must be unique"),
    ("images", [1, 1], "2 images for 3 classnames"), ("temperature", 0, "temperature"),
    ("prompts.negative", [["no ant"]], "prompts must have"), ("transfer.options.variant", "X", "VARIANT 'X'"),
    ("transfer.options.closed_form.kappa", 0.0, "KAPPA must be above 0"),
    ("transfer.options.metapath.GAMMA", 1.0, "metapath must have the keys"),
    ("sets", {"scores": [0.5], "temperature": 1.0, "of_zero_shot": False, "few": {"classes": [3], "scores": [0.5]}},
     "sets.few.classes must be below 3"),
], ids=str)  # fmt: skip
def test_invalid_values_are_named(folder, keys, value, expected):
    change_config(folder, keys, value)
    message = refused(folder)
    assert str(folder / CONFIG) in message and expected in message


@pytest.mark.parametrize(("changes", "expected"), [
    ({"text_positive": None}, "text_positive"),
    ({"transfer.weight.negative": None}, "transfer.weight.negative"),
    ({"transfer.messages.matrix": None}, "matrix"), ({"extra": torch.zeros(1)}, "unknown tensor 'extra'"),
    ({"extra.weight.x": torch.zeros(8, 8)}, "unknown tensor 'extra.weight.x'"),
    (
        {"keys": torch.zeros(0, 8), "labels": torch.zeros(0, dtype=torch.int32), "key_weights": None},
        "both keys and labels",
    ),
    ({"labels": None}, "both keys and labels"),
    ({"labelled.counts": torch.zeros(3)}, "it lacks 'sums'"),
    ({"weights": torch.zeros(2, 8)}, "expected floats of shape [3, 8] in weights"),
    ({"keys": torch.tensor(1.0), "key_weights": None}, "0-d"),
    ({"labels": torch.zeros(6)}, "expected integers of shape [6] in labels"),
    ({"labels": torch.tensor([0, 1, 2, 0, 1, 3])}, "from 0 to 2"),
    ({"labels": torch.tensor([0, 1, 2, 0, 1, -1])}, "from 0 to 2"),
    ({"unlabelled.features": torch.zeros(2, 8)}, "2 rows of unlabelled.features for 0 unlabelled images"),
    ({"thresholds": torch.zeros(2)}, "expected floats of shape [3] in thresholds"),
    ({"bias": torch.full((3,), 1e300, dtype=torch.float64)}, "bias has NaN"),
])  # fmt: skip
def test_damaged_tensors_are_named(folder, changes, expected):
    change_tensors(folder, changes)
    message = refused(folder)
    assert message.startswith(str(folder / TENSORS)) and expected in message


@pytest.mark.parametrize(("labels", "expected"), [
    (torch.zeros(2, dtype=torch.int32), "expected integers of shape [2, 3] in labelled.labels"),
    (torch.full((2, 3), 2, dtype=torch.uint8), "labelled.labels must be from 0 to 1"),
])  # fmt: skip
def test_label_indicators_are_checked(tmp_path, saved_model, labels, expected):
    images, thresholds = {"labelled.features": torch.zeros(2, 8), "labelled.labels": labels}, torch.zeros(3)
    model = saved_model(thresholds=thresholds)
    plain = replace(model.classifier, keys=None, labels=None, key_weights=None)
    save_model(model.model_copy(update={"classifier": plain}), tmp_path / "model")
    change_tensors(tmp_path / "model", images)
    assert expected in refused(tmp_path / "model")


def test_transfer_tensors_need_the_rule(folder):
    change_config(folder, "transfer", {"rule": "none", "options": {}})
    assert "unknown tensor 'transfer." in refused(folder)
