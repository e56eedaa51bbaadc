"""Methods side by side: which run is in which cell, and what no cell may mix."""

from __future__ import annotations

import pytest

from trainers.hegraph.baselines import METHODS
from trainers.hegraph.results import scores
from trainers.hegraph.results.comparison import base_to_new, compare
from trainers.hegraph.utils.errors import UserError

BASE = {"DATASET.SUBSAMPLE_CLASSES": "base"}
TIP = {"trainer": "TipAdapter", "variant": ""}


def target(accuracy: float | None, zero_shot: float = 40.0, rule: str = "same classes", **changes) -> dict:
    told = {"accuracy": accuracy, "accuracy_zero_shot": zero_shot, "num_test": 9, "num_classes": 3, "rule": rule}
    return told | changes


def test_rows_are_methods_in_order_and_columns_are_shots(run, cells):
    table = compare([
        run(1, 80.0), run(2, 84.0), run(1, 90.0, shots=16), run(1, 60.0, variant="T-N"), run(1, 70.0, **TIP),
        run(1, 65.0, trainer="Another", variant=""),
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


def test_all_training_images_are_the_last_column_and_zero_is_a_number(run, cells):
    table = compare([run(shots=-1, accuracy=0.0), run(shots=1), run(shots=16)])
    assert list(table.columns.values()) == ["1", "16", "all"]
    assert cells(table)["HeGraphAdapter",]["all"] == "0.00"
    assert table.caption.endswith("Toy, mini/mini; 1 seed, so no interval")


def test_means_over_seeds_by_shots_and_their_mean_over_data_sets(run, cells):
    runs = [
        run(1, 60.0, shots=16), run(1, 20.0), run(2, 30.0), run(1, 80.0, shots=16, dataset="Zoo"),
        run(1, 50.0, dataset="Zoo"),
    ]  # fmt: skip
    table = compare(runs, intervals=False)
    assert {labels: row for labels, row in cells(table).items() if labels[1] != "zero-shot"} == {
        ("Toy", "HeGraphAdapter(T)"): {"4": "24.00", "16": "59.00"},
        ("Toy", "HeGraphAdapter"): {"4": "25.00", "16": "60.00"},
        ("Zoo", "HeGraphAdapter(T)"): {"4": "49.00", "16": "79.00"},
        ("Zoo", "HeGraphAdapter"): {"4": "50.00", "16": "80.00"},
        ("mean of 2", "HeGraphAdapter(T)"): {"4": "36.50", "16": "69.00"},
        ("mean of 2", "HeGraphAdapter"): {"4": "37.50", "16": "70.00"},
    }
    assert table.caption == "Accuracy on test (%) by shots, mini/mini; mean over n = 1 to 2 seeds"


def test_a_mean_over_data_sets_is_taken_seed_by_seed_if_all_have_the_same(run, cells):
    runs = [run(1, 60.0), run(2, 70.0), run(1, 80.0, dataset="Zoo"), run(2, 94.0, dataset="Zoo")]
    # seeds: (60 + 80) / 2 = 70 and (70 + 94) / 2 = 82; t of 1 degree of freedom 12.706 * sqrt(72) / sqrt(2)
    assert cells(compare(runs))["mean of 2", "HeGraphAdapter"] == {"4": "76.00 ± 76.24"}
    assert cells(compare(runs[:3]))["mean of 2", "HeGraphAdapter"] == {"4": "72.50"}


def test_a_missing_experiment_leaves_its_cell_and_its_mean_empty(run, cells):
    shown = cells(compare([run(1, 60.0), run(1, 70.0, shots=16), run(1, 80.0, dataset="Zoo"), run(1, 9.0, **TIP)]))
    assert shown["Zoo", "HeGraphAdapter"] == {"4": "80.00", "16": ""}
    assert shown["mean of 2", "HeGraphAdapter"] == {"4": "70.00", "16": ""}
    assert ("mean of 2", "TipAdapter") not in shown


def test_a_data_set_that_no_method_has_at_some_shots_leaves_the_mean_there_to_the_others(run, cells):
    runs = [run(1, value, dataset=name) for name, value in (("A", 60.0), ("B", 70.0), ("C", 80.0))]
    runs += [run(1, value, dataset=name, shots=16) for name, value in (("A", 90.0), ("B", 92.0))]
    shown = cells(compare(runs))
    assert shown["mean of 3", "HeGraphAdapter"] == {"4": "70.00", "16": ""}
    assert shown["mean of 2", "HeGraphAdapter"] == {"4": "", "16": "91.00"}


def test_the_other_methods_stand_in_the_order_of_their_registry_and_zero_shot_is_one_row(run, cells):
    runs = [run(1, 50.0, trainer=name, variant="") for name in sorted(METHODS)]
    assert [labels[-1] for labels in cells(compare(runs))] == ["zero-shot", *list(METHODS)[1:]]


def test_a_run_by_the_papers_recipe_has_a_row_of_its_own(run, cells):
    keys = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}
    paper = {f"TRAINER.HEGRAPHADAPTER.{key}": value for key, value in keys.items()}
    noisy = paper | {"TRAINER.HEGRAPHADAPTER.NOISE": 0.1}
    shown = cells(compare([run(1, 70.0, paper), run(1, 80.0, noisy)]))
    assert shown["HeGraphAdapter(paper)",] == {"4": "70.00"} and shown["HeGraphAdapter",] == {"4": "80.00"}


def test_runs_of_the_text_variant_stand_for_it_unless_full_runs_are_more(run, cells):
    full = [run(seed, 80.0 + seed) for seed in (1, 2)]
    text = [run(seed, 70.0, variant="T") for seed in (1, 2)]
    assert cells(compare(full + text))["HeGraphAdapter(T)",]["4"].startswith("70.00")
    assert cells(compare(full + text[:1]))["HeGraphAdapter(T)",]["4"].startswith("80.50")


def test_by_data_set_has_a_mean_column_where_all_are_there(run, cells):
    sets = [run(1, 80.0), run(1, 60.0, dataset="Zoo"), run(1, 70.0, variant="T-P")]
    assert cells(compare(sets, "dataset"))["HeGraphAdapter",] == {"Toy": "80.00", "Zoo": "60.00", "mean of 2": "70.00"}
    assert cells(compare(sets, "dataset"))["HeGraphAdapter(T-P)",] == {"Toy": "70.00", "Zoo": "", "mean of 2": ""}
    assert compare(sets[:1], "dataset").columns == {"Toy": "Toy"}
    odd = cells(compare([run(1, 80.0), run(1, 60.0, dataset="mean")], "dataset"))["HeGraphAdapter",]
    assert odd == {"Toy": "80.00", "mean": "60.00", "mean of 2": "70.00"}


def test_by_backbone_groups_rows_by_what_else_there_is(run, cells):
    runs = [run(1, 80.0), run(1, 60.0, shots=16), run(1, 70.0, backbone="RN50/openai", shots=16)]
    table = compare(runs, "backbone")
    assert table.heads == ("shots", "method")
    assert cells(table)["16", "HeGraphAdapter"] == {"RN50/openai": "70.00", "mini/mini": "60.00"}
    assert cells(table)["4", "HeGraphAdapter"] == {"RN50/openai": "", "mini/mini": "80.00"}
    assert "by backbone, Toy; " in table.caption


# What no cell may mix


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"config": {"TRAINER.X.ALPHA": 0.5}},
            "Toy, mini/mini, HeGraphAdapter, 4: different configurations .*: ALPHA;",
        ),
        ({"versions": {"torch": "2.4", "numpy": "2.4"}}, "different versions of packages: torch;"),
        ({"versions": None}, "different versions of packages: numpy, torch;"),
        ({"num_test": 99}, "different numbers of test images: 123, 99;"),
        ({"test_set": "b"}, "different test images, though of one name: a, b;"),
        ({"seed": 1}, "seed 1 is there more than once"),
        ({"seed": 1, "accuracy_zero_shot": 51.0, **TIP}, r"disagree about zero-shot CLIP \(50.00 and 51.00\)"),
        ({"num_test": 5, **TIP}, "zero-shot, 4: different numbers of test images: 123, 5;"),
    ],
)
def test_a_cell_does_not_mix(run, other, words):
    with pytest.raises(UserError, match=words):
        compare([run(1, test_set="a"), run(**{"seed": 2} | other)])


def test_what_an_older_record_does_not_tell_and_what_another_method_has_is_no_mixture(run, cells):
    assert cells(compare([run(1, test_set="a"), run(2)]))["HeGraphAdapter",]["4"].startswith("80.00 ±")
    assert compare([run(1), run(1, versions={"torch": "2.4"}, **TIP)]).labels


def test_of_many_keys_that_differ_four_are_named(run):
    with pytest.raises(UserError, match=r": A0, A1, A2, A3, \.\.\.;"):
        compare([run(1), run(2, config={f"X.A{n}": n for n in range(5)})])


@pytest.mark.parametrize("protocol", ["with unlabelled images", "transductive"])
def test_protocols_are_kept_apart(run, cells, protocol):
    runs = [run(1, 80.0), run(1, 90.0, protocol=protocol), run(2, 80.0, protocol=None)]
    table = compare(runs)
    assert table.heads == ("protocol", "method")
    assert cells(table)["inductive", "HeGraphAdapter"] == {"4": "80.00 ± 0.00"}
    assert cells(table)[protocol, "HeGraphAdapter"] == {"4": "90.00"}
    assert sum("best" in row[2] for row in table.shown("best {}".format)) == 2  # of each protocol
    assert cells(compare(runs, "protocol"))["HeGraphAdapter",] == {"inductive": "80.00 ± 0.00", protocol: "90.00"}
    assert protocol in compare(runs[1:2]).caption and "inductive" not in compare(runs[:1]).caption
    with pytest.raises(UserError, match=f"Toy, HeGraphAdapter, 4: different protocol: none, {protocol};"):
        rows = [row for record in runs[:2] for row in scores.accuracies(record, record["shots"])]
        scores.cells([row for row in rows if row["method"] == "HeGraphAdapter"], ["dataset"])


def test_zero_shot_that_heard_unlabelled_images_is_a_method_of_ours(run, cells):
    heard = run(1, 70.0, trainer="ZeroShot", variant="", protocol="transductive")
    tip = run(1, 65.0, trainer="StatA", variant="", protocol="transductive", config={"TRAINER.STATA.BASE": "ZeroShot"})
    found = cells(compare([heard, tip]))
    assert found["StatA(zero-shot)",] == {"4": "65.00"}
    assert found["HeGraphAdapter(zero-shot)",] == {"4": "70.00"} and found["zero-shot",] == {"4": "50.00"}


# Targets


def test_by_target_shows_source_targets_and_their_mean(run, cells):
    tip = {"A": target(60.0), "B": target(20.0, 30.0)}
    table = compare([run(1, 80.0, targets=tip, **TIP), run(2, 99.0, trainer="Other", variant="")], "target")
    assert "targets with same classes" in table.caption
    assert cells(table) == {
        ("zero-shot",): {"Toy (source)": "50.00", "A": "40.00", "B": "30.00", "mean of targets": "35.00"},
        ("TipAdapter",): {"Toy (source)": "80.00", "A": "60.00", "B": "20.00", "mean of targets": "40.00"},
    }
    two = compare([run(targets={"A": target(60.0)}), run(dataset="Zoo", targets={"A": target(50.0)})], "target")
    assert [*two.columns.values()] == ["source", "A"] and two.heads == ("data set", "method")


@pytest.mark.parametrize(
    ("rule", "row", "source"),
    [("same classes", "HeGraphAdapter(T)", "79.00"), ("other classes", "HeGraphAdapter", "80.00")],
)
def test_a_full_run_counts_as_its_text_classifier_in_other_domains_and_as_the_method_elsewhere(
    run, cells, rule, row, source
):
    table = cells(compare([run(1, 80.0, targets={"A": target(60.0, rule=rule)})], "target"))
    assert {labels: shown for labels, shown in table.items() if labels != ("zero-shot",)} == {
        (row,): {"Toy (source)": source, "A": "60.00"}
    }


def test_a_method_without_a_rule_for_the_target_has_no_row(run, cells):
    runs = [run(trainer="APE", variant="", targets={"A": target(None, rule="other classes")})]
    assert list(cells(compare(runs, "target"))) == [("zero-shot",)]


def test_tests_of_different_target_images_are_not_mixed(run):
    runs = [run(1, targets={"A": target(60.0)}), run(2, targets={"A": target(60.0, num_test=10)})]
    with pytest.raises(UserError, match="different numbers of test images: 10, 9;"):
        compare(runs, "target")


# Tests of a trained model on other data sets (--eval-only), whose records have a "rule"


@pytest.fixture
def elsewhere(run):
    """Function of seed, accuracy, rule and other keys: the record of a test on Zoo of a model trained on Toy."""

    def make(seed: int = 1, accuracy: float = 60.0, rule: str = "same classes", **changes) -> dict:
        told = {"dataset": "Zoo", "rule": rule, "num_classes": 3, "trained_on": "Toy", "adapter_from": "out/model"}
        return run(
            seed, accuracy, **told | {"num_test": 9, "accuracy_text": accuracy, "accuracy_zero_shot": 40.0} | changes
        )

    return make


def test_by_data_set_a_full_model_in_another_domain_counts_as_its_text_classifier(run, elsewhere, cells):
    records = [run(1, 80.0), elsewhere(1, 60.0), run(1, 70.0, **TIP), elsewhere(1, 55.0, **TIP)]
    table = compare(records, "dataset")
    assert cells(table) == {
        ("zero-shot",): {"Toy": "50.00", "Zoo": "40.00", "mean of 2": "45.00"},
        ("TipAdapter",): {"Toy": "70.00", "Zoo": "55.00", "mean of 2": "62.50"},
        ("HeGraphAdapter(T)",): {"Toy": "79.00", "Zoo": "60.00", "mean of 2": "69.50"},
        ("HeGraphAdapter",): {"Toy": "80.00", "Zoo": "", "mean of 2": ""},
    }
    assert "by data set; Zoo with models trained on Toy (same classes), " in table.caption
    untold = compare([elsewhere(1), elsewhere(1, dataset="Farm", trained_on=None)], "dataset").caption
    assert "; Zoo with models trained on Toy (same classes); Farm with models trained on another data set (s" in untold


def test_by_data_set_a_full_model_on_other_classes_counts_as_the_method(run, elsewhere, cells):
    table = cells(compare([run(1, 80.0), elsewhere(1, 60.0, "other classes")], "dataset"))
    assert table["HeGraphAdapter",] == {"Toy": "80.00", "Zoo": "60.00", "mean of 2": "70.00"}
    assert table["HeGraphAdapter(T)",] == {"Toy": "79.00", "Zoo": "", "mean of 2": ""}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"trained_on": "Farm"}, "data sets of the training: Farm, Toy"),
        ({"rule": "other classes"}, "rules for other data sets: other classes, same classes"),
        ({"rule": None, "trained_on": None, "num_classes": None}, "numbers of classes: 3, none"),
    ],
    ids=["another source", "another rule", "trained there"],
)
def test_models_that_were_trained_on_different_data_sets_are_not_mixed(elsewhere, other, words):
    with pytest.raises(UserError, match=f"different {words}; name runs of one kind"):
        compare([elsewhere(1), elsewhere(2) | other], "dataset")


# Base to new


def test_base_to_new_has_the_harmonic_mean_of_each_seed(run, cells):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0, rule="other classes")}),
        run(2, 60.0, BASE, targets={"Toy:new": target(60.0, rule="other classes")}),
        run(1, 99.0, targets={"Toy:new": target(99.0)}),  # not of base classes
    ]
    # 2 * 80 * 40 / 120 = 53.33; 2 * 60 * 60 / 120 = 60; zero-shot 2 * 50 * 40 / 90 = 44.44
    table = base_to_new(runs)
    assert [*table.columns] == ["base", "new", "H"]
    assert cells(table)["HeGraphAdapter",]["base"].startswith("70.00")
    assert cells(table)["HeGraphAdapter",]["H"].startswith("56.67")
    assert cells(table)["zero-shot",]["H"] == "44.44 ± 0.00"


def test_over_data_sets_h_is_of_the_mean_accuracies_and_of_0_it_is_0(run, cells):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0)}),
        run(1, 60.0, BASE, dataset="Zoo", targets={"Zoo:new": target(60.0)}),
        run(1, 0.0, BASE, targets={"Toy:new": target(0.0)}, **TIP),
    ]
    shown = cells(base_to_new(runs))
    assert [*shown["mean of 2", "HeGraphAdapter(T)"].values()] == ["69.00", "50.00", f"{2 * 69 * 50 / 119:.2f}"]
    assert [*shown["Toy", "TipAdapter"].values()] == ["0.00"] * 3


@pytest.mark.parametrize("config", [{}, {"DATASET.SUBSAMPLE_CLASSES": "new"}])
def test_base_to_new_needs_runs_on_base_classes(run, config):
    with pytest.raises(UserError, match="base"):
        base_to_new([run(1, 80.0, config, targets={"Toy:new": target(40.0)}), run(2, 80.0, BASE)])
