"""Active learning: suggest typical images of every class first, then the images with the smallest margins.

The model is adapted to the unlabelled images (`method/unlabelled.py`), which gives each image soft labels `q_ic`. Then
images are selected one by one, each for the class with the fewest labels, which include the images selected before:

1. For a class without labels, the most typical image, with the largest

       log q_ic - |w_i - v_c|^2 / D,     w_i = A^-1/2 f_i

   where `v_c` is the class node and `A` the within-class covariance, both of labelled and unlabelled images, and `D`
   the mean squared distance between an image and a class node.
2. For other classes, the image that is predicted as the class with the smallest margin between its two largest
   `q_ic`. If no image is predicted as the class, the image with the smallest margin.

Shapes: M unlabelled images, K classes, d feature width. Selecting n images takes O(M K d + M log M + n K) after the
adaptation.
"""

from collections import defaultdict
from itertools import chain

import torch
from torch import Tensor

from ...method.head.closed_form import SMALLEST, whitening_of
from ...method.unlabelled import ClassSums, adapt_to_unlabelled, second_moment
from ...models.saved import SavedModel

RIDGE = 0.3  # ridge of the covariance, times d / number of images


def suggest(model: SavedModel, features: Tensor, number: int) -> list[int]:
    """Return the indices of the images to label next, the most useful one first.

    Args:
        model: Any model. A model that is adapted to unlabelled images already counts as one without labelled images.
        features: Unit-norm features of unlabelled images, shape `[M, d]`, M at least 1.
        number: Number of images; if there are fewer, all are returned.

    Raises:
        UserError: If the model has several labels per image.
    """
    model.check_single_label("active learning")
    text = model.text_of_classes()
    labelled = model.labelled
    if labelled is None:
        labelled = ClassSums.of(features[:0], torch.zeros(0, dtype=torch.long), len(text))
    adaptation = adapt_to_unlabelled(model.classifier, labelled, text, features, model.logit_scale, model.temperature)
    soft_labels = (adaptation.logits / model.temperature).softmax(dim=1)
    typical = typicality(soft_labels, features, labelled)
    return select(soft_labels, typical, labelled.counts, number)


def typicality(soft_labels: Tensor, features: Tensor, labelled: ClassSums) -> Tensor:
    """Typicality `log q_ic - |w_i - v_c|^2 / D` of each image for each class, shape `[M, K]`.

    Args:
        soft_labels: `q`, shape `[M, K]`.
        features: Unit-norm features, shape `[M, d]`.
        labelled: Sums of the labelled images.
    """
    both = labelled + ClassSums.soft(features, soft_labels, second_moment(features))
    nodes = both.sums / both.counts.clamp_min(SMALLEST).unsqueeze(1)
    total = both.counts.sum()
    covariance = (both.moment - both.sums.t() @ nodes) / total
    whitening = whitening_of(covariance, RIDGE * len(covariance) / total, SMALLEST).float()
    squares = torch.cdist(features @ whitening, nodes.float() @ whitening).square()
    return soft_labels.clamp_min(SMALLEST).log() - squares / squares.mean().clamp_min(SMALLEST)


def select(soft_labels: Tensor, typical: Tensor, counts: Tensor, number: int) -> list[int]:
    """Return the indices of the images to label next: typical ones of classes without labels, then uncertain ones.

    Args:
        soft_labels: `q`, shape `[M, K]`.
        typical: Typicality of each image for each class, shape `[M, K]`.
        counts: Number of labels of each class, shape `[K]`.
        number: Number of images.
    """
    best = soft_labels.max(dim=1)
    margins = best.values - soft_labels.scatter(1, best.indices.unsqueeze(1), 0.0).amax(dim=1)
    order = margins.argsort(stable=True).tolist()
    predicted = best.indices.tolist()
    of_class: dict[int, list[int]] = defaultdict(list)
    for index in order:
        of_class[predicted[index]].append(index)
    # iterators, which continue after the images of earlier rounds
    uncertain = {c: iter(indices) for c, indices in of_class.items()}
    of_any_class = iter(order)
    counts = counts.clone()
    typical = typical.t().contiguous()
    selected: dict[int, None] = {}
    for _ in range(min(number, len(order))):
        c = int(counts.argmin())
        if counts[c] < 1:
            index = int(typical[c].argmax())
        else:
            index = next(i for i in chain(uncertain.get(c, ()), of_any_class) if i not in selected)
        selected[index] = None
        typical[:, index] = -torch.inf
        counts[c] += 1
    return [*selected]
