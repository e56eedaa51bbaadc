"""Methods side by side: which run is in which cell, and what no cell may mix."""

from __future__ import annotations

import pytest

from trainers.hegraph.baselines import METHODS
from trainers.hegraph.results.comparison import base_to_new, compare
from trainers.hegraph.utils.errors import UserError

BASE = {"DATASET.SUBSAMPLE_CLASSES": "base"}


def target(accuracy: float | None, zero_shot: float = 40.0, rule: str = "same classes", **changes) -> dict:
    scores = {"accuracy": accuracy, "accuracy_zero_shot": zero_shot, "num_test": 9, "num_classes": 3, "rule": rule}
    return scores | changes


def test_rows_are_methods_in_order_and_columns_are_shots(run, cells):
    table = compare([
        run(1, 80.0), run(2, 84.0), run(1, 90.0, shots=16), run(1, 60.0, variant="T-N"),
        run(1, 70.0, trainer="TipAdapter", variant="", accuracy_text=None),
        run(1, 65.0, trainer="Another", variant="", accuracy_text=None),
    ])  # fmt: skip
    assert cells(table) == {
        ("zero-shot",): {"4": "50.00 ± 0.00", "16": "50.00"},
        ("TipAdapter",): {"4": "70.00", "16": ""},
        ("Another",): {"4": "65.00", "16": ""},
        ("HeGraphAdapter(T-N)",): {"4": "60.00", "16": ""},
        ("HeGraphAdapter(T)",): {"4": "81.00 ± 25.41", "16": "89.00"},
        ("HeGraphAdapter",): {"4": "82.00 ± 25.41", "16": "90.00"},
    }
    assert table.caption == (
        "Accuracy on test (%) by shots, Toy, mini/mini; mean ± half-width of its 95% interval (Student's t) over n = 1 "
        "to 2 seeds, none for one seed"
    )


def test_all_training_images_are_the_last_column(run):
    assert compare([run(shots=-1), run(shots=1), run(shots=16)]).columns == ["1", "16", "all"]


def test_without_intervals_there_are_means_alone_and_the_caption_says_so(run, cells):
    table = compare([run(1, 80.0), run(2, 84.0)], intervals=False)
    assert cells(table)["HeGraphAdapter",] == {"4": "82.00"}
    assert table.caption == "Accuracy on test (%) by shots, Toy, mini/mini; mean over n = 2 seeds"


def test_means_over_seeds_by_shots_and_their_mean_over_data_sets(run, cells):
    runs = [
        run(1, 60.0, shots=16), run(1, 20.0), run(2, 30.0), run(1, 80.0, shots=16, dataset="Zoo"),
        run(1, 50.0, dataset="Zoo"),
    ]  # fmt: skip
    assert cells(compare(runs, intervals=False)) == {
        ("Toy", "zero-shot"): {"4": "50.00", "16": "50.00"},
        ("Toy", "HeGraphAdapter(T)"): {"4": "24.00", "16": "59.00"},
        ("Toy", "HeGraphAdapter"): {"4": "25.00", "16": "60.00"},
        ("Zoo", "zero-shot"): {"4": "50.00", "16": "50.00"},
        ("Zoo", "HeGraphAdapter(T)"): {"4": "49.00", "16": "79.00"},
        ("Zoo", "HeGraphAdapter"): {"4": "50.00", "16": "80.00"},
        ("mean of 2", "zero-shot"): {"4": "50.00", "16": "50.00"},
        ("mean of 2", "HeGraphAdapter(T)"): {"4": "36.50", "16": "69.00"},
        ("mean of 2", "HeGraphAdapter"): {"4": "37.50", "16": "70.00"},
    }


def test_a_missing_experiment_leaves_its_cell_and_its_mean_empty(run, cells):
    shown = cells(compare([run(1, 60.0), run(1, 70.0, shots=16), run(1, 80.0, dataset="Zoo")]))
    assert shown["Zoo", "HeGraphAdapter"] == {"4": "80.00", "16": ""}
    assert shown["mean of 2", "HeGraphAdapter"] == {"4": "70.00", "16": ""}


def test_an_accuracy_of_zero_is_a_number(run, cells):
    assert cells(compare([run(1, 0.0)]))["HeGraphAdapter",] == {"4": "0.00"}


def test_the_other_methods_stand_in_the_order_of_their_registry(run, cells):
    runs = [run(1, 50.0, trainer=name, variant="", accuracy_text=None) for name in sorted(METHODS)]
    assert [labels[-1] for labels in cells(compare(runs))] == ["zero-shot", *list(METHODS)[1:]]


def test_the_zero_shot_method_is_the_zero_shot_row(run, cells):
    table = compare([run(1, 80.0), run(1, 50.0, trainer="ZeroShot", variant="", accuracy_text=None)])
    assert list(cells(table)) == [("zero-shot",), ("HeGraphAdapter(T)",), ("HeGraphAdapter",)]


def test_runs_of_the_text_variant_stand_for_it_unless_full_runs_are_more(run, cells):
    full = [run(seed, 80.0 + seed) for seed in (1, 2)]
    one, two = ([run(seed, 70.0, variant="T", accuracy_text=70.0) for seed in range(1, n + 1)] for n in (1, 2))
    assert cells(compare(full + two))["HeGraphAdapter(T)",]["4"].startswith("70.00")
    assert cells(compare(full + one))["HeGraphAdapter(T)",]["4"].startswith("80.50")


def test_by_data_set_has_a_mean_column_where_all_are_there(run, cells):
    sets = [run(1, 80.0), run(1, 60.0, dataset="Zoo"), run(1, 70.0, variant="T-P")]
    assert cells(compare(sets, "dataset"))["HeGraphAdapter",] == {"Toy": "80.00", "Zoo": "60.00", "mean of 2": "70.00"}
    assert cells(compare(sets, "dataset"))["HeGraphAdapter(T-P)",] == {"Toy": "70.00", "Zoo": "", "mean of 2": ""}


def test_a_data_set_that_no_method_has_at_some_shots_leaves_the_mean_there_to_the_others(run, cells):
    runs = [run(1, value, dataset=name) for name, value in (("A", 60.0), ("B", 70.0), ("C", 80.0))]
    runs += [run(1, value, dataset=name, shots=16) for name, value in (("A", 90.0), ("B", 92.0))]
    shown = cells(compare(runs))
    assert shown["mean of 3", "HeGraphAdapter"] == {"4": "70.00", "16": ""}
    assert shown["mean of 2", "HeGraphAdapter"] == {"4": "", "16": "91.00"}


def test_by_backbone_groups_rows_by_what_else_there_is(run, cells):
    runs = [run(1, 80.0), run(1, 60.0, shots=16), run(1, 70.0, backbone="RN50/openai", shots=16)]
    table = compare(runs, "backbone")
    assert table.heads == ("shots", "method")
    assert cells(table)["16", "HeGraphAdapter"] == {"RN50/openai": "70.00", "mini/mini": "60.00"}
    assert cells(table)["4", "HeGraphAdapter"] == {"RN50/openai": "", "mini/mini": "80.00"}


# What no cell may mix


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": {"TRAINER.X.ALPHA": 0.5}}, r"Toy, mini/mini, HeGraphAdapter, 4: .*configurations \(.* ALPHA\)"),
        ({"versions": {"torch": "2.4", "numpy": "2.4"}}, r"different versions of torch; "),
        ({"num_test": 99}, r"different images \(123 images, 99 images\)"),
        ({"test_set": "b"}, r"Toy, mini/mini, HeGraphAdapter, 4: tested on different classes or images"),
        ({"accuracy_zero_shot": 51.0}, r"disagree about zero-shot CLIP \(50.00 and 51.00\)"),
        ({"seed": 1}, r"seed 1 is there more than once"),
    ],
)
def test_a_cell_does_not_mix(run, other, words):
    second = run(**{"seed": 2} | other)
    if "accuracy_zero_shot" in other:
        second["seed"] = 1
        second |= {"trainer": "TipAdapter", "variant": ""}
    with pytest.raises(UserError, match=words):
        compare([run(1, test_set="a"), second])


def test_methods_of_one_column_are_tested_on_the_same_images(run):
    with pytest.raises(UserError, match="different images"):
        compare([run(1), run(1, trainer="TipAdapter", variant="", num_test=5)])


def test_other_versions_of_another_method_are_no_mixture(run):
    assert compare([run(1), run(1, trainer="TipAdapter", variant="", versions={"torch": "2.4"})]).rows


# Targets


def test_by_target_shows_source_targets_and_their_mean(run, cells):
    tip = {"A": target(60.0), "B": target(20.0, 30.0)}
    runs = [run(1, 80.0, trainer="TipAdapter", variant="", targets=tip), run(2, 99.0, trainer="Other", variant="")]
    table = compare(runs, "target")
    assert "targets with same classes" in table.caption
    assert cells(table) == {
        ("zero-shot",): {"Toy (source)": "50.00", "A": "40.00", "B": "30.00", "mean of targets": "35.00"},
        ("TipAdapter",): {"Toy (source)": "80.00", "A": "60.00", "B": "20.00", "mean of targets": "40.00"},
    }


def test_in_other_domains_a_full_run_counts_as_its_text_classifier(run, cells):
    table = cells(compare([run(1, 80.0, targets={"A": target(60.0)})], "target"))
    assert table["HeGraphAdapter(T)",] == {"Toy (source)": "79.00", "A": "60.00"}
    assert ("HeGraphAdapter",) not in table


def test_with_other_classes_a_full_run_counts_as_the_method(run, cells):
    table = cells(compare([run(1, 80.0, targets={"A": target(60.0, rule="other classes")})], "target"))
    assert table["HeGraphAdapter",] == {"Toy (source)": "80.00", "A": "60.00"}


def test_a_method_without_a_rule_for_the_target_has_no_row(run, cells):
    runs = [run(trainer="APE", variant="", targets={"A": target(None, rule="other classes")})]
    assert list(cells(compare(runs, "target"))) == [("zero-shot",)]


def test_tests_of_different_target_images_are_not_mixed(run):
    runs = [run(1, targets={"A": target(60.0)}), run(2, targets={"A": target(60.0, num_test=10)})]
    with pytest.raises(UserError, match=r"10 images, 3 classes, same classes, 9 images"):
        compare(runs, "target")


# Tests of a trained model on other data sets (--eval-only), whose records have a "rule"


@pytest.fixture
def elsewhere(run):
    """Function of seed, accuracy, rule and other keys: the record of a test on Zoo of a model trained on Toy."""

    def make(seed: int = 1, accuracy: float = 60.0, rule: str = "same classes", **changes) -> dict:
        told = {"dataset": "Zoo", "rule": rule, "num_classes": 3, "trained_on": "Toy", "adapter_from": "out/model"}
        text = {"accuracy_text": accuracy} if changes.get("variant") != "" else {"accuracy_text": None}
        return run(seed, accuracy, **told | text | {"num_test": 9, "accuracy_zero_shot": 40.0} | changes)

    return make


def test_by_data_set_a_full_model_in_another_domain_counts_as_its_text_classifier(run, elsewhere, cells):
    tip = {"trainer": "TipAdapter", "variant": ""}
    records = [run(1, 80.0), elsewhere(1, 60.0), run(1, 70.0, **tip, accuracy_text=None), elsewhere(1, 55.0, **tip)]
    table = compare(records, "dataset")
    assert cells(table) == {
        ("zero-shot",): {"Toy": "50.00", "Zoo": "40.00", "mean of 2": "45.00"},
        ("TipAdapter",): {"Toy": "70.00", "Zoo": "55.00", "mean of 2": "62.50"},
        ("HeGraphAdapter(T)",): {"Toy": "79.00", "Zoo": "60.00", "mean of 2": "69.50"},
        ("HeGraphAdapter",): {"Toy": "80.00", "Zoo": "", "mean of 2": ""},
    }
    assert "by data set; Zoo with models trained on Toy (same classes), " in table.caption


def test_by_data_set_a_full_model_on_other_classes_counts_as_the_method(run, elsewhere, cells):
    table = cells(compare([run(1, 80.0), elsewhere(1, 60.0, "other classes")], "dataset"))
    assert table["HeGraphAdapter",] == {"Toy": "80.00", "Zoo": "60.00", "mean of 2": "70.00"}
    assert table["HeGraphAdapter(T)",] == {"Toy": "79.00", "Zoo": "", "mean of 2": ""}


@pytest.mark.parametrize(
    "other",
    [{"trained_on": "Farm"}, {"rule": "other classes"}, {"rule": None, "trained_on": None, "num_classes": None}],
    ids=["another source", "another rule", "trained there"],
)
def test_models_that_were_trained_on_different_data_sets_are_not_mixed(elsewhere, other):
    with pytest.raises(UserError, match="9 images, 3 classes, same classes, trained on Toy.*name runs of one kind"):
        compare([elsewhere(1), elsewhere(2) | other], "dataset")


# Base to new


def test_base_to_new_has_the_harmonic_mean_of_each_seed(run, cells):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0, rule="other classes")}),
        run(2, 60.0, BASE, targets={"Toy:new": target(60.0, rule="other classes")}),
    ]
    # 2 * 80 * 40 / 120 = 53.33; 2 * 60 * 60 / 120 = 60; zero-shot 2 * 50 * 40 / 90 = 44.44
    table = base_to_new(runs)
    h = {row.labels[0]: row.cells[2].mean for row in table.rows}
    assert h == {"zero-shot": pytest.approx(400 / 9), "HeGraphAdapter": pytest.approx((160 / 3 + 60) / 2)}
    assert cells(table)["HeGraphAdapter",]["base"].startswith("70.00")


def test_over_data_sets_h_is_of_the_mean_accuracies(run):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0)}),
        run(1, 60.0, BASE, dataset="Zoo", targets={"Zoo:new": target(60.0)}),
    ]
    mean = {row.labels: [cell.mean for cell in row.cells] for row in base_to_new(runs).rows}
    assert mean["mean of 2", "HeGraphAdapter(T)"] == pytest.approx([69.0, 50.0, 2 * 69 * 50 / 119])


@pytest.mark.parametrize("config", [{}, {"DATASET.SUBSAMPLE_CLASSES": "new"}])
def test_base_to_new_needs_runs_on_base_classes(run, config):
    with pytest.raises(UserError, match="base"):
        base_to_new([run(1, 80.0, config, targets={"Toy:new": target(40.0)}), run(2, 80.0, BASE)])
