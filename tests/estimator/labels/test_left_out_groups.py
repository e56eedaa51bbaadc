"""Leave-one-group-out of the training-free variant, against separate fits."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from test_labels import SCALE, fit_to, images_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.hegraph import UserError, load_bank
from trainers.hegraph.estimator.labels.group_change import Change, DenseMetric, LowRankMetric, ridge_of
from trainers.hegraph.estimator.labels.leave_one_group_out import (
    leave_one_group_out,
    left_out_group_logits,
    left_out_group_offsets,
)
from trainers.hegraph.estimator.labels.leave_one_out import leave_one_out, left_out_logits, training_free_options
from trainers.hegraph.estimator.labels.left_out_groups import _Groups, left_out_group_messages
from trainers.hegraph.estimator.labels.left_out_messages import Classes, Messages, left_out_messages
from trainers.hegraph.method.head.class_offsets import class_offsets, left_out_offsets
from trainers.hegraph.method.head.closed_form import ClosedForm
from trainers.hegraph.method.head.multilabel import MultiLabelHead

TASKS = [([6, 5, 8, 7, 4], 12), ([6] * 12, 8), ([16, 9, 12], 24)]  # also more classes than features


def centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


@contextmanager
def largest_tensor() -> Iterator[list[int]]:
    """Context that lists the numbers of entries of the results of all operations."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        yield sizes


def random_groups(labels: Tensor, number: int, seed: int = 0) -> Tensor:
    """Groups that span classes."""
    return torch.randint(number, labels.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("counts", "width"), TASKS)
def test_group_logits_equal_separate_fits(counts, width):
    features, labels, text = images_of(counts, width, seed=3)
    groups = random_groups(labels, len(labels) // 4)
    found = left_out_group_logits(features, labels, groups, text, SCALE, training_free_options(max(counts)), False)
    found = found + left_out_group_offsets(SCALE * features @ text.t(), labels, groups, "training")
    compared = 0
    for group in groups.unique():
        inside = groups == group
        if (labels[~inside].bincount(minlength=len(text)) == 0).any():
            continue
        expected = fit_to(features[~inside], labels[~inside], text, max(counts)).logits(features[inside])
        difference = centred(found[inside]) - centred(expected)
        assert difference.abs().max() < 1e-5
        compared += 1
    assert compared > 5


@pytest.mark.parametrize(("counts", "width", "number"), [(*TASKS[0], 5), (*TASKS[1], 20), (*TASKS[2], 4)])
def test_both_metrics_of_a_group_are_equal(counts, width, number):
    """The inverse of the scatter matrix itself, for large groups, and Woodbury's identity, for small ones."""
    features, labels, text = images_of(counts, width, seed=3)
    whole = Messages(features.double(), labels, text.double(), training_free_options(max(counts)), None)
    classes = Classes(whole, whole.smoothers[3], 0.5)
    small = 0
    for group in _Groups(whole, random_groups(labels, number)).groups:
        change = Change.of(classes, group)
        small += change.rank <= width
        B, W = change.factors()
        torch.testing.assert_close(change.scatter(), B.t() @ W @ B, atol=1e-12, rtol=0)
        ridge = partial(ridge_of, rho=whole.rho, total=len(labels) - len(group.images))
        metrics = [kind.of_change(classes, change, ridge) for kind in (LowRankMetric, DenseMetric)]
        images = classes.images
        mean = images[0] / 3
        for name, arguments in {
            "products": (images, classes.nodes), "squares": (images,),
            "squares_of_images": (images, images.square(), mean),
        }.items():  # fmt: skip
            first, second = (getattr(metric, name)(*arguments) for metric in metrics)
            torch.testing.assert_close(first, second, atol=1e-8, rtol=1e-8)
    assert small < 20  # most groups have more rows than the width


def test_large_group_needs_little_memory():
    """A group of 5,000 images; a square matrix of its images would have 200 MB."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(5200) % 5
    noise = torch.randn(5200, 8, generator=generator)
    features = torch.nn.functional.normalize(torch.eye(5, 8)[labels] + 0.3 * noise, dim=1)
    groups = torch.where(torch.arange(5200) < 5000, 0, 1 + torch.arange(5200) % 10)
    with largest_tensor() as sizes:
        left_out_group_logits(features, labels, groups, torch.eye(5, 8), SCALE, training_free_options(16))
        MultiLabelHead.fit(features, torch.nn.functional.one_hot(labels).bool(), torch.eye(5, 8), groups)
    assert max(sizes) < 5200 * 5 * 10


@pytest.mark.parametrize(("counts", "width"), TASKS)
@pytest.mark.parametrize("trusts_text", [False, True])
def test_groups_of_one_image_equal_leave_one_out(counts, width, trusts_text):
    features, labels, text = images_of(counts, width, seed=3)
    alone = torch.arange(len(labels))
    options = training_free_options(max(counts))
    arguments = (text, SCALE, options, trusts_text)
    expected = left_out_logits(features, labels, *arguments)
    assert torch.equal(left_out_group_logits(features, labels, alone, *arguments), expected)
    predicted = leave_one_out(features, labels, text, SCALE, trusts_text)[1]
    assert torch.equal(leave_one_group_out(features, labels, alone, text, SCALE, trusts_text)[1], predicted)


def test_algebra_of_single_images_is_that_of_images():
    features, labels, text = images_of([6, 5, 8, 2, 4], 12, seed=3)
    alone = torch.arange(len(labels))
    changes = 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = training_free_options(8)
    expected = left_out_messages(features, labels, text, options, changes)
    found = left_out_group_messages(features, labels, alone, text, options, changes)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prior", ["balanced", "training"])
def test_offsets_of_single_images_are_those_of_images(prior):
    features, labels, text = images_of([6, 5, 8, 7, 4], 12, seed=3)
    logits = SCALE * features @ text.t()
    found = left_out_group_offsets(logits, labels, torch.arange(len(labels)), prior)
    torch.testing.assert_close(found, left_out_offsets(logits, labels, prior), atol=1e-10, rtol=0)


@pytest.mark.parametrize("prior", ["balanced", "training"])
def test_offsets_equal_those_of_the_other_groups(prior):
    features, labels, text = images_of([6, 5, 8, 7, 4], 12, seed=3)
    groups = random_groups(labels, 8)
    logits = SCALE * features @ text.t()
    found = left_out_group_offsets(logits, labels, groups, prior)
    for group in groups.unique():
        others = groups != group
        expected = class_offsets(logits[others], labels[others], prior)
        torch.testing.assert_close(found[~others], expected.expand(int((~others).sum()), -1), atol=1e-10, rtol=0)


def test_offsets_without_text_equal_those_of_the_other_groups():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    logits = torch.zeros(8, 3, dtype=torch.float64)  # all temperatures tie
    found = left_out_group_offsets(logits, labels, groups, "training")
    for group in groups.unique():
        others = groups != group
        expected = class_offsets(logits[others], labels[others], "training")
        torch.testing.assert_close(found[~others], expected.expand(int((~others).sum()), -1), atol=1e-10, rtol=0)


def test_order_and_numbers_of_groups_do_not_matter():
    features, labels, text = images_of([6, 5, 8], 12, seed=3)
    groups = random_groups(labels, 6)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    expected = leave_one_group_out(features, labels, groups, text, SCALE)[0]
    found = leave_one_group_out(features[order], labels[order], 100 - 7 * groups[order], text, SCALE)[0]
    torch.testing.assert_close(found, expected[order], atol=1e-8, rtol=0)


def test_emptied_class_has_its_text_prior():
    features, labels, text = images_of([3, 4, 3, 5, 4, 4], 10, seed=2)
    groups = torch.arange(len(labels)) + 100
    groups[labels == 0] = 0
    inside = labels == 0
    options = training_free_options(5)
    found = left_out_group_messages(features, labels, groups, text, options)[inside]
    closed = ClosedForm.fit(features[~inside], labels[~inside] - 1, text[1:], options.kappa, options.rho)
    rest = closed.to_text
    own = closed.for_new_classes().logits(features[inside].float(), text[:1].float())
    expected = torch.cat([own, features[inside].float() @ rest.weights.t() + rest.bias], dim=1)
    # Without its class, the ridge regression has another centre: 1 of 6 classes
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=0.15)


def test_zero_shot_where_other_groups_have_one_class():
    features, labels, text = images_of([3, 6], 8, seed=5)
    groups = torch.where(labels == 0, 0, torch.arange(len(labels)) + 1)
    zero_shot = SCALE * features @ text.t()
    for trusts_text in (False, True):
        logits, predicted = leave_one_group_out(features, labels, groups, text, SCALE, trusts_text)
        torch.testing.assert_close(logits[labels == 0], zero_shot[labels == 0])
        assert logits.isfinite().all() and predicted.shape == labels.shape


def test_single_group_is_refused():
    features, labels, text = images_of([3, 4], 8, seed=5)
    with pytest.raises(UserError, match="expected images of at least two groups, got one"):
        leave_one_group_out(features, labels, torch.zeros_like(labels), text, SCALE)


@pytest.mark.slow
def test_group_messages_equal_separate_fits_on_real_features(shared):
    bank = load_bank(shared / "banks" / "caltech55.safetensors")
    features = bank.cache_keys().double()
    labels = bank.train_labels
    groups = labels * 10 + random_groups(labels, 5)
    options = training_free_options(16)
    found = left_out_group_messages(features, labels, groups, bank.text_positive.double(), options)
    for group in groups.unique()[::20]:
        inside = groups == group
        head = ClosedForm.fit(features[~inside], labels[~inside], bank.text_positive, options.kappa, options.rho)
        expected = features[inside].float() @ head.to_text.weights.t() + head.to_text.bias
        assert (found[inside] - expected).abs().max() < 1e-5
