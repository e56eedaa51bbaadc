"""Independent arithmetic in double precision: gradients by differences, optimizers by the formulas of their papers.

The tests that use it write a method's loss down once more, from its equation, and share no line with the package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special
import torch

from trainers.hegraph.features.bank import FeatureBank

Array = np.ndarray
Arrays = list[Array]
AXES = [[1.0, 0.0], [0.0, 1.0]]
SLANTED = [[0.6, 0.8], [0.8, 0.6]]


def close(found: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-4)


def unit(rows: Sequence | Array) -> Array:
    """Rows divided by their norms."""
    array = np.asarray(rows, dtype=float)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def bank_of(
    train: Array,
    labels: Sequence[int],
    text: Array,
    val: tuple[Array, Sequence[int]] | None = None,
    test: tuple[Array, Sequence[int]] | None = None,
    scale: float = 10.0,
    dataset: str = "Tiny",
    norms: Sequence[float] | None = None,
) -> FeatureBank:
    """A bank of one view of each image, from unit-norm rows; `norms` are those of the text before it was normalised."""

    def images(split: tuple[Array, Sequence[int]] | None) -> tuple:
        return (None, None) if split is None else (tensor(split[0]), torch.as_tensor(split[1]))

    (val_features, val_labels), (test_features, test_labels) = images(val), images(test)
    return FeatureBank(
        train_features=tensor(train)[None],
        train_labels=torch.as_tensor(labels),
        text_positive=tensor(text),
        text_negative=tensor(text),
        classnames=[f"class {k}" for k in range(len(text))],
        dataset=dataset,
        backbone="none",
        logit_scale=scale,
        val_features=val_features,
        val_labels=val_labels,
        test_features=test_features,
        test_labels=test_labels,
        text_norms=None if norms is None else torch.tensor(norms),
    )


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def random_unit(rows: int, width: int, seed: int) -> Array:
    return unit(np.random.default_rng(seed).standard_normal((rows, width)))


LABELS = [0, 1, 2, 0, 1]  # of five training images
IMAGES, TEXT = random_unit(5, 4, seed=1), random_unit(3, 4, seed=2)  # features are 4 wide
PROBES = random_unit(6, 4, seed=3)  # images to classify


softmax = functools.partial(scipy.special.softmax, axis=1)


def cross_entropy(logits: Array, labels: Sequence[int]) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), list(labels)]).mean())


def cache(affinities: Array, labels: Sequence[int], num_classes: int) -> Array:
    """Affinities `[B, N]` summed over the images of each class, image by image."""
    logits = np.zeros((len(affinities), num_classes))
    for image, label in enumerate(labels):
        logits[:, label] += affinities[:, image]
    return logits


def gradients(loss: Callable[..., float], parameters: Arrays, step: float = 1e-5) -> Arrays:
    """The gradient of `loss(*parameters)` by central differences."""
    found = [np.zeros_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, found):
        for place in np.ndindex(parameter.shape):
            value, sides = parameter[place], []
            for moved in (value + step, value - step):
                parameter[place] = moved
                sides.append(loss(*parameters))
            parameter[place] = value
            gradient[place] = (sides[0] - sides[1]) / (2 * step)
    return found


def adam(
    loss: Callable[..., float],
    start: Arrays,
    rates: Sequence[float],
    decay: float,
    decoupled: bool,
    eps: float = 1e-8,
) -> Arrays:
    """The parameters after one step at each of the rates.

    Args:
        decay: Weight decay. Decoupled (AdamW), a step first takes `rate * decay` of a parameter away; else (Adam) the
            parameter times `decay` is added to the gradient.
    """
    parameters = [np.array(parameter, dtype=float) for parameter in start]
    first, second = ([np.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for step, rate in enumerate(rates, start=1):
        for i, gradient in enumerate(gradients(loss, parameters)):
            if decoupled:
                parameters[i] = parameters[i] - rate * decay * parameters[i]
            else:
                gradient = gradient + decay * parameters[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            root = np.sqrt(second[i] / (1 - 0.999**step))
            parameters[i] = parameters[i] - rate * first[i] / (1 - 0.9**step) / (root + eps)
    return parameters


def sgd(
    loss: Callable[..., float], start: Arrays, rates: Sequence[float], momentum: float, decay: float = 0.0
) -> Arrays:
    """The parameters after one step at each of the rates, by SGD with momentum; the decay is added to the gradient."""
    parameters = [np.array(parameter, dtype=float) for parameter in start]
    speed = [np.zeros_like(parameter) for parameter in parameters]
    for rate in rates:
        for i, gradient in enumerate(gradients(loss, parameters)):
            speed[i] = momentum * speed[i] + gradient + decay * parameters[i]
            parameters[i] = parameters[i] - rate * speed[i]
    return parameters
