"""Atomic files and folders, hashes, protected inputs, and readers of untrusted files."""

import errno
import hashlib
import math
import os
import stat
import subprocess
import sys

import pytest
import torch
import yaml
from pydantic import BaseModel

from trainers.hegraph.utils import file_lock, files
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.reading import (
    StrictModel,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    read_torch,
    read_yaml,
    reading,
    validate,
)


def test_writing_is_atomic_and_creates_folders(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_text() == "whole" and os.listdir(target.parent) == ["file.txt"]
    for name in ("old", "new"):
        with files.writing_folder(tmp_path / "model") as temporary:
            (temporary / name).touch()
            assert not (tmp_path / "model" / name).exists()
    assert os.listdir(tmp_path / "model") == ["new"] and sorted(os.listdir(tmp_path)) == ["model", "new"]


def test_links_to_folders_stay(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(tmp_path / "model")
    with files.writing_folder(link) as temporary:
        (temporary / "new").touch()
    assert link.is_symlink() and os.listdir(tmp_path / "model") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model"] and os.listdir(tmp_path / "elsewhere") == ["link"]


def test_nested_writers_of_a_folder_keep_their_files(tmp_path):
    with files.writing_folder(tmp_path / "model") as outer:
        (outer / "outer").touch()
        with files.writing_folder(tmp_path / "model") as inner:
            (inner / "inner").touch()
        assert os.listdir(tmp_path / "model") == ["inner"]
    assert os.listdir(tmp_path / "model") == ["outer"]
    assert os.listdir(tmp_path) == ["model"]


def test_temporaries_of_killed_processes_are_removed(tmp_path):
    for killed_early in (True, False):
        left = files._temporary_path(tmp_path / "model")
        left.with_name(f"{left.name}.owner").touch()  # not locked
        if not killed_early:
            (left / "new").mkdir(parents=True)
    with files.writing_folder(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path) == ["model"]


KILLED = """
import os, sys
from pathlib import Path
from trainers.hegraph.utils.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_temporary_file_of_a_killed_process_is_removed(tmp_path):
    for name in ("first", "second"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert [name.endswith(".tmp") for name in os.listdir(tmp_path)].count(True) == 1  # the second removes the first
    with files.atomic_path(tmp_path / "own") as outer:
        files._searched.clear()  # as another process
        with files.atomic_path(tmp_path / "other") as inner:
            assert outer.exists() and inner.exists()
    assert sorted(os.listdir(tmp_path)) == ["other", "own"]


def test_no_file_stays_where_files_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(file_lock, "_lock", refuse)
    with files.atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == ["file"]


def test_missing_root_is_not_created(tmp_path):
    root = tmp_path / "project"
    path = root / "state" / "features.json"
    with pytest.raises(UserError, match=r"cannot write .*features.json: No such file or directory"):
        files.write_json(path, 1, root)
    assert not root.exists()
    root.mkdir()
    files.write_json(path, 1, root)
    assert read_json(path) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_exception_keeps_the_old_content(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    for write in (files.atomic_path(tmp_path / "file"), files.writing_folder(tmp_path / "folder")):
        with pytest.raises(UserError if error is OSError else error), write as temporary:
            (temporary / "new" if temporary.is_dir() else temporary).write_text("half of the n")
            raise error
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == ["old"]


def test_failed_replacement_keeps_the_old_folder(tmp_path, monkeypatch):
    replace = os.replace
    (tmp_path / "model" / "old").mkdir(parents=True)

    def fail_at_last(source, target):
        if source.name == "new":
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", fail_at_last)
    with pytest.raises(UserError, match="cannot write .*model: the disk"), files.writing_folder(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["old"]


def test_unwritable_outputs_are_refused_early(tmp_path):
    files.check_writable(tmp_path / "new" / "folder" / "file")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    for output in (files.OutputFile(), files.OutputFolder()):
        with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/x: Not a directory$"):
            output.check(tmp_path / "file" / "x", {})


def test_files_have_the_mode_of_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        files.write_json(tmp_path / "json", 1)
        files.write_tensors(tmp_path / "tensors", {"a": torch.ones(1)}, {})
    finally:
        os.umask(mask)
    for name in ("json", "tensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640  # 0o666 without the mask's bits


def test_full_disk_is_refused_and_leaves_nothing(tmp_path, disk_full_after):
    with disk_full_after(100), pytest.raises(UserError, match=r"cannot write .*/target\.bin: "):
        files.write_tensors(tmp_path / "target.bin", {"a": torch.zeros(1000)}, {})
    with disk_full_after(100), pytest.raises(UserError, match=r"cannot write .*/target\.json: "):
        files.write_json(tmp_path / "target.json", "x" * 1000)
    with pytest.raises(UserError, match=f"^{tmp_path / 'f'} is odd$"), files.atomic_path(tmp_path / "f") as temporary:
        raise UserError(f"{temporary} is odd")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/below: "):
        files.write_json(tmp_path / "file" / "below", 1)


@pytest.mark.parametrize(("value", "error"), [(object(), TypeError), ([math.nan], ValueError), ("\udcff", UserError)])
def test_invalid_json_value_keeps_the_old_file(tmp_path, value, error):
    files.write_json(tmp_path / "file.json", "old")
    with pytest.raises(error, match="JSON|surrogates"):
        files.write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == "old" and os.listdir(tmp_path) == ["file.json"]


def test_hash_of_canonical_json():
    assert files.hash_json({"b": "é", "a": [1, 2]}) == hashlib.sha256('{"a":[1,2],"b":"é"}'.encode()).hexdigest()


def test_hash_and_version_of_a_file(tmp_path):
    content = bytes(i % 251 for i in range((1 << 20) + 3))  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert files.hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    os.utime(tmp_path / "file", ns=(1, 1))
    assert files.file_version(tmp_path / "file") == (tmp_path / "file", len(content), 1)


def test_hash_content_distinguishes_types_shapes_and_values():
    ones = torch.ones(2, 3)
    contents = [{"a": ones}, {"b": ones}, {"a": ones.view(3, 2)}, {"a": ones.double()}, {"a": 2 * ones}, {"a": [1]}]
    contents += [{"a": "1"}, {"a": {"b": ones}}]
    assert len({files.hash_content(content) for content in contents}) == len(contents)
    assert files.hash_content({"a": ones.t()}) == files.hash_content({"a": torch.ones(3, 2)})


@pytest.mark.parametrize("contents", [
    ([1, [2]], [1, 2], [[1], 2], [[1, 2]], [[1], [2]], [[[1]], 2]),
    ([], [[]], [{}], [[], []], [[[]]]),
    ({"a": {"b": 1}}, {"a": {}, "b": 1}, {"a": 1, "b": 1}, {"a": [{"b": 1}]}),
])  # fmt: skip
def test_hash_content_distinguishes_nesting(contents):
    assert len({files.hash_content(content) for content in contents}) == len(contents)
    assert files.hash_content([1, (2, "a")]) == files.hash_content((1, [2, "a"]))


def test_hash_content_of_flat_values_is_stable():
    # the bytes of key, type, shape and values, as model folders and banks of earlier versions have them
    content = b"'a':torch.int64[2]" + (3).to_bytes(8, "little") + (5).to_bytes(8, "little") + b"'b':'x';"
    assert files.hash_content({"a": torch.tensor([3, 5]), "b": "x"}) == hashlib.sha256(content).hexdigest()
    assert files.hash_content([1, "x", None]) == hashlib.sha256(b"1;'x';None;").hexdigest()


@pytest.mark.parametrize("name", ["older.json", "new.json", "no folder yet/new.json", "circle/new.json"])
def test_new_and_older_outputs_are_allowed(tmp_path, name):
    (tmp_path / "older.json").write_text("{}")
    (tmp_path / "circle").symlink_to("circle")  # an error of the system when it is written
    files.check_output(tmp_path / name, [None, "\0", tmp_path / "not there", tmp_path / "read.json"])


@pytest.mark.parametrize("name", ["read.json", "link.json", ".", "pipe"])
def test_inputs_and_special_files_are_not_replaced(tmp_path, name):
    (tmp_path / "read.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("read.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is read by|no file"):
        files.check_output(tmp_path / name, [tmp_path / "read.json"])


def test_home_folder_of_an_unknown_user_is_refused():
    with pytest.raises(UserError, match="~nosuchuser/data begins with the home folder"):
        files.absolute("~nosuchuser/data")
    assert files.absolute("~").is_absolute() and "~" not in str(files.absolute("~"))


# Reading


READERS = {
    "json": read_json, "text": read_text, "yaml": lambda path: read_yaml(path, "a grid"),
    "tensors": lambda path: read_tensors(path, "a model"), "torch": lambda path: read_torch(path, "a checkpoint"),
}  # fmt: skip


class Words(BaseModel):
    words: list[str]


@pytest.mark.parametrize(("read", "message"), [
    (lambda path: path.read_text("utf-8"), "'utf-8' codec can't decode byte 0x80 in position 0"),
    (lambda path: {}["classnames"], "it lacks 'classnames'"),
    (lambda path: Words.model_validate({"words": [1, 2]}), "words.0: Input should be a valid string, got 1 (and 1"),
    (lambda path: Words.model_validate({}), "words: Field required"),
    (lambda path: yaml.safe_load("a: 1\nb: ["), "line 2: expected the node content"),
    (lambda path: int("x\ny"), "invalid literal for int()"),
])  # fmt: skip
def test_exceptions_of_libraries_name_the_file(tmp_path, read, message):
    file = tmp_path / "f"
    file.write_bytes(b"\x80 no such thing")
    with pytest.raises(UserError) as caught, reading(file, "a feature bank"):
        read(file)
    assert str(caught.value).startswith(f"{file} is damaged or not a feature bank: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_huge_json_is_not_read(tmp_path):
    with (tmp_path / "f.json").open("wb") as file:
        file.truncate(2**28 + 1)  # sparse
    with pytest.raises(UserError, match="bytes, got 268,435,457"):
        read_json(tmp_path / "f.json")


def test_reading_keeps_user_and_system_errors(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match="^of its own$"), reading(tmp_path / "f", "a bank"):
        raise UserError("of its own")
    with pytest.raises(UserError, match="cannot read .*f: Input/output error"), reading(tmp_path / "f", "a bank"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(("name", "make", "reason"), [
    ("f", os.mkfifo, "it is no regular file"), ("f", os.mkdir, "Is a directory"),
    ("f", lambda path: None, "No such file"), ("f\0", lambda path: None, "its name contains a NUL character"),
], ids=["pipe", "folder", "nothing", "NUL"])  # fmt: skip
def test_special_files_are_never_opened(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"cannot read .*{reason}"), reading(tmp_path / name, "a bank"):
        pytest.fail("it would be opened")


@pytest.mark.parametrize("kind", READERS)
def test_readers_refuse_other_kinds_of_files(tmp_path, monkeypatch, kind):
    (tmp_path / "f").write_bytes(b"{\xff")
    with pytest.raises(UserError, match="f is damaged or not "):
        READERS[kind](tmp_path / "f")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # these tests may be run by root
    with pytest.raises(UserError, match="cannot read .*f: Permission denied"):
        READERS[kind](tmp_path / "f")


@pytest.mark.parametrize(("text", "reason"), [
    ('{"a": NaN}', "NaN"), ("[1e999]", "1e999"),
    (f"[1{'0' * 40}]", "it has 10000000000000000000..., which is out of range"),
    (f"[{-(2**63) - 1}]", "out of range"), (f"[{2**64}]", "out of range"),
    ('{"a": 1, "a": 2}', "it has the key 'a' twice"), ("[" * 100_000, "recursion"),
    ('["\\udc80"]', "surrogates not allowed"),
])  # fmt: skip
def test_invalid_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    assert parse_json(f"[{-(2**63)}, {2**64 - 1}, 1.5]") == [-(2**63), 2**64 - 1, 1.5]


@pytest.mark.parametrize(("text", "reason"), [
    ("a: 1\na: 2\n", "it has the key 'a' twice"), ("{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
    ("a: &x\n  b: *x\n", "recursive"),
    ("".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 1}]\n" for n in range(9)), "recursive"),
    ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    (f"[{'1,' * 200_000}]", "characters, got 400002"),
])  # fmt: skip
def test_invalid_yaml_is_refused(tmp_path, text, reason):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=r"f\.yaml is damaged or not a grid") as caught:
        read_yaml(tmp_path / "f.yaml", "a grid")
    assert reason in str(caught.value)


def test_allowed_features_of_yaml(tmp_path):
    (tmp_path / "f.yaml").write_text("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3\ne: *x\n")
    assert read_yaml(tmp_path / "f.yaml", "a grid")["d"] == {"b": 3, "c": 2}
    (tmp_path / "f.yaml").write_text("[" * 50 + "1" + "]" * 50)
    read_yaml(tmp_path / "f.yaml", "a grid")
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert read_text(tmp_path / "f") == "é"


@pytest.mark.parametrize(("tensor", "reason"), [
    (torch.eye(2).to_sparse(), "sparse_coo"), (torch.empty(2, device="meta"), "meta"),
    (torch.zeros(2, dtype=torch.complex128), "complex128"), (torch.zeros(2).to(torch.float8_e4m3fn), "float8"),
])  # fmt: skip
def test_unusable_tensors_are_refused(tmp_path, tensor, reason):
    torch.save({"state": [{"deep": (tensor,)}]}, tmp_path / "f.pt")
    with pytest.raises(UserError, match=f"f.pt is damaged or not a checkpoint: deep .*{reason}"):
        read_torch(tmp_path / "f.pt", "a checkpoint")


class Point(StrictModel):
    x: float
    y: int


@pytest.mark.parametrize(("shape", "value"), [
    (Point, {"x": "1", "y": 2}), (Point, {"x": 1, "y": 2, "z": 3}), (list[int], ["1"]),
])  # fmt: skip
def test_schemas_are_strict(shape, value):
    assert validate(Point, {"x": 1, "y": 2}, "f") == Point(x=1.0, y=2) and validate(list[int], [1], "f") == [1]
    with pytest.raises(UserError, match="^f: (x|z|0): "):
        validate(shape, value, "f")
