"""`.safetensors` files that are read by rows and written by blocks: they are those of the safetensors package."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.hegraph.features.tensor_file import DTYPES, NAMES, Streamed, TensorFile, raw_bytes, write_streamed
from trainers.hegraph.utils.errors import UserError

TENSORS = {
    "b": torch.arange(6),
    "a": torch.arange(24.0).view(2, 3, 4),
    "half": torch.arange(8.0).view(2, 4).half(),
    "none": torch.empty(0, 4),
    "one": torch.tensor(3),
}


def streamed(tensor: torch.Tensor, block: int = 7) -> Streamed:
    return Streamed(NAMES[tensor.dtype], tuple(tensor.shape), tensor.flatten().view(torch.uint8).split(block))


def test_a_streamed_file_has_the_bytes_of_one_that_was_written_at_once(tmp_path):
    metadata = {"fingerprint": 'é"\n\\/'}
    save_file(TENSORS, tmp_path / "at_once", metadata)
    write_streamed(tmp_path / "streamed", {name: streamed(tensor) for name, tensor in TENSORS.items()}, metadata)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "at_once").read_bytes()
    write_streamed(tmp_path / "bare", {"a": Streamed.of(TENSORS["a"].transpose(0, 2))}, {})
    assert TensorFile(tmp_path / "bare", "the file").metadata == {}
    assert torch.equal(load_file(tmp_path / "bare")["a"], TENSORS["a"].transpose(0, 2))


def test_tensors_are_read_whole_and_by_rows_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.features.tensor_file.BLOCK", 10)
    save_file(TENSORS, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "the file")
    for name, tensor in TENSORS.items():
        assert torch.equal(file.read(name), tensor)
        assert b"".join(bytes(raw_bytes(block)) for block in file.blocks(name)) == tensor.numpy().tobytes()
    for rows in ([], [2], [2, 0], [1, 1, 0], [0, 1, 2]):
        assert torch.equal(file.rows("a", rows), TENSORS["a"][:, rows])
        assert file.rows("half", rows[-1:] if rows == [2, 0] else []).shape == (int(rows == [2, 0]), 4)


def test_every_type_of_numbers_can_be_read_and_no_other(tmp_path):
    tensors = {name: torch.zeros(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors | {"odd": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "the file")
    assert {name: file.read(name).dtype for name in tensors} == DTYPES
    with pytest.raises(UserError, match="odd has the type U16"):
        file.read("odd")


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, disk_full_after):
    with pytest.raises(ValueError, match="a has 20 bytes, but its shape"):
        write_streamed(tmp_path / "file", {"a": Streamed("F32", (2, 3), [torch.zeros(5)])}, {})
    with disk_full_after(500), pytest.raises(UserError, match="cannot write"):
        write_streamed(tmp_path / "file", {"a": Streamed.of(torch.zeros(1000))}, {})
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_of_a_file_is_that_of_its_names_types_shapes_and_values(tmp_path):
    write_streamed(tmp_path / "file", {"a": Streamed.of(TENSORS["a"])}, {}, checked=True)
    kept = TensorFile(tmp_path / "file", "the file")
    assert kept.metadata["checksum"] == kept.checksum()
    for name, tensor in (("b", TENSORS["a"]), ("a", TENSORS["a"].view(3, 2, 4)), ("a", TENSORS["a"] + 1)):
        save_file({name: tensor}, tmp_path / "other")
        assert TensorFile(tmp_path / "other", "the file").checksum() != kept.checksum()


def sparse(path, size: int) -> None:
    """A file whose header is in order, and that promises more than any memory holds."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_more_than_there_is_memory_for_is_one_line_that_names_the_file(tmp_path):
    sparse(tmp_path / "file", 10**13)
    with pytest.raises(UserError, match=r"file: there is no memory for 10000\.0 GB of it"):
        TensorFile(tmp_path / "file", "the file").read("a")
    content = (tmp_path / "file").open("rb").read(200)
    (tmp_path / "promise").write_bytes(content)  # the same header, without the data
    with pytest.raises(UserError, match=r"cannot read the file .*promise: "):
        TensorFile(tmp_path / "promise", "the file")


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo, os.mkdir], ids=["missing", "pipe", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "bank")
    with pytest.raises(UserError, match=r"cannot read .*bank: "):
        TensorFile(tmp_path / "bank", "the file")
