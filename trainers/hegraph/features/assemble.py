"""The feature bank of a whole data set, put together on disk from the parts that were encoded."""

from __future__ import annotations

from pathlib import Path

from ..backbones.clip import Backbone
from ..datasets import Dataset
from ..utils.tensor_file import StreamedTensor, TensorFile, in_memory, write_streamed
from .bank_file import Encoder, bank_metadata
from .extract import Parts, labels_of
from .parts import FEATURES, WHAT


def assemble_bank(
    path: Path, parts: Parts, dataset: Dataset, backbone: Backbone, encoder: Encoder | None = None
) -> None:
    """Writes a feature bank, with one block of the features in memory at a time.

    Args:
        path: The file to write.
        parts: The encoded images and sentences.
        dataset: Whose they are.
        backbone: That encoded them.
        encoder: How it is loaded; None leaves the bank without it.

    Raises:
        UserError: If a part cannot be read, or the bank cannot be written.
    """
    tensors = {f"text_{name}": in_memory(nodes) for name, nodes in parts.text.items()}
    for split, (file, items) in parts.images.items():
        stored = TensorFile(file, WHAT)
        dtype, shape = stored.tensors[FEATURES].dtype, stored.tensors[FEATURES].shape
        shape = shape if split == "train" else shape[1:]  # only training images have views
        tensors[f"{split}_features"] = StreamedTensor(dtype, shape, stored.blocks(FEATURES))
        tensors[f"{split}_labels"] = in_memory(labels_of(items))
    metadata = bank_metadata(dataset.name, backbone.name, dataset.classnames, backbone.logit_scale, encoder)
    write_streamed(path, tensors, metadata)
