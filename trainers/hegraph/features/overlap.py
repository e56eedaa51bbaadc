"""Training or validation images that are test images as well: what is learned or chosen on them says nothing.

Shapes: N and M rows, d feature width.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .bank import FeatureBank

logger = logging.getLogger(__name__)

NEAR = 0.9999  # cosine above which two images are taken for copies of one
BLOCK = 4096  # rows that are compared at once
FEW = 32  # entries of a row that are compared first
MOST_PAIRS = 2 * 10**8  # pairs of rows whose cosines take a few seconds; more are not compared


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


def warn_of_near_copies(bank: FeatureBank) -> None:
    """Warns, with counts, of images of train or val whose features are nearly those of a test image."""
    if bank.test_features is None:
        return
    for name, rows in (("train", bank.cache_keys()), ("val", bank.val_features)):
        if rows is not None and (count := count_near(rows, bank.test_features)):
            logger.warning(
                "%s: %d of %d %s images are nearly the same as a test image (cosine above %s)",
                bank.dataset, count, len(rows), name, NEAR,
            )  # fmt: skip


def test_features_apart(bank: FeatureBank) -> Tensor:
    """Reads the test features of a bank that are still on disk, shape `[M, d]`, and compares them with its other rows.

    Raises:
        UserError: As `FeatureBank.with_test` and `refuse_test_rows`.
    """
    whole = bank.with_test()
    refuse_test_rows(whole)
    warn_of_near_copies(whole)
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


def count_near(rows: Tensor, others: Tensor) -> int:
    """How many unit rows `[N, d]` have a cosine above `NEAR` with one of `others` `[M, d]`; 0 where there are too many.

    The comparison is left out above `MOST_PAIRS`, since it could take longer than the training.
    """
    if len(rows) * len(others) > MOST_PAIRS:
        return 0
    rows = rows[_may_be_near(rows, others)]
    near = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for block in others.split(BLOCK):
        near |= (rows @ block.t()).amax(dim=1) > NEAR
    return int(near.sum())


def _may_be_near(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows may have a cosine above `NEAR` with one of `others`; booleans `[N]`.

    Two unit rows are at a squared distance of 2 - 2 cos, and over a few of their entries they are no farther apart. So
    these few rule out nearly all rows, at a fraction of the cost.
    """
    farthest = 2 * (1 - NEAR) + 1e-5  # and a little more, for rounding
    few = rows[:, :FEW]
    own = few.square().sum(dim=1)
    near = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for block in others[:, :FEW].split(BLOCK):
        less = torch.addmm(block.square().sum(dim=1), few, block.t(), alpha=-2).amin(dim=1)
        near |= less + own < farthest
    return near


def _first_entries(rows: Tensor) -> Tensor:
    """One integer for each row of `[N, d]`, made of its first two entries."""
    entries = rows[:, :2].float()
    return F.pad(entries, (0, 2 - entries.shape[1])).contiguous().view(torch.int64).flatten()


def _bytes(row: Tensor) -> bytes:
    return row.detach().cpu().contiguous().numpy().tobytes()
