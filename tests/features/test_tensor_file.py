"""`.safetensors` files that are read by rows and written by blocks: they are those of the safetensors package."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.hegraph.features.tensor_file import DTYPES, Streamed, TensorFile, raw_bytes, write_streamed
from trainers.hegraph.utils.errors import UserError

TENSORS = {
    "b": torch.arange(6),
    "a": torch.arange(24.0).view(2, 3, 4),
    "half": torch.arange(8.0).view(2, 4).half(),
    "none": torch.empty(0, 4),
    "one": torch.tensor(3),
}


def in_blocks(tensor: torch.Tensor) -> Streamed:
    whole = Streamed.of(tensor)
    content = bytes(raw_bytes(tensor))
    return whole._replace(blocks=[content[i : i + 7] for i in range(0, len(content), 7)])


def test_a_streamed_file_has_the_bytes_of_one_that_was_written_at_once(tmp_path):
    metadata = {"fingerprint": 'é"\n\\/'}
    save_file(TENSORS, tmp_path / "at_once", metadata)
    write_streamed(tmp_path / "streamed", {name: in_blocks(tensor) for name, tensor in TENSORS.items()}, metadata)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "at_once").read_bytes()
    write_streamed(tmp_path / "bare", {"a": Streamed.of(TENSORS["a"].transpose(0, 2))}, {})
    assert TensorFile(tmp_path / "bare", "a file").metadata == {}
    assert torch.equal(load_file(tmp_path / "bare")["a"], TENSORS["a"].transpose(0, 2))


def test_tensors_are_read_whole_by_rows_in_any_order_and_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.features.tensor_file.BLOCK", 10)
    save_file(TENSORS, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "a file")
    assert file.num_bytes == (tmp_path / "file").stat().st_size
    for name, tensor in TENSORS.items():
        assert torch.equal(file.read(name), tensor)
        blocks = list(file.blocks(name))
        assert b"".join(blocks) == tensor.numpy().tobytes()
        assert all(len(block) == 10 for block in blocks[:-1])
    for rows in ([], [2], [2, 0], [1, 1, 0], [0, 1, 2]):
        assert torch.equal(file.read("a", rows), TENSORS["a"][:, rows])
    assert torch.equal(file.read("half", [1]), TENSORS["half"][[1]])


def test_every_type_that_a_bank_may_hold_can_be_read(tmp_path):
    tensors = {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "a file")
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
        assert torch.equal(file.read(name, [1]), tensor[[1]])


def test_only_the_rows_that_are_asked_for_are_read(tmp_path):
    """Of a sparse file, which promises more than any memory holds."""
    header = b'{"a":{"dtype":"F32","shape":[2500000000000,1],"data_offsets":[0,10000000000000]}}'
    with (tmp_path / "file").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 10**13)
        file.seek(8 + len(header) + 4 * 2 * 10**12)
        file.write(torch.tensor(7.0).numpy().tobytes())
    assert TensorFile(tmp_path / "file", "a file").read("a", [2 * 10**12, 5]).flatten().tolist() == [7, 0]


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, disk_full_after):
    with pytest.raises(ValueError, match="24 bytes"):
        write_streamed(tmp_path / "file", {"a": Streamed("F32", (2, 3), [bytes(20)])}, {})
    with disk_full_after(500), pytest.raises(UserError, match="cannot write"):
        write_streamed(tmp_path / "file", {"a": Streamed.of(torch.zeros(1000))}, {})
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_of_a_file_is_that_of_its_names_types_shapes_and_values(tmp_path):
    write_streamed(tmp_path / "file", {"a": Streamed.of(TENSORS["a"])}, {}, checked=True)
    kept = TensorFile(tmp_path / "file", "a file")
    summed = hashlib.sha256(b"'a':torch.float32[2, 3, 4]" + TENSORS["a"].numpy().tobytes()).hexdigest()
    assert kept.metadata["checksum"] == kept.checksum() == summed
    for name, tensor in (("b", TENSORS["a"]), ("a", TENSORS["a"].view(3, 2, 4)), ("a", TENSORS["a"] + 1)):
        save_file({name: tensor}, tmp_path / "other")
        assert TensorFile(tmp_path / "other", "a file").checksum() != kept.checksum()


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo, os.mkdir], ids=["missing", "pipe", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "bank")
    with pytest.raises(UserError, match=r"cannot read .*bank: "):
        TensorFile(tmp_path / "bank", "a file")
