"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import math
import os
import stat

import pytest
import torch

from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.graph import build_graph
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.training.adamw import AdamW
from trainers.hegraph.training.checkpoints import CHECKPOINT, Checkpoints, save_adapter
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import (
    atomic_path,
    check_output,
    hash_file,
    hash_json,
    hash_rows,
    read_json,
    write_json,
    writing_folder,
)


def test_the_temporary_file_becomes_the_target_and_folders_are_made(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


def test_the_temporary_file_lies_beside_the_target_so_that_renaming_is_atomic(tmp_path):
    with atomic_path(tmp_path / "file.txt") as temporary:
        assert temporary.parent == tmp_path


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_when_the_block_raises_the_old_file_stays_and_nothing_else_is_left(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_when_the_block_raises_no_new_file_appears(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file.txt"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_files_are_as_readable_as_the_umask_allows(tmp_path):
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", 1)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o640  # 0o666 without the mask's bits


def test_the_umask_is_left_as_it_was(tmp_path):
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", 1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)


def test_a_folder_below_a_regular_file_is_a_users_mistake_that_names_the_target(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "result.json"
    with pytest.raises(UserError, match=r"cannot write .*file/result.json: (Not a directory|File exists)"):
        write_json(target, 1)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_name_that_is_too_long_with_a_temporary_ending_asks_for_a_shorter_one(tmp_path):
    write = r"cannot write .*File name too long; choose a shorter name"
    with pytest.raises(UserError, match=write), atomic_path(tmp_path / ("x" * 250)):
        pass
    with pytest.raises(UserError, match=write), writing_folder(tmp_path / ("x" * 250)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_target_that_is_a_folder_is_a_users_mistake_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*result\.json: Is a directory"):
        write_json(tmp_path / "result.json", 1)
    assert os.listdir(tmp_path) == ["result.json"]


def write_text(path):
    with atomic_path(path) as temporary:
        temporary.write_text("x" * 1000)


def write_bank(path):
    train, positive, negative = torch.eye(8).unsqueeze(0), torch.eye(8), torch.eye(8)
    FeatureBank(train, torch.arange(8), positive, negative, [*"abcdefgh"], "Toy", "none", 100.0).save(path)


def write_adapter(path):
    save_adapter(path, tiny_model(), ["a", "b"])


def write_checkpoint(path):
    model = tiny_model()
    Checkpoints(path.parent, path.parent, "id").save(
        model, AdamW(model.parameter_groups(1e-3, 1.0, 1e-3), weight_decay=0.01), 1, 1.0
    )


def tiny_model() -> HeGraphModel:
    nodes = torch.eye(2, 8)
    return HeGraphModel(build_graph(nodes, nodes, nodes), nodes, torch.arange(2), 100.0, ModelOptions())


@pytest.mark.parametrize("write", [write_text, write_bank, write_adapter, write_checkpoint])
def test_a_full_disk_is_a_users_mistake_that_names_the_target(tmp_path, write, disk_full_after):
    name = CHECKPOINT if write is write_checkpoint else "target.bin"
    with disk_full_after(100), pytest.raises(UserError, match=rf"cannot write .*{name}: "):
        write(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_what_was_written_as_json_is_read_back(tmp_path):
    value = {"name": "Bülbül", "rows": [["a.jpg", 0, None], [1.5, True]]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert "Bülbül" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("value", "error"), [(object(), TypeError), ([math.nan], ValueError), (math.inf, ValueError)])
def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path, value, error):
    write_json(tmp_path / "file.json", "old")
    with pytest.raises(error, match="JSON"):
        write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_reading_a_missing_file_is_a_users_mistake_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent\.json as JSON: .*No such file"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [b"", b'{"half": [1, 2', b"\xff\xfe\x00"], ids=["empty", "cut off", "not text"])
def test_reading_what_is_not_json_is_a_users_mistake_that_names_the_file(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*file\.json as JSON"):
        read_json(tmp_path / "file.json")


def test_the_hash_of_a_value_does_not_depend_on_the_order_of_its_keys():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1, "b": [1, 2]}) != hash_json({"a": 1, "b": [2, 1]})
    # sha256 of the canonical text, so that a hash in a record can be checked with any tool
    assert hash_json({"b": "é", "a": 1}) == hashlib.sha256('{"a":1,"b":"é"}'.encode()).hexdigest()


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3], ids=["empty", "small", "more than one block"])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_the_hash_of_a_long_list_is_the_hash_of_its_json(count):
    rows = [[f"é/{number}", number, "a,b]["] for number in range(count)]
    assert hash_rows(iter(rows)) == hash_json(rows)
    for beside in ({}, {"a": 1, "z": [2]}, {"a": "ü"}, {"z": None}):
        assert hash_rows(iter(rows), beside, "images") == hash_json(beside | {"images": rows})


def test_an_output_that_the_command_reads_or_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "read.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("read.json")
    (tmp_path / "older.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    reads = [None, tmp_path / "not there", tmp_path / "read.json"]
    for name in ("older.json", "new.json", "no folder yet/new.json"):
        check_output(tmp_path / name, reads)
    for name in ("read.json", "link.json"):
        with pytest.raises(UserError, match=name):
            check_output(tmp_path / name, reads)
    for name in (".", "pipe"):
        with pytest.raises(UserError, match="no file"):
            check_output(tmp_path / name)
