"""What to label next: first typical images of every class, then the images of each class that are least sure.

The images without labels first hear from the class nodes and tell them what they look like (`method/unlabelled.py`), so
that each has soft edges `q_ic`. Then images are chosen one by one, each for the class that has fewest labels, those
that were chosen for it included:

1. Where the class has no label yet, the image that is most typical of what it seems to be, of the greatest

       log q_ic - |w_i - v_c|^2 / D,     w_i = A^-1/2 f_i

   where `v_c` is the class node and `A` the within-class covariance of all images, both with the images without
   labels, and `D` the mean squared distance of an image from a class node.
2. Else the image that is predicted to be of the class and least sure of it, by the margin between its two largest
   `q_ic`. Where none is predicted, the least sure of all.

Shapes: M images without labels, K classes, d feature width. Choosing n images takes O(M K d + n M) after hearing them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.closed_form import SMALLEST, whitening_of
from ..method.unlabelled import ClassSums, adapt_to_unlabelled, second_moment
from ..models.saved import SavedModel

RIDGE = 0.3  # strength of the covariance's ridge, times d / images


def suggest(model: SavedModel, features: Tensor, number: int) -> list[int]:
    """Positions of the images to label next, best first; all of them where there are no more than `number`.

    Args:
        model: Any model; of one that has heard images before, what it was trained on is not known.
        features: Unit-norm features of images without labels, shape `[M, d]`, M at least 1.
        number: How many are wanted.
    """
    text, labelled, temperature = model.text_positive, model.labelled, model.temperature
    if labelled is None:
        labelled = ClassSums.of(features[:0], torch.zeros(0, dtype=torch.long), len(text))
    adaptation = adapt_to_unlabelled(model.classifier, labelled, text, features, model.logit_scale, temperature)
    edges = (adaptation.logits / temperature).softmax(dim=1)
    return choose(edges, typicality(edges, features, labelled), labelled.counts, number)


def typicality(edges: Tensor, features: Tensor, labelled: ClassSums) -> Tensor:
    """`log q_ic - |w_i - v_c|^2 / D`, shape `[M, K]`, from edges `[M, K]` and features `[M, d]`."""
    both = labelled + ClassSums.soft(features, edges, second_moment(features))
    nodes, total = both.sums / both.counts.clamp_min(SMALLEST).unsqueeze(1), both.counts.sum()
    covariance = (both.moment - both.sums.t() @ nodes) / total
    whitening = whitening_of(covariance, RIDGE * len(covariance) / total, SMALLEST).float()
    squares = torch.cdist(features @ whitening, nodes.float() @ whitening).square()
    return edges.clamp_min(SMALLEST).log() - squares / squares.mean().clamp_min(SMALLEST)


def choose(edges: Tensor, typical: Tensor, counts: Tensor, number: int) -> list[int]:
    """Positions of the images that the two rules choose.

    Args:
        edges: How likely each image is of each class, shape `[M, K]`.
        typical: How typical each image is of each class, shape `[M, K]`.
        counts: How many labels the classes have, shape `[K]`.
    """
    best = edges.max(dim=1)
    margins = best.values - edges.scatter(1, best.indices.unsqueeze(1), 0.0).amax(dim=1)
    counts, typical, chosen = counts.clone(), typical.t().contiguous(), []
    for _ in range(min(number, len(edges))):
        c = int(counts.argmin())
        last = -typical[c] if counts[c] < 1 else margins + (best.indices != c)  # margins are at most 1
        place = int(last.argmin())
        chosen.append(place)
        typical[:, place] = -torch.inf
        margins[place] = torch.inf
        counts[c] += 1
    return chosen
