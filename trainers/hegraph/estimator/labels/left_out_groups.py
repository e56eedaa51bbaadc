"""Exact leave-one-group-out of the closed-form head: its logits for each labelled image, without the image's group.

As in `left_out_messages.py`, leaving out images is a change of low rank, if the slope `a` and the ridge regression `L`
are fixed. Let the group G have n images, g_c of them in class c, with their mean `f_Gc`, of the A classes of the set a.
Further,

    r_i = F_i - u_{y_i}                 deviation of an image of the group from its visual node
    U = 1/P + (L - mean_c L_c)^T        effect of the class mean in a row on the text prior in a column, [P, K]
    H_cy = kappa U_yc / (S_c + kappa)   for c not in a, and 0 for c in a

Without the group, class means, text priors and visual nodes move:

    delta_c = g_c (m_c - f_Gc) / (S_c - g_c)                                             c in a
    p_c' = p_c + sum_{y in a} U_yc delta_y + x_c
    u_c' = u_c + sum_{y in a} H_cy delta_y                                               c not in a
    u_c' = u_c + epsilon_c,  epsilon_c = (kappa (p_c' - p_c) - sum_{i in G, c} r_i) / (S_c - g_c + kappa)    c in a
    m' = m - sum_{i in G} (F_i - m) / (N - n)

`x_c` is 0, or with trust in text the change of the prior by the text of class c (`left_out_messages.py`). With the
residuals `R_c = S_c (m_c - u_c)`, the scatter matrix becomes

    rho_y = sum_c H_cy R_c,   R_c' = R_c - sum_{i in G, c} r_i
    C' = C - sum_{i in G} r_i r_i^T - sum_{y in a} (rho_y delta_y^T + delta_y rho_y^T)
           + sum_{y, z in a} (sum_c S_c H_cy H_cz) delta_y delta_z^T
           - sum_{c in a} (R_c' epsilon_c^T + epsilon_c R_c'^T) + sum_{c in a} (S_c - g_c) epsilon_c epsilon_c^T
       = C + B^T W B,   B = [r, delta, epsilon, rho, R']   of b = n + 4 A rows

Woodbury's identity gives the inverse of `C' + lambda I`, `lambda = rho tr C' / (N - n)`, in the eigenbasis of C:

    (C' + lambda I)^-1 = D - D B^T M B D,   D = (C + lambda I)^-1,   M = W (I + B D B^T W)^-1

Norms below are of this inverse. The message of class c to an image f of the group is

    (f - m') . (u_c' - m') / (|u_c' - m'| s),   s = mean of |F_i - m'| over all images of other groups

A group with `b > d` is left out by the inverse of `C' + lambda I` itself, so that memory and time grow with n and not
with its powers.

Classes E that the group empties have their text prior as mean, which depends on the means of the group's other classes
O. With the prior `p` before:

    (I - U_EE^T) delta_E = p_E - m_E + U_OE^T delta_O

This keeps the share 1/P of these classes in the centre of the regression, which a fit without them does not have.

Shapes: N images, K classes, P classes with images, d feature width; n images and A classes of a group. Computed in
float64, in O(G N d min(n + A, d)) for G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ...method.head.closed_form import SMALLEST
from ...method.options import TrainingFreeOptions
from ...utils.errors import UserError
from .group_change import Change, Group, Metric
from .left_out_messages import Classes, Messages, interpolation, narrow_parts
from .smoothers import Smoother


@torch.no_grad()
def left_out_group_messages(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    text: Tensor,
    options: TrainingFreeOptions,
    changes: Tensor | None = None,
) -> Tensor:
    """Messages of the closed-form head to each image, from the classes without its group, shape `[N, K]`, float64.

    They are 0 where all images of other groups are of one class, so that no head can be fitted.

    Args:
        features: Unit-norm image features of at least two classes, shape `[N, d]`, float64.
        labels: Classes of the images, shape `[N]`.
        groups: Groups of the images, integers of shape `[N]`, at least two different ones.
        text: Text features of the text prior, shape `[K, d]`, float64.
        options: Options of the closed-form head.
        changes: `v`, change of the text of each image's class without its group, shape `[N, d]`; None: no change.

    Raises:
        UserError: If all images are of one group.
    """
    check_groups(groups)
    return _Groups(Messages(features, labels, text, options, changes), groups).left_out()


def check_groups(groups: Tensor) -> None:
    """Raise UserError if all images are of one group."""
    if len(groups.unique()) < 2:
        raise UserError("expected images of at least two groups, got one; add images of another group")


class _Groups:
    """Groups of labelled images.

    Attributes:
        whole: The closed-form head with all images.
        groups: The groups, without those whose other images are of one class.
    """

    def __init__(self, whole: Messages, groups: Tensor) -> None:
        self.whole = whole
        self.groups = [self._group(images) for images in images_of_groups(whole.labels, groups)]

    @cached_property
    def square(self) -> Tensor:
        """Sum of the squares of the centred texts of the classes with images."""
        return self.whole.texts[self.whole.present].square().sum().clamp_min(SMALLEST)

    @cached_property
    def slope(self) -> Tensor:
        """Slope with all images, which may be below 0."""
        return (self.whole.texts[self.whole.present] * self.whole.images).sum() / self.square

    @cached_property
    def base(self) -> tuple[Tensor, Tensor]:
        """`U`, shape `[P, K]`, and the text priors `p_c`, shape `[K, d]`, with all images."""
        whole = self.whole
        slope = self.slope.clamp_min(0)
        no_change = whole.means[:1] * 0
        first_row = torch.zeros(1, dtype=torch.long, device=slope.device)
        errors = [smoother.errors(first_row, no_change, slope.reshape(1)) for smoother in whole.smoothers]
        matrix = whole.smoothers[int(torch.cat(errors).argmin())].matrix
        effects = (matrix - matrix.mean(dim=1, keepdim=True)).t() + 1 / len(whole.present)
        return effects, whole.prior(matrix, slope.item())

    def _group(self, images: Tensor) -> Group:
        whole = self.whole
        rows, position, counts = whole.rows[images].unique(return_inverse=True, return_counts=True)
        sums = whole.features.new_zeros(len(rows), whole.features.shape[1])
        sums.index_add_(0, position, whole.features[images])
        first = torch.stack([images[position == row][0] for row in range(len(rows))])
        left = whole.counts[whole.present[rows]] - counts
        delta = (counts.unsqueeze(1) * whole.means[rows] - sums) / left.clamp_min(1).unsqueeze(1)
        empty = left == 0
        if empty.any():
            effects, prior = self.base
            classes = whole.present[rows[empty]]
            moved = prior[classes] - whole.means[rows[empty]]
            moved = moved + effects[rows[~empty]][:, classes].t() @ delta[~empty]
            own = effects[rows[empty]][:, classes].t()
            unit = torch.eye(len(classes), dtype=own.dtype, device=own.device)
            delta[empty] = torch.linalg.solve(unit - own, moved)
        return Group(images, rows, first, left, delta)

    def left_out(self) -> Tensor:
        """Messages to each image from the classes without its group, shape `[N, K]`."""
        whole = self.whole
        texts = whole.texts[whole.present]
        messages = whole.features.new_zeros(len(whole.features), len(whole.texts))
        if not self.groups:
            return messages
        moved = torch.stack([(texts[group.rows] * group.delta).sum() for group in self.groups])
        slopes = (self.slope + moved / self.square).clamp_min(0)
        best = self._best_smoothers(slopes)
        for number in best.unique().tolist():
            of_smoother = (best == number).nonzero()[:, 0]
            for part in narrow_parts(slopes[of_smoother]):
                self._add_messages(messages, of_smoother[part], slopes, whole.smoothers[number])
        return messages

    def _add_messages(self, messages: Tensor, chosen: Tensor, slopes: Tensor, smoother: Smoother) -> None:
        """Add the messages of the groups `chosen`, indices of groups with slopes `[G]`, to messages `[N, K]`."""
        nodes, weights = interpolation(slopes[chosen])
        for node, weights_of_node in zip(nodes.tolist(), weights.t().tolist()):
            classes = _GroupClasses(Classes(self.whole, smoother, node))
            for index, weight in zip(chosen.tolist(), weights_of_node):
                group = self.groups[index]
                messages[group.images] += weight * classes.messages(group)

    def _best_smoothers(self, slopes: Tensor) -> Tensor:
        """Number of the ridge regression with the smallest error without each group, from the slopes `[G]`."""
        no_change = slopes.new_zeros(len(slopes), self.whole.features.shape[1])
        first_row = torch.zeros(len(slopes), dtype=torch.long, device=slopes.device)
        errors = []
        for smoother in self.whole.smoothers:
            of_images = smoother.units.t() @ smoother.images
            of_texts = smoother.units.t() @ smoother.texts
            products = smoother.units.t() @ smoother.units
            changes = []
            for group, slope in zip(self.groups, slopes):
                rows = group.rows
                linear = ((of_images[rows] - slope * of_texts[rows]) * group.delta).sum()
                quadratic = (products[rows][:, rows] * (group.delta @ group.delta.t())).sum()
                changes.append(2 * linear + quadratic)
            errors.append(smoother.errors(first_row, no_change, slopes) + torch.stack(changes))
        return torch.stack(errors).argmin(dim=0)


def images_of_groups(labels: Tensor, groups: Tensor) -> Iterator[Tensor]:
    """Iterate over the indices of the images of each group, without groups whose other images are of one class."""
    numbers = groups.unique(return_inverse=True)[1]
    num_classes = int(labels.max()) + 1
    counts = labels.bincount(minlength=num_classes)
    for images in numbers.argsort(stable=True).split(numbers.bincount().tolist()):
        left = counts - labels[images].bincount(minlength=num_classes)
        if (left > 0).sum() > 1:
            yield images


class _GroupClasses:
    """Messages of the classes at one slope and one ridge regression to groups that are left out.

    Attributes:
        classes: The classes, whose vectors are in the eigenbasis of `C`.
        squares: Squared entries of the images `F_i - m`, shape `[N, d]`.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.squares = classes.images.square()

    def messages(self, group: Group) -> Tensor:
        """Messages to the images of a group from the classes without the group, shape `[n, K]`."""
        all_images = self.classes.images
        change = Change.of(self.classes, group)
        total = len(all_images) - len(group.images)
        metric = Metric.of(self.classes, change, total)
        mean = -all_images[group.images].sum(dim=0) / total  # m' - m
        nodes = self.classes.nodes + change.nodes - mean
        node_norms = metric.squares(nodes).clamp_min(SMALLEST**2).sqrt()
        norms = metric.squares_of_images(all_images, self.squares, mean).clamp_min(0).sqrt()
        scale = (norms.sum() - norms[group.images].sum()) / total
        products = metric.products(all_images[group.images] - mean, nodes)
        return products / (node_norms * scale.clamp_min(SMALLEST))
