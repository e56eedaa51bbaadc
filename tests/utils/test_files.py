"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import math
import os
import stat

import pytest
import torch

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import (
    absolute,
    atomic_path,
    check_output,
    file_version,
    hash_content,
    hash_file,
    hash_json,
    hash_rows,
    write_json,
    write_tensors,
    writing_folder,
)
from trainers.hegraph.utils.reading import read_json


def test_what_is_written_appears_as_a_whole_and_folders_are_made(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_text() == "whole" and os.listdir(target.parent) == ["file.txt"]
    for name in ("old", "new"):
        with writing_folder(tmp_path / "model") as temporary:
            (temporary / name).touch()
            assert not (tmp_path / "model" / name).exists()
    assert os.listdir(tmp_path / "model") == ["new"] and sorted(os.listdir(tmp_path)) == ["model", "new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_when_the_block_raises_what_was_there_stays_and_nothing_else_is_left(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    for write in (atomic_path(tmp_path / "file"), writing_folder(tmp_path / "folder")):
        with pytest.raises(UserError if error is OSError else error), write as temporary:
            (temporary / "new" if temporary.is_dir() else temporary).write_text("half of the n")
            raise error
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == ["old"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_older_one(tmp_path, monkeypatch):
    replace = os.replace
    (tmp_path / "model" / "old").mkdir(parents=True)

    def fail_at_last(source, target):
        if source.name == "new":
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_last)
    with pytest.raises(UserError, match="cannot write .*model: the disk"), writing_folder(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["old"]


def test_files_are_as_readable_as_the_umask_allows(tmp_path):
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "json", 1)
        write_tensors(tmp_path / "tensors", {"a": torch.ones(1)}, {})
    finally:
        os.umask(mask)
    for name in ("json", "tensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640  # 0o666 without the mask's bits


def test_a_full_disk_is_a_users_mistake_that_names_the_target_and_leaves_nothing(tmp_path, disk_full_after):
    with disk_full_after(100), pytest.raises(UserError, match=r"cannot write .*/target\.bin: "):
        write_tensors(tmp_path / "target.bin", {"a": torch.zeros(1000)}, {})
    with disk_full_after(100), pytest.raises(UserError, match=r"cannot write .*/target\.json: "):
        write_json(tmp_path / "target.json", "x" * 1000)
    with pytest.raises(UserError, match=f"^{tmp_path / 'f'} is odd$"), atomic_path(tmp_path / "f") as temporary:
        raise UserError(f"{temporary} is odd")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/below: "):
        write_json(tmp_path / "file" / "below", 1)


@pytest.mark.parametrize(("value", "error"), [(object(), TypeError), ([math.nan], ValueError), ("\udcff", UserError)])
def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path, value, error):
    write_json(tmp_path / "file.json", "old")
    with pytest.raises(error, match="JSON|surrogates"):
        write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == "old" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_hash_of_a_value_is_that_of_its_canonical_text_also_of_a_long_list(count):
    assert hash_json({"b": "é", "a": [1, 2]}) == hashlib.sha256('{"a":[1,2],"b":"é"}'.encode()).hexdigest()
    rows = [[f"é/{number}", number, "a,b]["] for number in range(count)]
    assert hash_rows(iter(rows)) == hash_json(rows)
    for beside in ({}, {"a": "ü", "z": [2]}):
        assert hash_rows(iter(rows), beside, "images") == hash_json(beside | {"images": rows})


def test_the_hash_of_a_file_is_that_of_its_bytes_and_its_version_changes_with_it(tmp_path):
    content = bytes(i % 251 for i in range((1 << 20) + 3))  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    os.utime(tmp_path / "file", ns=(1, 1))
    assert file_version(tmp_path / "file") == (tmp_path / "file", len(content), 1)


def test_the_hash_of_content_tells_types_shapes_keys_and_values_apart():
    ones = torch.ones(2, 3)
    contents = [{"a": ones}, {"b": ones}, {"a": ones.view(3, 2)}, {"a": ones.double()}, {"a": 2 * ones}, {"a": [1]}]
    contents += [{"a": "1"}, {"a": {"b": ones}}]
    assert len({hash_content(content) for content in contents}) == len(contents)
    assert hash_content({"a": ones.t()}) == hash_content({"a": torch.ones(3, 2)})


def test_an_output_that_the_command_reads_or_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "read.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("read.json")
    (tmp_path / "older.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    reads = [None, "\0", tmp_path / "not there", tmp_path / "read.json"]
    for name in ("older.json", "new.json", "no folder yet/new.json"):
        check_output(tmp_path / name, reads)
    for name in ("read.json", "link.json", ".", "pipe"):
        with pytest.raises(UserError, match="is read by|no file"):
            check_output(tmp_path / name, reads)


def test_the_home_folder_of_nobody_is_a_users_mistake():
    with pytest.raises(UserError, match="~nosuchuser/data begins with the home folder"):
        absolute("~nosuchuser/data")
    assert absolute("~").is_absolute() and "~" not in str(absolute("~"))
