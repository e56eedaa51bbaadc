"""The readers take any file, and say in one line what is wrong with it."""

from __future__ import annotations

import errno
import os

import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file
from tensor_files import READS_COMPLEX, save_tensors

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.reading import read_json, read_tensors, read_text, read_torch, read_yaml, reading


@pytest.mark.parametrize(
    "read", [read_json, read_yaml, read_text, lambda p: read_tensors(p, "x"), lambda p: read_torch(p, "x")]
)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is no regular file"),
        (os.mkdir, "Is a directory"),
        (lambda path: None, "No such file"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
    ],
    ids=["pipe", "folder", "nothing", "link to itself"],
)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, read, make, reason):
    make(tmp_path / "f")
    with pytest.raises(UserError, match=f"cannot read .*f.*: {reason}"):
        read(tmp_path / "f")


@pytest.mark.parametrize("read", [read_json, read_yaml, read_text])
def test_a_name_that_is_too_long_is_said(tmp_path, read):
    with pytest.raises(UserError, match="File name too long"):
        read(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "it holds NaN, which is no number"),
        ("[-Infinity]", "it holds -Infinity, which is no number"),
        ("[1e999]", "it holds 1e999, which is out of range"),
        (f"[1{'0' * 40}]", "it holds 10000000000000000000..., which is out of range"),
        ('{"a": 1, "a": 2}', "it holds the key 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('["\\udc80"]', "half of a surrogate pair"),
    ],
)
def test_json_that_no_computation_can_use_is_refused(tmp_path, text, reason):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match="cannot read .*f.json as JSON") as caught:
        read_json(tmp_path / "f.json")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2\n", "it holds the key 'a' twice"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("a: &x\n  b: *x\n", "without end"),
        ("".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 1}]\n" for n in range(9)), "without end"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: 2020-13-45\n", "month must be in"),
        ("? [1, 2]\n: 3\n", "unhashable"),
        ("a: !!bool x\n", "not of the type that its tag says"),
        ("a: !!timestamp x\n", "not of the type that its tag says"),
        ("a: !!int ''\n", "not of the type that its tag says"),
        ("a: !!float x\n", "could not convert string to float"),
        (f"a: {'9' * 6000}\n", "integer string conversion"),
        ("a: 1\nb: [\n", "line 3: expected the node content, but found '<stream end>'"),
    ],
)
def test_yaml_that_is_no_configuration_is_refused(tmp_path, text, reason):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=r"f\.yaml is not YAML") as caught:
        read_yaml(tmp_path / "f.yaml")
    assert reason in str(caught.value)


def test_yaml_that_would_take_minutes_to_read_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml, "load", lambda *_: pytest.fail("it is read"))
    (tmp_path / "f.yaml").write_text(f"[{'1,' * 200_000}]")
    with pytest.raises(UserError, match=r"f\.yaml: it has 400002 characters; a configuration has at most 200000"):
        read_yaml(tmp_path / "f.yaml")


@pytest.mark.parametrize(
    "read", [read_json, read_yaml, read_text, lambda p: read_tensors(p, "x"), lambda p: read_torch(p, "x")]
)
def test_a_file_that_is_closed_to_the_user_is_not_said_to_be_missing(tmp_path, monkeypatch, read):
    (tmp_path / "f").write_text("1")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # these tests may be run by root
    with pytest.raises(UserError, match="cannot read .*f( as JSON)?: Permission denied"):
        read(tmp_path / "f")


def test_yaml_with_aliases_and_merges_is_read(tmp_path):
    (tmp_path / "f.yaml").write_text("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3\ne: *x\n")
    assert read_yaml(tmp_path / "f.yaml")["d"] == {"b": 3, "c": 2}


def test_complex_tensors_are_refused_by_name(tmp_path):
    save_tensors({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "f.safetensors")
    by_the_library = r"cannot read the bank .*f\.safetensors: Error while deserializing header"  # knows of none
    expected = "b must hold real numbers, got complex64" if READS_COMPLEX else by_the_library
    with pytest.raises(UserError, match=expected):
        read_tensors(tmp_path / "f.safetensors", "the bank")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.eye(2).to_sparse(), "layout sparse_coo"),
        (torch.eye(2).to_sparse_csr(), "layout sparse_csr"),
        (torch.empty(2, device="meta"), "device meta"),
        (torch.zeros(2, dtype=torch.complex128), "complex"),
    ],
)
def test_tensors_that_cannot_be_computed_with_are_refused_wherever_they_are(tmp_path, tensor, reason):
    torch.save({"state": [{"deep": (tensor,)}]}, tmp_path / "f.pt")
    with pytest.raises(UserError, match="the checkpoint .*f.pt is damaged") as caught:
        read_torch(tmp_path / "f.pt", "the checkpoint")
    assert reason in str(caught.value)
    assert "deep" in str(caught.value)


class Words(BaseModel):
    words: list[str]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: load_file(path), "deserializing header"),
        (lambda path: path.read_text("utf-8"), "'utf-8' codec can't decode byte 0x80 in position 0"),
        (lambda path: {}["classnames"], "it lacks 'classnames'"),
        (lambda path: Words.model_validate({"words": [1]}), "words.0: Input should be a valid string, got 1"),
        (lambda path: torch.load(path, weights_only=True), "not a"),
        (lambda path: torch.empty(10**15), "memory"),
        (lambda path: yaml.safe_load("a: 1\nb: ["), "line 2: expected the node content"),
        (lambda path: [].index(1), "1 is not in list"),
    ],
)
def test_whatever_a_library_raises_in_reading_is_one_line_with_the_file_and_its_words(tmp_path, read, said):
    file = tmp_path / "f"
    file.write_bytes(b"\x80 no such thing")
    with pytest.raises(UserError) as caught, reading(file, "a feature bank"):
        read(file)
    assert str(caught.value).startswith(f"{file} is damaged or not a feature bank: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_leaves_a_users_mistake_and_a_system_error_what_they_are(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match="^of its own$"), reading(tmp_path / "f", "a bank"):
        raise UserError("of its own")
    with pytest.raises(UserError, match="cannot read .*f: Input/output error"), reading(tmp_path / "f", "a bank"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_reading_never_enters_its_block_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot read .*pipe: it is no regular file"), reading(tmp_path / "pipe", "x"):
        pytest.fail("the pipe would be opened")
