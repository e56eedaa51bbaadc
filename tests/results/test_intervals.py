"""Intervals by analysis of variance, checked by hand and in a simulation with known variances."""

import numpy as np
import pytest
from scipy.stats import t

from trainers.hegraph.results.intervals import Difference, analyse_bootstrap, analyse_variance, interval_of_mean
from trainers.hegraph.results.paired import overlap


def test_mean_squares_are_those_computed_by_hand():
    # Means of the images 1, 3, 5 and of the draws 2, 4; residuals +-1, 0, -+1
    parts = analyse_variance(np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]]))
    # MSI = 2 / 2 * (4 + 0 + 4) = 8; MSD = 3 / 1 * (1 + 1) = 6; MSR = (1 + 0 + 1 + 1 + 0 + 1) / 2 = 2; R M = 6
    assert (parts.mean, parts.num_images, list(parts.by_draw)) == (3, 3, [2, 4])
    assert (parts.images, parts.draws, parts.residuals) == pytest.approx((8 / 6, 6 / 6, 2 / 6))


def test_interval_has_satterthwaites_degrees_of_freedom():
    parts = analyse_variance(np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]]))
    variance = (8 + 6 - 2) / 6
    freedom = 12**2 / (8**2 / 2 + 6**2 / 1 + 2**2 / 2)
    half_width = t.ppf(0.975, freedom) * variance**0.5
    assert interval_of_mean([[parts]]) == pytest.approx((3, 3 - half_width, 3 + half_width))
    # Two equal data sets have the variance 2 v / 4, and twice the degrees of freedom
    half_width = t.ppf(0.975, 2 * freedom) * (variance / 2) ** 0.5
    assert interval_of_mean([[parts], [parts]]) == pytest.approx((3, 3 - half_width, 3 + half_width))


def test_data_sets_with_equal_draws_have_their_covariance():
    # Two images, no residuals: the draws of the two data sets differ by the same 2 points, so their sums differ by 4
    parts = analyse_variance(np.array([[0.0, 2.0], [2.0, 4.0]]))
    apart = interval_of_mean([[parts], [parts]])
    images = 1.0 + 1.0  # of each data set: the values 1 and 3 have the variance 2, and their mean 1
    draws = 8 / 2  # the sums 2 and 6 have the variance 8, and their mean 4
    freedom = (images + draws) ** 2 / (1 + 1 + draws**2)
    half_width = t.ppf(0.975, freedom) * (images + draws) ** 0.5 / 2
    found = interval_of_mean([[parts, parts]])
    assert found == pytest.approx((2, 2 - half_width, 2 + half_width))
    # Taken as independent, the draws would add 1 + 1 in place of 4
    half_width = t.ppf(0.975, 4**2 / 4) * 4**0.5 / 2
    assert apart == pytest.approx((2, 2 - half_width, 2 + half_width))


def test_opposite_effects_of_equal_draws_cancel():
    one = analyse_variance(np.array([[0.0, 2.0], [2.0, 4.0]]))
    other = analyse_variance(np.array([[2.0, 4.0], [0.0, 2.0]]))
    half_width = t.ppf(0.975, 2) * 2**0.5 / 2  # of the images alone
    assert interval_of_mean([[one, other]]) == pytest.approx((2, 2 - half_width, 2 + half_width))


def test_one_draw_gives_students_interval_over_images():
    values = np.array([[0.0, 1.0, 1.0, 4.0]])
    half_width = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert interval_of_mean([[analyse_variance(values)]]) == pytest.approx((1.5, 1.5 - half_width, 1.5 + half_width))


def test_draws_that_vary_less_than_residuals_add_nothing():
    values = np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 4.0]])  # equal means of the draws
    half_width = t.ppf(0.975, 2) * (analyse_variance(values).images) ** 0.5
    assert interval_of_mean([[analyse_variance(values)]]) == pytest.approx((2, 2 - half_width, 2 + half_width))


def test_negative_variance_of_draws_is_not_subtracted():
    # MSD = 3 (1/36 + 1/36) = 1/6 is less than MSR; image means 1, 1, 4.5 around 13/6 give MSI = 49/6
    parts = analyse_variance(np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 5.0]]))
    assert 0 < parts.draws < parts.residuals
    half_width = t.ppf(0.975, 2) * (49 / 36) ** 0.5
    assert interval_of_mean([[parts]]) == pytest.approx((13 / 6, 13 / 6 - half_width, 13 / 6 + half_width))


def test_common_training_images_widen_the_interval():
    # MSI = 8, MSD = 6 and MSR = 2 as above; with half of the images in common, c = (1 + 1 / 2) / (1 - 1 / 2) = 3
    parts = analyse_variance(np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]]))._replace(overlap=0.5)
    variance = (8 + 3 * (6 - 2)) / 6
    freedom = 20**2 / (8**2 / 2 + 3**2 * (6**2 / 1 + 2**2 / 2))
    half_width = t.ppf(0.975, freedom) * variance**0.5
    assert interval_of_mean([[parts]]) == pytest.approx((3, 3 - half_width, 3 + half_width))


def test_equal_training_images_are_taken_as_given():
    parts = analyse_variance(np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]]))
    assert interval_of_mean([[parts._replace(overlap=1.0)]]) == interval_of_mean([[parts]])


def test_equal_values_have_an_interval_of_one_point():
    assert interval_of_mean([[analyse_variance(np.zeros((3, 5)))]]) == Difference(0.0, 0.0, 0.0)


def test_bootstrap_of_means_agrees_with_mean_squares():
    rng = np.random.default_rng(1)
    values = rng.normal(size=40) + 0.3 * rng.normal(size=(3, 1)) + 0.5 * rng.normal(size=(3, 40))
    weights = np.vstack([np.ones(40), rng.multinomial(40, np.full(40, 1 / 40), 20000)]) / 40
    expected = analyse_variance(values)
    found = analyse_bootstrap(values @ weights.T, 40)
    assert (found.mean, found.draws) == pytest.approx((expected.mean, expected.draws))
    # The variances of bootstrap samples divide by M in place of M - 1
    images, residuals = (share * 39 / 40 for share in (expected.images, expected.residuals))
    assert (found.images, found.residuals) == pytest.approx((images, residuals), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [3, 20])
@pytest.mark.parametrize(("of_draws", "residual"), [(0.0, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 0.3)])
def test_intervals_cover_the_true_mean_in_95_percent(draws, of_draws, residual):
    rng = np.random.default_rng(draws)
    covered = 0
    for _ in range(6000):
        parts = []
        for _ in range(3):  # data sets, with 100 images of variance 1
            noise = residual * rng.standard_normal((draws, 100))
            values = rng.standard_normal(100) + of_draws * rng.standard_normal((draws, 1)) + noise
            parts.append([analyse_variance(values)])
        found = interval_of_mean(parts)
        covered += found.low <= 0 <= found.high
    assert 94 <= 100 * covered / 6000 <= 97


@pytest.mark.slow
@pytest.mark.parametrize("of_models", [0.0, 0.1, 0.3])
def test_intervals_cover_the_mean_over_tests_of_equal_models(of_models):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(3000):
        common = of_models * rng.standard_normal((20, 1))  # effects of twenty models, tested on three data sets
        noise = rng.standard_normal((3, 20, 100))
        cluster = [analyse_variance(rng.standard_normal(100) + common + each) for each in noise]
        found = interval_of_mean([cluster])
        covered += found.low <= 0 <= found.high
    assert 94 <= 100 * covered / 3000 <= 97


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 4, 8])
def test_intervals_cover_the_mean_over_pools_of_sixteen(shots):
    rng = np.random.default_rng(shots)
    num_draws = 20
    covered = 0
    for _ in range(1500):
        parts = []
        for _ in range(
            3
        ):  # data sets of ten classes; a draw changes accuracy by the mean effect of its training images
            effects = 0.3 * (10 * shots) ** 0.5 * rng.standard_normal((10, 16))
            chosen = rng.random((num_draws, 10, 16)).argsort(axis=2)[:, :, :shots]
            of_draws = np.take_along_axis(effects[None], chosen, axis=2).mean(axis=(1, 2))
            noise = 0.3 * rng.standard_normal((num_draws, 100))
            found = analyse_variance(rng.standard_normal(100) + of_draws[:, None] + noise)
            images = chosen + 16 * np.arange(10)[:, None]
            parts.append([found._replace(overlap=overlap([frozenset(draw.ravel()) for draw in images]))])
        interval = interval_of_mean(parts)
        covered += interval.low <= 0 <= interval.high
    assert 94 <= 100 * covered / 1500 <= 97
