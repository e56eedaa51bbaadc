"""Paired differences and their intervals, checked by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t

from trainers.hegraph import UserError
from trainers.hegraph.results.intervals import Difference, Ranking, Variances, interval_of_mean, values_of_groups
from trainers.hegraph.results.paired import difference as difference_of_pairs, overlap, pair_runs, paired_table
from trainers.hegraph.results.paired_runs import PAIR_KEYS, read_runs
from trainers.hegraph.results.records import PREDICTIONS, SPLIT, write_tensors_with_classes
from trainers.hegraph.utils.files import write_json


def correct(**rows: tuple[str, ...]) -> pd.DataFrame:
    """Runs of each data set, one per seed from 1 on; 1 in a text such as "110" is a correct prediction."""
    runs = []
    for name, of_seeds in rows.items():
        for seed, row in enumerate(of_seeds, 1):
            run = {"dataset": name, "seed": seed, "groups": None, "training_images": frozenset({seed})}
            run["draw"] = f"{name} {seed}"
            runs.append(dict.fromkeys(PAIR_KEYS, "") | run | {"outcome": np.array([c == "1" for c in row])})
    return pd.DataFrame(runs)


def difference(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """Difference of two methods; None if their runs are no pairs."""
    pairs = pair_runs(first, second)
    return None if pairs is None else difference_of_pairs(pairs)


def test_difference_is_mean_over_images_seeds_data_sets():
    ours = correct(pets=("1110", "1100"), cars=("11", "10"))
    # pets: (1 + 1) of 8 more = 25 points; cars: 1 of 4 more = 25 points, or none
    assert difference(ours, correct(pets=("1010", "0100"), cars=("10", "10"))).mean == pytest.approx(25)
    assert difference(ours, correct(cars=("11", "10"), pets=("1010", "0100"))).mean == pytest.approx(12.5)
    assert difference(ours, ours) == Difference(0.0, 0.0, 0.0)
    with pytest.raises(UserError, match="at least two"):
        difference(correct(cars=("1",)), correct(cars=("1",)))


def test_interval_of_one_seed_is_students_over_images():
    found = difference(correct(pets=("1" * 60 + "0" * 40,)), correct(pets=("1" * 50 + "0" * 50,)))
    # 10 of 100 images differ, all one way: the variance of an image is 0.1 * 0.9 * 100 / 99, and t_99 is 1.9842
    half_width = 100 * 1.9842 * (0.09 / 99) ** 0.5
    assert found == pytest.approx((10, 10 - half_width, 10 + half_width), abs=1e-3)
    assert str(found).startswith("**+10.00 (")
    assert str(Difference(-2.0, -3.0, -1.0)) == "**-2.00 (-3.00 to -1.00)**"


def test_interval_contains_the_variance_of_the_seeds():
    # Of 100 images 2, 10 and 18 differ
    theirs = correct(pets=("0" * 100,) * 3)
    ours = correct(pets=tuple("1" * number + "0" * (100 - number) for number in (2, 10, 18)))
    found = difference(ours, theirs)
    # Variances in squared points: 2 images differ in three seeds, 8 in two and 8 in one, and the mean is 0.1
    sum_images = 2 + 8 * (2 / 3) ** 2 + 8 * (1 / 3) ** 2 - 100 * 0.1**2
    sum_draws = 0.08**2 + 0.08**2
    sum_residuals = (30 - 300 * 0.1**2) - 3 * sum_images - 100 * sum_draws
    images = 1e4 * sum_images / 99 / 100
    draws = 1e4 * sum_draws / 2 / 3
    residuals = 1e4 * sum_residuals / (99 * 2) / 300
    variance = images + draws - residuals
    freedom = variance**2 / (images**2 / 99 + draws**2 / 2 + residuals**2 / 198)
    half_width = t.ppf(0.975, freedom) * variance**0.5
    assert found == pytest.approx((10, 10 - half_width, 10 + half_width))
    assert found.low < 0 < 10 - 1.98 * images**0.5  # a lead that is a tie for other draws


def test_rounding_errors_do_not_exclude_zero():
    assert str(interval_of_mean([[Variances(0.0, 0.0, 100, np.array([4e-16]))]])) == "+0.00 (0.00 to 0.00)"


def test_two_equal_data_sets_halve_the_variance():
    rng = np.random.default_rng(0)
    labels = rng.random((200, 3)) < 0.4
    outcomes = [Ranking(labels + noise * rng.standard_normal(labels.shape), labels) for noise in (0.5, 1.0)]
    row = dict.fromkeys(PAIR_KEYS, "") | {"seed": 1, "groups": None, "training_images": frozenset({1})}
    rows = [row | {"dataset": name, "draw": name} for name in ("one", "two")]
    ours = pd.DataFrame([row | {"outcome": outcomes[0]} for row in rows])
    theirs = pd.DataFrame([row | {"outcome": outcomes[1]} for row in rows])
    both = difference(ours, theirs)
    single = difference(ours[:1], theirs[:1])
    one_image = Ranking(labels[:1] + 0.0, labels[:1])
    with pytest.raises(UserError, match="at least two"):
        difference(ours[:1].assign(outcome=[one_image]), theirs[:1].assign(outcome=[one_image]))
    assert both.mean == pytest.approx(single.mean)
    assert (both.high - both.low) / (single.high - single.low) == pytest.approx(0.5**0.5, abs=0.03)


def test_overlap_is_the_mean_share_of_common_images():
    # Of two images, the draws 1 and 2 share one, and draw 3 shares none with either
    draws = [frozenset({"a", "b"}), frozenset({"b", "c"}), frozenset({"d", "e"})]
    assert overlap(draws) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert overlap(draws[:1]) == 0
    assert overlap([draws[0], draws[0]]) == 1


def test_draws_with_common_images_have_a_wider_interval():
    ours, theirs = correct(pets=("1111000000", "1100000000")), correct(pets=("0000000000",) * 2)
    apart = difference(ours, theirs)
    common = [frozenset({"a", "b"}), frozenset({"a", "c"})]
    found = difference(ours.assign(training_images=common), theirs.assign(training_images=common))
    assert found.mean == apart.mean and found.low < apart.low and found.high > apart.high


def test_groups_are_the_units_of_the_interval():
    ours = correct(pets=("11110000",)).assign(groups=[np.repeat([5, 7], 4)])
    theirs = correct(pets=("00000000",))
    # The groups have the values 100 and 0: variance 5000, of their mean 2500, and t_1 is 12.706
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(50) and (found.low, found.high) == (-100, 100)
    grouped = values_of_groups(np.array([[1.0, 1.0, 0.0, 4.0, 2.0, 1.0]]), np.array([0, 0, 0, 1, 1, 2]))
    # Mean 1.5; sums of deviations -2.5, 3 and -0.5, times 3 groups / 6 images
    assert grouped == pytest.approx(np.array([[0.25, 3.0, 1.25]]))


def test_ungrouped_images_are_groups_of_one():
    values = np.random.default_rng(0).normal(size=(3, 20))
    assert values_of_groups(values, np.arange(20)) == pytest.approx(values)


def test_map_resamples_whole_groups():
    rng = np.random.default_rng(0)
    labels = rng.random((40, 3)) < 0.4
    outcomes = [Ranking(labels + noise * rng.standard_normal(labels.shape), labels) for noise in (0.5, 1.0)]
    repeated = [Ranking(np.repeat(o.scores, 5, axis=0), np.repeat(o.labels, 5, axis=0)) for o in outcomes]
    row = dict.fromkeys(PAIR_KEYS, "") | {"dataset": "one", "seed": 1, "draw": "1", "training_images": frozenset({1})}
    single = difference(*(pd.DataFrame([row | {"groups": None, "outcome": outcome}]) for outcome in outcomes))
    groups = np.repeat(np.arange(40), 5)
    of_groups = difference(*(pd.DataFrame([row | {"groups": groups, "outcome": each}]) for each in repeated))
    assert of_groups == pytest.approx(single)


def test_pairs_need_equal_data_sets_and_seeds():
    ours, both = correct(pets=("110", "010")), correct(pets=("110", "010"), cars=("1", "1"))
    assert difference(ours, ours[:0]) is None
    assert difference(ours, both) is None and difference(both, ours) is None
    assert difference(ours, ours.assign(rule="same classes")) is None


TASKRES = {"trainer": "TaskRes", "variant": ""}


def test_paired_table_has_methods_by_shots(finish, tmp_path):
    for shots in (1, 4):
        finish(f"ours/{shots}", [0, 0, 0, 1], shots=shots)
    finish("theirs/1", [0, 0, 1, 1], **TASKRES, shots=1)
    finish("untested", [0], trainer="GDA", accuracy=None)
    caption, _, heads, _, row = paired_table([tmp_path]).splitlines()
    assert "mean of Toy;" in caption and heads == "| HeGraphAdapter minus | 1 | 4 |"
    assert row.startswith("| TaskRes | +25.00 (-54.56 to 100.00) |") and row.endswith(" |  |")
    *_, row = paired_table([tmp_path], of="TaskRes").splitlines()
    assert row.startswith("| HeGraphAdapter | -25.00 (-100.00 to 54.56)")
    with pytest.raises(UserError, match="did you mean 'TaskRes'"):
        paired_table([tmp_path], of="TaskRess")


def test_equal_and_unequal_numbers_are_not_paired(finish, tmp_path):
    finish("equal", [0, 0, 1])
    finish("unequal", [0, 0, 1], **TASKRES, shots_per_class="long-tailed:1-4")
    with pytest.raises(UserError, match=r"different numbers of shots per class \(equal, long-tailed:1-4\)"):
        paired_table([tmp_path])


def test_caption_names_shots_with_fixed_training_images(finish, tmp_path):
    for shots, rows in ((1, {1: [[3, 0, "a"]], 2: [[4, 0, "a"]]}), (2, {1: [[3, 0, "a"], [4, 0, "a"]]})):
        rows.setdefault(2, rows[1][::-1])  # the same images in another order
        for seed, train in rows.items():
            for trainer in ({}, TASKRES):
                folder = finish(f"{shots}/{seed}/{len(trainer)}", [0, 0, 1], shots=shots, seed=seed, **trainer)
                write_json(folder / SPLIT, {"train": train})
    caption = paired_table([tmp_path]).splitlines()[0]
    assert caption.endswith("interval over test images and seeds, bold if it excludes 0; given these training images: "
                            "Toy with 2 shots")  # fmt: skip


def test_caption_names_data_sets_with_groups(finish, tmp_path):
    for folder, changes in (("ours", {}), ("theirs", TASKRES)):
        path = finish(folder, [0, 0, 1, 1], **changes)
        tensors = {"predicted": torch.tensor([0, 0, 1, 1]), "labels": torch.zeros(4, dtype=torch.long)}
        write_tensors_with_classes(path / PREDICTIONS, ["a", "b"], groups=torch.tensor([0, 0, 1, 1]), **tensors)
    assert "; groups of test images as units: Toy; given" in paired_table([tmp_path]).splitlines()[0]


def test_groups_of_other_numbers_are_rejected(finish, tmp_path):
    finish("ours", [0, 0, 1, 1])
    with pytest.raises(UserError, match="expected groups of 4 test images, got 3; name the right bank"):
        read_runs([tmp_path], {"Toy": np.arange(3)})


def test_one_seed_holds_given_its_training_images(finish, tmp_path):
    finish("ours", [0, 0, 1])
    finish("theirs", [0, 1, 1], **TASKRES)
    assert paired_table([tmp_path]).splitlines()[0].endswith("; given these training images: Toy with 4 shots")


@pytest.mark.parametrize("other", [{"predicted": [0, 0, 0]}, {"predicted": [0, 0], "label": 1}])
def test_runs_with_other_test_images_are_rejected(finish, tmp_path, other):
    finish("one", [0, 0])
    finish("two", **other, **TASKRES)
    with pytest.raises(UserError, match="not tested on the same images as .*/one, another run on Toy;"):
        read_runs([tmp_path])


def test_own_folders_have_their_own_test_images(finish, tmp_path):
    finish("one", [0, 0], source="pictures")
    finish("two", [0, 0, 0], source="photos")
    assert set(read_runs([tmp_path])["dataset"]) == {"pictures", "photos"}


def test_models_of_other_data_sets_are_not_paired(finish, tmp_path, caplog):
    finish("ours", [0, 0])
    finish("theirs", [0, 1], **TASKRES, rule="same classes", trained_on="Other")
    finish("adapted", [0, 1], protocol="transductive")
    adaptation = "| HeGraphAdapter, transductive | +50.00 (-100.00 to 100.00) |"
    assert paired_table([tmp_path]).splitlines()[4:] == [adaptation]
    assert "mini/mini, models trained on Other (same classes): no run of HeGraphAdapter, so nothing" in caplog.text
    finish("again", [0, 0])
    with pytest.raises(UserError, match="Toy, HeGraphAdapter, 4 shots: 2 runs have seed 1"):
        read_runs([tmp_path])
