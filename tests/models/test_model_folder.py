"""The model folder: what was written is what is read, and every damage is one clear line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensor_files import READS_COMPLEX

from trainers.hegraph.method import relations
from trainers.hegraph.method.closed_form import NewClassMessages
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.method.relations import RelationType
from trainers.hegraph.models.folder import CARD, CONFIG, TENSORS, find_model_folder, load_model, save_model
from trainers.hegraph.models.saved import SavedModel
from trainers.hegraph.models.schema import AdapterOptions, ClosedForm
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import read_json, write_json

ANY = (("trained_on", "config"), ("trained_on", "selected"), ("backbone", "fingerprint"), ("trained_on", "versions"))


@pytest.fixture
def folder(tmp_path: Path, saved_model: Callable[..., SavedModel]) -> Path:
    save_model(saved_model(), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, keys: tuple, value: object) -> None:
    """Sets an entry of config.json; `...` removes it."""
    config = read_json(folder / CONFIG)
    part = config
    for key in keys[:-1]:
        part = part[key]
    if value is ...:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    (folder / CONFIG).write_text(json.dumps(config))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Sets tensors of model.safetensors, whose names may have "__" for a dot; None removes one."""
    tensors = load_file(folder / TENSORS) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / TENSORS)


def refused(folder: Path) -> str:
    """The message of the one line that a damaged folder gives."""
    with pytest.raises(UserError) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    return str(raised.value)


# Round trip


def test_all_that_was_saved_is_read_again(folder, saved_model):
    read, written = load_model(folder), saved_model()
    for field in fields(SavedModel):
        if field.name not in ("classifier", "text_positive", "transfer"):
            assert getattr(read, field.name) == getattr(written, field.name)
    assert torch.equal(read.text_positive, written.text_positive)
    assert read.transfer.options == written.transfer.options
    for name, value in written.transfer.parameters.items():
        assert torch.equal(read.transfer.parameters[name], value)
    for field in fields(NewClassMessages):
        assert torch.equal(getattr(read.transfer.messages, field.name), getattr(written.transfer.messages, field.name))


def test_predictions_from_the_folder_are_those_in_memory_where_float16_holds_the_keys(
    tmp_path, saved_model, unit_features
):
    model = saved_model()
    model = replace(model, classifier=replace(model.classifier, keys=model.classifier.keys.half().float()))
    save_model(model, tmp_path / "model")
    features = unit_features(50, 8, seed=3)
    assert (load_model(tmp_path / "model").probabilities(features) - model.probabilities(features)).abs().max() < 1e-5


def test_a_model_without_a_cache_gives_the_same_logits_to_the_bit(tmp_path, saved_model, unit_features):
    model = saved_model(classifier=saved_model().classifier.text_only())
    save_model(model, tmp_path / "model")
    features = unit_features(50, 8, seed=3)
    assert torch.equal(load_model(tmp_path / "model").classifier.logits(features), model.classifier.logits(features))


def test_rounding_the_keys_to_float16_changes_no_class_of_a_thousand_images(tmp_path, saved_model, unit_features):
    model = saved_model()
    save_model(model, tmp_path / "model")
    features = unit_features(1000, 8, seed=3)
    read = load_model(tmp_path / "model")
    assert load_file(tmp_path / "model" / TENSORS)["keys"].dtype == torch.float16
    assert torch.equal(read.probabilities(features).argmax(1), model.probabilities(features).argmax(1))


def test_the_output_folder_of_a_run_stands_for_its_model(folder):
    assert find_model_folder(folder.parent) == folder
    assert load_model(folder.parent).method == "HeGraphAdapter"


def test_floats_of_other_sizes_are_read_as_float32(folder):
    change_tensors(folder, bias=torch.zeros(3, dtype=torch.float64), keys=load_file(folder / TENSORS)["keys"].double())
    classifier = load_model(folder).classifier
    assert classifier.bias.dtype == classifier.keys.dtype == torch.float32


# Replacing


def test_a_model_folder_is_replaced_whole_and_nothing_else_is_left(folder, saved_model):
    (folder / "thumbnails").mkdir()
    save_model(saved_model(method="TipAdapter"), folder)
    assert load_model(folder).method == "TipAdapter"
    assert sorted(os.listdir(folder)) == sorted([CONFIG, TENSORS, CARD])
    assert os.listdir(folder.parent) == ["model"]


def test_a_failure_while_writing_leaves_the_older_model(folder, saved_model, disk_full_after):
    with pytest.raises(UserError, match=r"cannot write .*model"), disk_full_after(100):
        save_model(saved_model(method="TipAdapter"), folder)
    assert load_model(folder).method == "HeGraphAdapter"
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("what", ["file", "other folder"])
def test_something_else_than_a_model_is_not_overwritten(tmp_path, saved_model, what):
    place = tmp_path / "place"
    if what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is no model folder, and is not overwritten"):
        save_model(saved_model(), place)
    assert "mine" in (place if what == "file" else place / "mine.txt").read_text()


# Places that are no model


def test_a_folder_of_a_run_without_its_model_says_how_to_get_one(tmp_path):
    (tmp_path / "adapter.safetensors").touch()
    assert refused(tmp_path) == (
        f"{tmp_path} holds adapter.safetensors and no model/: its run was cut off, or is of an earlier version; run "
        "its training again to get one (delete a result.json there first)"
    )


def test_a_place_that_is_no_model_folder_says_what_it_is(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "missing is not there; give the model folder of a run" in refused(tmp_path / "missing")
    assert "file is no folder" in refused(tmp_path / "file")
    assert "pipe is no folder" in refused(tmp_path / "pipe")
    assert "empty holds no config.json; give the model folder of a run, such as OUTPUT_DIR" in refused(
        tmp_path / "empty"
    )
    assert "File name too long" in refused(tmp_path / ("x" * 300))


def test_a_folder_of_runs_names_the_model_of_one(tmp_path, saved_model):
    for seed in (2, 1):
        (tmp_path / "digits" / "method" / "mini_16shots" / f"seed{seed}").mkdir(parents=True)
        save_model(saved_model(), tmp_path / "digits" / "method" / "mini_16shots" / f"seed{seed}" / "model")
    for given in (tmp_path, tmp_path / "digits"):
        assert "such as {}".format(tmp_path / "digits/method/mini_16shots/seed1/model") in refused(given)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: it is no regular file" in refused(folder) or f"holds no {name}" in refused(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_half_written_file_is_refused(folder, name, share):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    assert f"cannot read {'the model ' if name == TENSORS else ''}{folder / name}" in refused(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


# config.json


def sample_config() -> dict:
    """The entries that every config.json has; the values do not matter."""
    return {
        "format": "", "version": 1, "method": "", "variant": "", "classnames": [], "class_ids": [], "width": 1,
        "logit_scale": 1.0, "temperature": 1.0,
        "fusion": {"alpha": 0.0, "beta": 1.0},
        "backbone": {"title": "", "model": "", "pretrained": "", "precision": "", "fingerprint": {}},
        "preprocessing": {"size": [], "mean": [], "std": [], "transform": ""},
        "prompts": {"positive": [], "negative": []},
        "transfer": {
            "rule": "",
            "options": dict.fromkeys(AdapterOptions.model_fields, 0)
            | {"closed_form": dict.fromkeys(ClosedForm.model_fields, 0)},
        },
        "trained_on": {
            "dataset": "", "shots": 1, "seed": 1, "num_train": 1, "split_hash": "", "selected_on": "", "selected": {},
            "config": {}, "host": "", "git_commit": None, "versions": {},
        },
        "scores": {"accuracy": 1.0, "accuracy_text": 1.0, "accuracy_zero_shot": 1.0, "macro_f1": 1.0, "num_test": 1},
        "labels": None,
    }  # fmt: skip


def entries(part: dict, above: tuple = ()) -> list[tuple]:
    """The keys that lead to every entry, of parts and of values."""
    found = []
    for key, value in part.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += entries(value, (*above, key))
    return found


ENTRIES = entries(sample_config())


def test_the_entries_that_are_damaged_here_are_all_that_there_are(folder):
    config = read_json(folder / CONFIG)
    for keys in (*ANY, ("transfer", "options", "metapath")):
        part = config
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = {} if keys[-1] != "metapath" else 0
    assert entries(config) == ENTRIES
    assert list(AdapterOptions.model_fields) == [field.name for field in fields(ModelOptions)]


@pytest.mark.parametrize("keys", ENTRIES, ids=".".join)
def test_no_entry_may_be_missing(folder, keys):
    change_config(folder, keys, ...)
    assert f"{CONFIG} is damaged: {'.'.join(keys)}: Field required" in refused(folder)


@pytest.mark.parametrize("keys", ENTRIES, ids=".".join)
def test_no_entry_may_be_of_another_type(folder, keys):
    change_config(folder, keys, [[{"deep": 1}]])
    message = refused(folder)
    assert f"{CONFIG} is damaged: {'.'.join(keys)}" in message
    assert "deep" in message  # what came


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (("format",), "zip", "format: Input should be 'hegraph-model', got 'zip'"),
        (("version",), 2, "version: Input should be 1, got 2"),
        (("extra",), 1, "extra: Extra inputs are not permitted"),
        (("line\nbreak",), 1, r"line\nbreak: Extra inputs are not permitted"),
        (("classnames",), [], "classnames: List should have at least 1 item"),
        (("classnames",), ["ant", "", "crane"], "classnames.1: String should have at least 1 character"),
        (("classnames",), ["ant", "bee"], "3 class_ids for 2 classnames"),
        (("class_ids",), ["n1", "n2", "n1"], "class_ids repeat: n1"),
        (("width",), 0, "width: Input should be greater than or equal to 1, got 0"),
        (("width",), 10**400, "width: Input should be less than 2147483648"),
        (("logit_scale",), -1.0, "logit_scale: Input should be greater than 0"),
        (("logit_scale",), 10**400, "logit_scale: Input should be a valid number"),
        (("temperature",), 0, "temperature: Input should be greater than 0"),
        (("temperature",), float("nan"), "temperature: Input should be "),
        (("fusion", "alpha"), float("inf"), "fusion.alpha: Input should be a finite number, got inf"),
        (("preprocessing", "size"), [32, 0], "preprocessing.size.1"),
        (("preprocessing", "std"), [1.0, 0.0, 1.0], "preprocessing.std.1"),
        (("prompts", "negative"), [["no ant"]], r"prompts for \[1, 3\] classes, but there are 3"),
        (("backbone", "fingerprint"), {"model": 1}, "backbone.fingerprint.model: Input should be a valid string"),
        (("transfer", "rule"), "magic", "transfer.rule: Input should be 'adapter', 'zero-shot' or 'none'"),
        (("transfer", "options", "variant"), "X", "transfer.options.variant: Input should be 'base'"),
        (("transfer", "options", "extra"), 1, "transfer.options.extra: Extra inputs"),
        (("transfer", "options", "metapath"), {"ALPHA_PP": 1.0}, "transfer.options.metapath must have the keys"),
        (("trained_on", "seed"), -1, "trained_on.seed: Input should be greater than or equal to 0, got -1"),
        (("scores", "accuracy"), 100.5, "scores.accuracy: Input should be less than or equal to 100, got 100.5"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(folder, keys, value, expected):
    change_config(folder, keys, value)
    assert expected.replace("\\[", "[").replace("\\]", "]") in refused(folder)


def test_a_model_is_read_that_has_options_of_an_earlier_version(folder):
    before = load_model(folder)
    for name, value in (("activation", "tanh"), ("weight_per", "target"), ("gamma", 1.0)):
        change_config(folder, ("transfer", "options", name), value)
    change_config(folder, ("transfer", "options", "closed_form", "omega_new"), 0.05)
    assert load_model(folder).transfer.options == before.transfer.options
    change_config(folder, ("transfer", "options", "gamma"), 0.5)
    assert "was trained with gamma 0.5, and this version knows 1.0 alone" in refused(folder)


def test_a_model_is_read_that_is_older_than_a_relation_of_weight_0(folder, monkeypatch):
    younger = RelationType("negative", "negative", diagonal=0.0, step=1, weight_key="BETA_NN", weight=0.0)
    monkeypatch.setattr(relations, "RELATIONS", (*relations.RELATIONS, younger))
    assert load_model(folder).transfer.options.metapath["BETA_NN"] == 0.0
    monkeypatch.setattr(relations, "RELATIONS", (*relations.RELATIONS[:-1], replace(younger, weight=0.1)))
    assert "transfer.options.metapath must have the keys" in refused(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Expecting value"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ("[" * 900 + "]" * 900, "the file: Input should be a valid dictionary"),
        ("null", "the file: Input should be a valid dictionary"),
        ("1" * 5000, "as JSON: Exceeds the limit"),
        ('{"format": "\\ud800"}', r"as JSON: it holds half of a surrogate pair, '\ud800'"),
        ('{"\\udfff": 1}', r"as JSON: it holds half of a surrogate pair, '\udfff'"),
        ('{"format": "\\ud83d\\ude00"}', "format: Input should be 'hegraph-model', got '\U0001f600'"),
    ],
    ids=["empty", "deep", "deep list", "null", "huge number", "half a pair", "half a pair as key", "a whole pair"],
)
def test_hostile_json_is_one_line(folder, text, expected):
    (folder / CONFIG).write_text(text)
    assert expected in refused(folder)


def test_a_config_that_is_no_utf_8_is_one_line(folder):
    (folder / CONFIG).write_bytes(b'{"format": "\xff"}')
    assert "as JSON: 'utf-8' codec can't decode" in refused(folder)


def test_a_config_of_gigabytes_is_not_read(folder):
    os.truncate(folder / CONFIG, 2**31)  # a hole, which takes no space
    assert "is damaged: it has 2,147,483,648 bytes" in refused(folder)


@pytest.mark.parametrize("depth", [100, 900, 980])
def test_a_deep_value_in_a_free_entry_is_read_or_refused(folder, depth):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("0.001", "[" * depth + "]" * depth))
    try:
        load_model(folder)
    except UserError as error:
        assert "nested too deeply" in str(error)


# model.safetensors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": None}, "lacks weights"),
        ({"text_positive": None}, "lacks text_positive"),
        ({"keys": None}, "lacks keys"),
        ({"labels": None}, "lacks labels"),
        ({"keys": None, "labels": None}, "lacks keys, labels"),
        ({"transfer__weight.negative": None}, "lacks transfer.weight.negative"),
        ({"transfer__messages.matrix": None}, "lacks transfer.messages.matrix"),
        ({"transfer__messages.mean": torch.zeros(7)}, "transfer.messages.mean has shape [7], but config.json says [8]"),
        ({"transfer__messages.extra": torch.zeros(8, 8)}, "holds an unknown tensor 'transfer.messages.extra'"),
        ({"extra": torch.zeros(1)}, "holds an unknown tensor 'extra'"),
        ({"transfer__extra": torch.zeros(1)}, "holds an unknown tensor 'transfer.extra'"),
        ({"weights": torch.zeros(2, 8)}, "weights has shape [2, 8], but config.json says [3, 8]"),
        ({"weights": torch.tensor(1.0)}, "weights has shape [], but"),
        ({"bias": torch.zeros(2)}, "bias has shape [2], but config.json says [3]"),
        ({"keys": torch.zeros(6, 7)}, "keys has shape [6, 7], but config.json says [6, 8]"),
        ({"keys": torch.tensor(1.0), "key_weights": None}, "has shape [], but"),
        ({"labels": torch.zeros(5, dtype=torch.int32)}, "labels has shape [5], but config.json says [6]"),
        ({"key_weights": torch.zeros(5)}, "key_weights has shape [5]"),
        ({"transfer__weight.negative": torch.zeros(8, 7)}, "transfer.weight.negative has shape [8, 7], but"),
        ({"weights": torch.zeros(3, 8, dtype=torch.int64)}, "weights must be of type float16, bfloat16, float32"),
        pytest.param(
            {"weights": torch.zeros(3, 8, dtype=torch.complex64)},
            "got complex64",
            marks=pytest.mark.skipif(not READS_COMPLEX, reason="this safetensors has no complex numbers"),
        ),
        ({"weights": torch.zeros(3, 8, dtype=torch.float8_e5m2)}, "got float8_e5m2"),
        ({"labels": torch.zeros(6)}, "labels must be of type int32, int64; got float32"),
        ({"labels": torch.zeros(6, dtype=torch.bool)}, "got bool"),
        ({"labels": torch.full((6,), 3, dtype=torch.int32)}, "labels must lie in 0 ... 2"),
        ({"labels": torch.full((6,), -1, dtype=torch.int32)}, "labels must lie in 0 ... 2"),
        ({"weights": torch.full((3, 8), float("nan"))}, "weights holds NaN or infinite values"),
        ({"keys": torch.full((6, 8), float("inf"))}, "keys holds NaN or infinite values"),
        ({"bias": torch.full((3,), 1e300, dtype=torch.float64)}, "bias holds NaN or infinite values"),
        ({"transfer__weight.positive": torch.full((8, 8), float("nan"))}, "transfer.weight.positive holds NaN"),
        (
            {"keys": torch.zeros(0, 8), "labels": torch.zeros(0, dtype=torch.int32), "key_weights": None},
            "keys and labels are empty",
        ),
    ],
)
def test_a_damaged_tensor_is_named(folder, changes, expected):
    change_tensors(folder, **changes)
    message = refused(folder)
    assert message.startswith(str(folder / TENSORS)) and expected in message


def test_tensors_of_a_transfer_without_its_rule_are_unknown(folder):
    change_config(folder, ("transfer", "rule"), "none")
    assert "holds an unknown tensor 'transfer." in refused(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        b'\x45\0\0\0\0\0\0\0{"weights":{"dtype":"F99","shape":[3,8],"data_offsets":[0,96]}}     ' + bytes(96),
        b"<html>404</html>",
    ],
    ids=["huge header", "header beyond the end", "no tensor", "unknown type", "web page"],
)
def test_a_file_that_is_no_safetensors_file_is_refused(folder, header):
    (folder / TENSORS).write_bytes(header)
    assert str(folder / TENSORS) in refused(folder)


def test_a_class_name_of_any_script_is_kept(tmp_path, saved_model):
    names = ("größer/kleiner", "ライオン \U0001f981", "a\nb")
    save_model(saved_model(classnames=names), tmp_path / "model")
    assert load_model(tmp_path / "model").classnames == names
    write_json(tmp_path / "escaped.json", read_json(tmp_path / "model" / CONFIG))
    assert read_json(tmp_path / "escaped.json")["classnames"] == list(names)
