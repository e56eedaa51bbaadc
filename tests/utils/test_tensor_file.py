"""`.safetensors` files that are read by rows and written by blocks: they are those of the safetensors package."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.tensor_file import DTYPES, StreamedTensor, TensorFile, write_streamed

TENSORS = {
    "b": torch.arange(6),
    "a": torch.arange(24.0).view(2, 3, 4),
    "half": torch.arange(8.0).view(2, 4).half(),
    "none": torch.empty(0, 4),
    "one": torch.tensor(3),
}
TYPES = {dtype: name for name, dtype in DTYPES.items()}


def streamed(tensor: torch.Tensor, block: int = 7) -> StreamedTensor:
    content = tensor.numpy().tobytes()
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    return StreamedTensor(TYPES[tensor.dtype], tuple(tensor.shape), blocks)


def test_a_streamed_file_has_the_bytes_of_one_that_was_written_at_once(tmp_path):
    metadata = {"fingerprint": 'é"\n\\/'}
    save_file(TENSORS, tmp_path / "at_once", metadata)
    write_streamed(tmp_path / "streamed", {name: streamed(tensor) for name, tensor in TENSORS.items()}, metadata)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "at_once").read_bytes()


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_read_as_it_was_written(tmp_path, name):
    save_file(TENSORS, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "the file")
    assert torch.equal(file.read(name), TENSORS[name])
    assert b"".join(bytes(block) for block in file.blocks(name)) == TENSORS[name].numpy().tobytes()


@pytest.mark.parametrize("rows", [[], [2], [2, 0], [1, 1, 0], [0, 1, 2]])
def test_rows_are_read_in_any_order(tmp_path, rows):
    save_file(TENSORS, tmp_path / "file")
    assert torch.equal(TensorFile(tmp_path / "file", "the file").read_rows("a", rows), TENSORS["a"][:, rows])


def test_every_type_of_numbers_can_be_read(tmp_path):
    tensors = {name: torch.zeros(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "file")
    file = TensorFile(tmp_path / "file", "the file")
    assert {name: file.read(name).dtype for name in tensors} == DTYPES


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="a has 20 bytes, but its shape"):
        write_streamed(tmp_path / "file", {"a": StreamedTensor("F32", (2, 3), [bytes(20)])}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path, disk_full_after):
    with disk_full_after(500), pytest.raises(UserError, match="cannot write"):
        write_streamed(tmp_path / "file", {"a": StreamedTensor("F32", (1000,), [bytes(4000)])}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_no_metadata_has_none(tmp_path):
    write_streamed(tmp_path / "file", {"a": streamed(TENSORS["a"])}, {})
    assert TensorFile(tmp_path / "file", "the file").metadata == {}
    assert torch.equal(load_file(tmp_path / "file")["a"], TENSORS["a"])
