"""Exact leave-one-group-out scores of the head for several labels per image.

As in `multilabel.py`, with the hat matrix `H = X (X^T X + lambda s I)^-1 X^T + 1/N` and the errors `E = Y - score(F)`,
the errors on the images of a group G by a head that is fitted without the group, with the same ridge and `W0`, are

    E'_G = (I - H_GG)^-1 E_G

Shapes: N images, K classes, d feature width, n images of a group.
"""

import torch
from torch import Tensor

from ..utils.errors import UserError
from .closed_form import SMALLEST
from .multilabel import MultiLabelHead


@torch.no_grad()
def left_out_group_scores(head: MultiLabelHead, features: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Scores of each training image by the head without the image's group, shape `[N, K]`, float32.

    Args:
        head: Head fitted to the images.
        features: Unit-norm image features, shape `[N, d]`.
        labels: Label indicators, booleans of shape `[N, K]`.
        groups: Groups of the images, integers of shape `[N]`. Images that are alone in their group keep the
            leave-one-out score of the head.

    Raises:
        UserError: If all images are of one group.
    """
    numbers = groups.unique(return_inverse=True)[1]
    sizes = numbers.bincount()
    if len(sizes) < 2:
        raise UserError("expected images of at least two groups, got one; add images of another group")
    left_out = head.left_out.clone()
    if sizes.max() == 1:
        return left_out
    X = features.double()
    mean = X.mean(dim=0)
    X = X - mean
    eigenvalues, basis = torch.linalg.eigh(X.t() @ X)
    eigenvalues = eigenvalues.clamp_min(0)
    strength = head.ridge * eigenvalues.mean().clamp_min(SMALLEST)  # lambda s
    whitened = X @ (basis / (eigenvalues + strength).sqrt())  # H = whitened whitened^T + 1/N
    Y = labels.double()
    absent = ~labels.any(dim=0)
    Y[:, absent] = head.scores(mean.unsqueeze(0))[:, absent]  # the mean indicator, as in the fit of the head
    E = Y - head.scores(features)
    for images in numbers.argsort(stable=True).split(sizes.tolist()):
        if len(images) > 1:
            H = whitened[images] @ whitened[images].t() + 1 / len(X)
            unit = torch.eye(len(images), dtype=H.dtype, device=H.device)
            left_out[images] = (Y[images] - torch.linalg.solve(unit - H, E[images])).float()
    return left_out
