"""Training or validation images that are test images as well: what is learned or chosen on them says nothing.

Shapes: N and M rows, d feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .bank import FeatureBank


def refuse_test_rows(bank: FeatureBank) -> None:
    """Checks that no row of train or val is a row of test, bit for bit.

    Raises:
        UserError: If there are such rows; the message counts them.
    """
    if bank.test_features is None:
        return
    views, images, width = bank.train_features.shape
    among_test = {"train": is_among(bank.train_features.reshape(-1, width), bank.test_features).view(views, images)}
    if bank.val_features is not None:
        among_test["val"] = is_among(bank.val_features, bank.test_features).unsqueeze(0)
    for name, found in among_test.items():
        if count := int(found.any(dim=0).sum()):
            raise UserError(
                f"{count} of {found.shape[1]} {name} images of {bank.dataset} are test images as well, so the test "
                f"would say nothing about new images; take them out of {name} or out of test"
            )


def test_features_apart(bank: FeatureBank) -> Tensor:
    """Reads the test features of a bank that are still on disk, shape `[M, d]`, and compares them with its other rows.

    Raises:
        UserError: As `FeatureBank.with_test` and `refuse_test_rows`.
    """
    whole = bank.with_test()
    refuse_test_rows(whole)
    return whole.features_to_classify


def is_among(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows are also rows of `others`, bit for bit.

    Args:
        rows: Shape `[N, d]`.
        others: Shape `[M, d]`. Of all but a few candidates, only the first two entries are read.

    Returns:
        Booleans, shape `[N]`.
    """
    keys, other_keys = _first_entries(rows), _first_entries(others)
    candidates = torch.isin(keys, other_keys)
    if candidates.any():
        known = {_bytes(row) for row in others[torch.isin(other_keys, keys)]}
        for number in candidates.nonzero().flatten().tolist():
            candidates[number] = _bytes(rows[number]) in known
    return candidates


def _first_entries(rows: Tensor) -> Tensor:
    """One integer for each row of `[N, d]`, made of its first two entries."""
    entries = rows[:, :2].float()
    return F.pad(entries, (0, 2 - entries.shape[1])).contiguous().view(torch.int64).flatten()


def _bytes(row: Tensor) -> bytes:
    return row.detach().cpu().contiguous().numpy().tobytes()
