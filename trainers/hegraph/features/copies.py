"""Images of a feature bank that are test images as well: their features are equal, bit for bit.

Shapes: n images, V views of each, d feature width.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..datasets.base import refuse_tested
from .bank import FeatureBank


def refuse_test_rows(bank: FeatureBank, rows: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError if a row of train, in any view, or of val equals a row of test, bit for bit.

    Args:
        bank: The bank.
        rows: Row of each image of "train" and "val" in the file of the bank, for the message.
    """
    for part, views in (("train", bank.train_features), ("val", bank.val_features)):
        if views is not None and bank.test_features is not None:
            copies = [f"row {rows[part][n]}" for n in copied_rows(views, bank.test_features)]
            refuse_tested(copies, views.shape[-2], part)


def copied_rows(features: Tensor, test: Tensor) -> list[int]:
    """Return the rows of features, `[n, d]` or `[V, n, d]`, that equal a row of test in any view, bit for bit."""
    views = features[None] if features.dim() == 2 else features
    tested = set(row_hashes(test))
    return [n for n, hashes in enumerate(zip(*map(row_hashes, views))) if not tested.isdisjoint(hashes)]


def row_hashes(rows: Tensor) -> list[int]:
    """Hash each row of `[n, d]`."""
    return [hash(row.tobytes()) for row in rows.detach().cpu().contiguous().numpy()]
