"""What tells one feature bank from another, said without torch: a finished run is recognised before it is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..utils.files import hash_file, hash_json
from ..utils.tensor_bytes import TensorBytes

if TYPE_CHECKING:
    from hashlib import _Hash

BANK = "the feature bank"  # what such a file is called in messages
HASHED_WHOLE = 2**30  # bytes: a larger bank is known by what a run takes from it, as hashing it takes seconds
TAKEN_WHOLE = (
    "train_labels", "val_labels", "test_labels", "text_positive", "text_negative", "text_norms", "test_features",
)  # fmt: skip


class BankIdentity:
    """Hashes of a feature bank, of which what all runs take is hashed once.

    Args:
        file: The bank.
    """

    def __init__(self, file: TensorBytes) -> None:
        self.file = file

    @cached_property
    def is_large(self) -> bool:
        """Whether the file has more than `HASHED_WHOLE` bytes."""
        return self.file.path.stat().st_size > HASHED_WHOLE

    def of(self, train: Sequence[int], val: Sequence[int]) -> str:
        """A hash that changes whenever something does that a run takes from the bank.

        A bank of at most `HASHED_WHOLE` bytes is hashed whole. Of a larger one, everything is hashed that the run
        reads: what the header says, all labels, text features, the rows that it draws, and all test features.

        Args:
            train: Rows of training images that the run draws.
            val: The same of validation images.

        Raises:
            UserError: If the file cannot be read.
        """
        if not self.is_large:
            return self._whole
        digest = self._taken_by_all.copy()
        for name, rows in (("train_features", train), ("val_features", val)):
            if len(rows):
                digest.update(self.file.row_bytes(name, rows))
        return digest.hexdigest()

    @cached_property
    def _whole(self) -> str:
        return hash_file(self.file.path)

    @cached_property
    def _taken_by_all(self) -> _Hash:
        stored = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in self.file.tensors.items()}
        digest = hashlib.sha256(hash_json([self.file.metadata, stored]).encode())
        for name in TAKEN_WHOLE:
            for block in self.file.blocks(name) if name in self.file.tensors else ():
                digest.update(block)
        return digest
