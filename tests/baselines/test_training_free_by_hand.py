"""Zero-shot CLIP, Tip-Adapter and APE on features whose cosines can be read off, and the linear probe's search."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import bank_of, tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines import ape, linear_probe

AXES = [[1.0, 0.0], [0.0, 1.0]]
SLANTED = [[0.6, 0.8], [0.8, 0.6]]


def close(found: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-4)


def test_zero_shot_is_the_cosine_times_the_scale(fit):
    fitted = fit("ZeroShot", bank_of(AXES, [0, 1], SLANTED, scale=50.0))
    close(fitted.logits(tensor([[1.0, 0.0]])), [[30.0, 40.0]])
    assert (fitted.num_parameters, fitted.epochs, fitted.steps, fitted.selected) == (0, 0, 0, {})
    other = bank_of(AXES, [0, 1], AXES, test=(SLANTED, [0, 1]), scale=10.0)  # other classes, and another scale
    close(fitted.transfer(other), [[6.0, 8.0], [8.0, 6.0]])


def test_tip_adapter_adds_the_affinities_of_each_classs_images(fit):
    # The query (1, 0) has cosine 1, 0 and 0.6 with the images of classes 0, 1, 1, so with beta 2 the affinities are 1,
    # e^-2 = 0.135335 and e^-0.8 = 0.449329. With alpha 3: 10 * 0.6 + 3 and 10 * 0.8 + 3 * 0.584664.
    bank = bank_of([*AXES, SLANTED[0]], [0, 1, 1], SLANTED)
    fitted = fit("TipAdapter", bank, ALPHA=3.0, BETA=2.0)
    close(fitted.logits(tensor([[1.0, 0.0]])), [[9.0, 8 + 3 * 0.584664]])
    assert (fitted.num_parameters, fitted.epochs, fitted.steps, fitted.selected) == (0, 0, 0, {})


def test_tip_adapter_predicts_with_what_val_chose(fit):
    # The text votes by 2 for the wrong class of the val image, the cache by alpha * (1 - e^-beta) for the right one.
    # ALPHA is 0.1 or 5.1 and BETA 0.1 or 7.1: only 5.1 with 5.5 (the start's) and with 7.1 is right; 5.5 is nearer.
    bank = bank_of(AXES, [0, 1], SLANTED, val=([[1.0, 0.0]], [0]), test=([[1.0, 0.0]], [1]))
    scale = {"SEARCH_SCALE": [["", [14.1, 10.1]]], "SEARCH_STEP": [2, 2]}
    fitted = fit("TipAdapter", bank, ALPHA=1.0, BETA=5.5, **scale)
    assert fitted.selected["ALPHA, BETA"]["value"] == (5.1, 5.5)
    close(fitted.logits(tensor([[1.0, 0.0]])), [[6 + 5.1, 8 + 5.1 * math.exp(-5.5)]])


def test_ape_weighs_an_image_by_the_surprise_of_its_class(fit):
    # All channels are kept. The image (1, 0) of class 0 has cosines (0.6, 0.8) with the texts: KL = log2(1 + e^0.2) =
    # 1.151 bits; (0, 1) of class 1 has (0.8, 0.6): the same. With gamma 2 both weigh e^(2 * 1.151429) = 10.0023.
    surprise = math.exp(2 * math.log2(1 + math.exp(0.2)))
    bank = bank_of(AXES, [0, 1], SLANTED)
    fitted = fit("APE", bank, ALPHA=[["", 0.5]], BETA=3.0, GAMMA=2.0, CHANNELS=[["", 1.0]])
    expected = [[6 + 0.5 * surprise, 8 + 0.5 * math.exp(-3) * surprise]]
    close(fitted.logits(tensor([[1.0, 0.0]])), expected)
    assert fitted.selected == {}


def refined(share: float, weights: list[float], images: bool) -> list[int]:
    """The channels kept of two texts and two images with four channels, worked out in the test below."""
    half = 0.5
    text = [[half, half, half, half], [half, -half, half, -half]]
    train = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
    options = CfgNode({"CHANNELS": [["", share]], "WEIGHTS": [["", weights]]})
    return ape.refine(bank_of(train, [0, 1], text), options, images).tolist()


def test_ape_scores_channels_by_the_products_of_different_classes_and_the_variance_of_the_text():
    # Products of the texts: 0.25, -0.25, 0.25, -0.25; variances 0, 0.5, 0, 0.5. With the images: class 0 has 0.5 and 1
    # in channel 0, class 1 has 0.5 and 0; the mean product over the four pairs is 1.5 * 0.5 / 4 = 0.1875. In channel 2
    # class 0 has 0.5 and 0, class 1 has 0.5 and -1: 0.5 * -0.5 / 4 = -0.0625. In channels 1 and 3: 0.5 * -0.5 / 4 =
    # -0.0625.
    assert set(refined(0.5, [1.0, 0.0], images=False)) == {1, 3}
    assert 0 not in refined(0.75, [1.0, 0.0], images=True)
    assert refined(1.0, [1.0, 0.0], images=True)[-1] == 0
    # -0.8 * -0.0625 + 0.1 * 0.5 = 0.1 in 1 and 3, 0.05 in 2, -0.15 in 0
    assert refined(1.0, [0.8, 0.1], images=True)[2:] == [2, 0]
    assert len(refined(0.01, [1.0, 0.0], images=True)) == 1  # at least one
    assert len(refined(0.6, [1.0, 0.0], images=True)) == 2  # 2.4 channels


def probe_options(**changed: object) -> CfgNode:
    return CfgNode({"C": 1.0, "CANDIDATES": [100.0, 1.0, 0.01], "STEPS": 2, **changed})


def test_the_linear_probe_halves_the_decades_around_the_best_power_of_ten():
    # The best C is 10^1.3. Of 2, 0 and -2 in powers of ten, 2 is nearest, so the ends are 1 and 3, which are 0.3 and
    # 1.7 off: the right end moves to 2. The ends 1 and 2 are 0.3 and 0.7 off: the right end moves to 1.5, which is 0.2
    # off: the left end moves to 1.25, which is not asked.
    asked = []

    def accuracy(c: float) -> float:
        asked.append(round(math.log10(c), 4))
        return 100 - abs(math.log10(c) - 1.3)

    c, entry = linear_probe.search(probe_options(STEPS=3), accuracy)
    assert asked == [2, 0, -2, 1, 3, 1.5]
    assert c == entry["value"] == pytest.approx(10**1.5)
    # listed by the distance from the option C, which is 10^0
    listed = [round(math.log10(value), 4) for value, _ in entry["candidates"]]
    assert listed in ([0, 1, 1.5, 2, -2, 3], [0, 1, 1.5, -2, 2, 3])


def test_the_linear_probe_moves_the_left_end_where_the_right_one_is_better():
    # Best at 10^2.6: the ends 1 and 3 are 1.6 and 0.4 off, then 2 and 3 are 0.6 and 0.4 off, then 2.5 and 3: 0.1 and
    # 0.4
    asked = []

    def accuracy(c: float) -> float:
        asked.append(round(math.log10(c), 4))
        return 100 - abs(math.log10(c) - 2.6)

    c, _ = linear_probe.search(probe_options(STEPS=4), accuracy)
    assert asked == [2, 0, -2, 1, 3, 2.5, 2.75]
    assert c == pytest.approx(10**2.5)


def test_of_equals_the_linear_probe_takes_the_c_nearest_to_the_option():
    c, entry = linear_probe.search(probe_options(C=100.0), lambda c: 50.0)
    assert c == 100.0
    assert entry["candidates"][0] == [100.0, 50.0]
    # In the first round as well: 1 and 0.01 are equally good, 0.01 is nearer to 0.001, so its decades are searched;
    # of 0.001, which is one of their ends, and the others the nearest is taken
    best = {1.0, 0.01}
    c, entry = linear_probe.search(probe_options(C=0.001, STEPS=1), lambda c: 90.0 if c in best else 50.0)
    assert c == 0.01
    tried = sorted(round(math.log10(value), 4) for value, _ in entry["candidates"])
    assert tried == [-3, -2, -1, 0, 2]


def test_the_linear_probe_without_val_keeps_its_c_and_counts_its_iterations(fit):
    # One image of each class. By symmetry W is (a, -a; -a, a) and the logits of an image are a and -a. The mean loss is
    # log(1 + e^(-2a)) + 4 a^2 / (2 * C * 2), whose derivative is 0 where 2 / (1 + e^(2a)) = 2 a / C.
    fitted = fit("LinearProbe", bank_of(AXES, [0, 1], SLANTED), C=2.0)
    a = fitted.classifier.weights[0, 0].item()
    assert a > 0.1
    assert 2 / (1 + math.exp(2 * a)) == pytest.approx(2 * a / 2.0, abs=2e-3)
    close(fitted.classifier.weights, [[a, -a], [-a, a]])
    assert fitted.selected == {}
    assert fitted.epochs == fitted.steps > 0
