"""What labelled images tell of their classes, in sums: all that the closed form and unlabelled images need of them.

Shapes: N labelled images, K classes, S_c images of class c with mean m_c, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 8192  # images that are worked on at once


@dataclass(frozen=True)
class ClassSums:
    """Number, sum and second moment of labelled images. Those of two sets of images add up to those of both.

    Attributes:
        counts: `S_c`, shape `[K]`, float64.
        sums: `S_c m_c`, the sum of each class's unit-norm features, shape `[K, d]`, float64.
        moment: `sum_k F_k F_k^T`, shape `[d, d]`, float64.
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor

    @classmethod
    def of(cls, keys: Tensor, labels: Tensor, num_classes: int) -> ClassSums:
        """Of features `[N, d]` with labels `[N]`; N may be 0, as for zero-shot CLIP."""
        counts = torch.bincount(labels, minlength=num_classes).double()
        sums = keys.new_zeros(num_classes, keys.shape[1], dtype=torch.float64)
        for rows, classes in zip(keys.split(ROWS), labels.split(ROWS)):
            sums.index_add_(0, classes, rows.double())
        return cls(counts, sums, second_moment(keys))

    def to(self, device: str | torch.device) -> ClassSums:
        return ClassSums(self.counts.to(device), self.sums.to(device), self.moment.to(device))


def second_moment(features: Tensor) -> Tensor:
    """`sum_i f_i f_i^T`, shape `[d, d]`, float64."""
    moment = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in features.split(ROWS):
        moment += block.double().t() @ block.double()
    return moment
