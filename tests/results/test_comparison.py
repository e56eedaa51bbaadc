"""Methods side by side: which run is in which cell, and what no cell may mix."""

from __future__ import annotations

import pytest

from trainers.hegraph.baselines import METHODS
from trainers.hegraph.results.comparison import base_to_new, compare
from trainers.hegraph.utils.errors import UserError

BASE = {"DATASET.SUBSAMPLE_CLASSES": "base"}
TIP = {"trainer": "TipAdapter", "variant": ""}


def target(accuracy: float | None, zero_shot: float = 40.0, rule: str = "same classes", **changes) -> dict:
    told = {"accuracy": accuracy, "accuracy_zero_shot": zero_shot, "num_test": 9, "num_classes": 3, "rule": rule}
    return told | changes


@pytest.fixture
def shown(cells):
    """Function of the arguments of `compare`: the rows, (labels) -> the numbers, as a reader sees them."""
    return lambda *args, **options: {
        labels: [*row.values()] for labels, row in cells(compare(*args, **options)).items()
    }


def test_rows_are_methods_in_order_and_columns_are_shots(run, shown):
    runs = [
        run(1, 80.0), run(2, 84.0), run(1, 1.0, shots=-1), run(1, 60.0, variant="T-N"), run(1, 70.0, **TIP),
        run(1, 65.0, trainer="Another", variant=""), run(1, shots=16, accuracy_text=None),
    ]  # fmt: skip
    assert shown(runs) == {
        ("zero-shot",): ["50.00 ± 0.00", "50.00", "50.00"],
        ("TipAdapter",): ["70.00", "", ""],
        ("Another",): ["65.00", "", ""],
        ("HeGraphAdapter(T-N)",): ["60.00", "", ""],
        ("HeGraphAdapter(T)",): ["81.00 ± 25.41", "", "0.00"],
        ("HeGraphAdapter",): ["82.00 ± 25.41", "80.00", "1.00"],
    }
    table = compare(runs)
    assert [*table.columns.values()] == ["4", "16", "all"]
    assert table.caption == (
        "Accuracy on test (%) by shots, Toy, mini/mini; mean ± half-width of its 95% interval (Student's t) over n = 1 "
        "to 2 seeds"
    )
    assert compare(runs[:1]).caption.endswith(" by shots, Toy, mini/mini; 1 seed")
    assert compare(runs[:2], intervals=False).caption.endswith("; mean over n = 2 seeds")


def test_means_over_data_sets_are_of_means_over_seeds_and_none_with_a_missing_cell(run, shown):
    runs = [
        run(1, 60.0, shots=16), run(1, 20.0), run(2, 30.0), run(1, 80.0, shots=16, dataset="Zoo"),
        run(1, 50.0, dataset="Zoo"), run(1, 9.0, **TIP), run(1, 70.0, shots=2), run(1, 70.0, shots=2, **TIP),
        run(1, 90.0, shots=2, dataset="Zoo", **TIP),
    ]  # fmt: skip
    rows = shown(runs[::-1], intervals=False)
    assert list(dict.fromkeys(labels[0] for labels in rows)) == ["Toy", "Zoo", "mean of 2"]
    assert {labels: row for labels, row in rows.items() if labels[1] in ("TipAdapter", "HeGraphAdapter")} == {
        ("Toy", "TipAdapter"): ["70.00", "9.00", ""],
        ("Toy", "HeGraphAdapter"): ["70.00", "25.00", "60.00"],
        ("Zoo", "TipAdapter"): ["90.00", "", ""],
        ("Zoo", "HeGraphAdapter"): ["", "50.00", "80.00"],
        ("mean of 2", "TipAdapter"): ["80.00", "", ""],
        ("mean of 2", "HeGraphAdapter"): ["", "37.50", "70.00"],
    }


def test_a_mean_over_data_sets_is_taken_seed_by_seed_if_all_have_the_same(run, shown):
    runs = [run(1, 60.0), run(2, 70.0), run(1, 80.0, dataset="Zoo"), run(2, 94.0, dataset="Zoo")]
    # seeds: (60 + 80) / 2 = 70 and (70 + 94) / 2 = 82; t of 1 degree of freedom 12.706 * sqrt(72) / sqrt(2)
    assert shown(runs)["mean of 2", "HeGraphAdapter"] == ["76.00 ± 76.24"]
    assert shown(runs[:3])["mean of 2", "HeGraphAdapter"] == ["72.50"]


def test_a_data_set_that_no_method_has_at_some_shots_leaves_the_mean_there_to_the_others(run, shown):
    runs = [run(1, value, dataset=name) for name, value in (("A", 60.0), ("B", 70.0), ("C", 80.0))]
    runs += [run(1, value, dataset=name, shots=16) for name, value in (("A", 90.0), ("B", 92.0))]
    assert shown(runs)["mean of 3", "HeGraphAdapter"] == ["70.00", ""]
    assert shown(runs)["mean of 2", "HeGraphAdapter"] == ["", "91.00"]


def test_the_other_methods_stand_in_the_order_of_their_registry_and_zero_shot_is_one_row(run, shown):
    runs = [run(1, 50.0, trainer=name, variant="") for name in sorted(METHODS)]
    assert [labels[-1] for labels in shown(runs)] == ["zero-shot", *list(METHODS)[1:]]


def test_recipes_and_starts_that_are_methods_of_their_own(run, shown):
    keys = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}
    paper = {f"TRAINER.HEGRAPHADAPTER.{key}": value for key, value in keys.items()}
    rows = shown([run(1, 70.0, paper), run(1, 80.0, paper | {"TRAINER.HEGRAPHADAPTER.NOISE": 0.1})])
    assert rows["HeGraphAdapter(paper)",] == ["70.00"] and rows["HeGraphAdapter",] == ["80.00"]
    heard = run(1, 70.0, trainer="ZeroShot", variant="", protocol="transductive")
    tip = run(1, 65.0, trainer="StatA", variant="", protocol="transductive", config={"TRAINER.STATA.BASE": "ZeroShot"})
    rows = shown([heard, tip])
    assert rows["StatA(zero-shot)",] == ["65.00"]
    assert rows["HeGraphAdapter(zero-shot)",] == ["70.00"] and rows["zero-shot",] == ["50.00"]


def test_runs_of_the_text_variant_stand_for_it_unless_full_runs_are_more(run, shown):
    full = [run(seed, 80.0 + seed) for seed in (1, 2)]
    text = [run(seed, 70.0, variant="T") for seed in (1, 2)]
    assert shown(full + text, intervals=False)["HeGraphAdapter(T)",] == ["70.00"]
    assert shown(full + text[:1], intervals=False)["HeGraphAdapter(T)",] == ["80.50"]


def test_by_data_set_has_a_mean_column_where_all_are_there(run, cells):
    sets = [run(1, 80.0), run(1, 60.0, dataset="mean"), run(1, 70.0, variant="T-P")]
    rows = cells(compare(sets, "dataset"))
    assert rows["HeGraphAdapter",] == {"Toy": "80.00", "mean": "60.00", "mean of 2": "70.00"}
    assert rows["HeGraphAdapter(T-P)",] == {"Toy": "70.00", "mean": "", "mean of 2": ""}
    assert compare(sets[:1], "dataset").columns == {"Toy": "Toy"}


def test_by_backbone_groups_rows_by_what_else_there_is(run, cells):
    table = compare([run(1, 80.0), run(1, 60.0, shots=16), run(1, 70.0, backbone="RN50/openai", shots=16)], "backbone")
    assert table.heads == ("shots", "method") and "by backbone, Toy; " in table.caption
    assert cells(table)["16", "HeGraphAdapter"] == {"RN50/openai": "70.00", "mini/mini": "60.00"}
    assert cells(table)["4", "HeGraphAdapter"] == {"RN50/openai": "", "mini/mini": "80.00"}


def test_protocols_are_kept_apart(run, cells):
    protocol = "transductive"
    runs = [run(1, 80.0), run(1, 90.0, protocol=protocol), run(2, 80.0, protocol=None)]
    table = compare(runs)
    assert table.heads == ("protocol", "method")
    assert cells(table)["inductive", "HeGraphAdapter"] == {"4": "80.00 ± 0.00"}
    assert cells(table)[protocol, "HeGraphAdapter"] == {"4": "90.00"}
    assert sum("best" in row[2] for row in table.shown("best {}".format)) == 2  # of each protocol
    assert cells(compare(runs, "protocol"))["HeGraphAdapter",] == {"inductive": "80.00 ± 0.00", protocol: "90.00"}
    assert protocol in compare(runs[1:2]).caption and "inductive" not in compare(runs[:1]).caption


# What no cell may mix


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"config": {"TRAINER.X.ALPHA": 0.5}},
            "HeGraphAdapter, 4: different config: TRAINER.X.ALPHA;.* --by setting",
        ),
        ({"config": {f"X.A{n}": n for n in range(4)}}, r"config: X.A0, X.A1, X.A2, \.\.\.;"),
        ({"versions": {"torch": "2.4", "numpy": "2.4"}}, "different versions: torch;"),
        ({"num_test": 99}, "different num_test: 123, 99;"),
        ({"test_set": "b"}, "different test_set: a, b;"),
        ({"seed": 1}, "seed 1 is there more than once"),
        ({"seed": 1, "accuracy_zero_shot": 51.0, **TIP}, r"disagree about zero-shot CLIP \(50.00 and 51.00\)"),
        ({"rule": "other classes"}, "different rule: none, other classes"),
    ],
)
def test_a_cell_does_not_mix(run, other, words):
    with pytest.raises(UserError, match=words):
        compare([run(1, test_set="a"), run(**{"seed": 2} | other)])


def test_what_an_older_record_does_not_tell_and_what_another_method_has_is_no_mixture(run, shown):
    assert shown([run(1, test_set="a"), run(2)])["HeGraphAdapter",] == ["80.00 ± 0.00"]
    assert ("TipAdapter",) in shown([run(1), run(1, versions={"torch": "2.4"}, **TIP)])


# Targets


def test_by_target_shows_source_targets_and_their_mean(run, cells):
    tip = {"A": target(60.0), "B": target(20.0, 30.0)}
    table = compare([run(1, 80.0, targets=tip, **TIP), run(2, 99.0, trainer="Other", variant="")], "target")
    assert "targets with same classes" in table.caption
    assert cells(table) == {
        ("zero-shot",): {"Toy (source)": "50.00", "A": "40.00", "B": "30.00", "mean of targets": "35.00"},
        ("TipAdapter",): {"Toy (source)": "80.00", "A": "60.00", "B": "20.00", "mean of targets": "40.00"},
    }


def test_of_a_target_only_those_who_have_a_rule_have_a_row_and_other_images_are_not_mixed(run, shown):
    full = {"A": target(60.0), "B": target(50.0)}
    assert shown([run(targets=full)], "target")["HeGraphAdapter(T)",] == ["79.00", "60.00", "50.00", "55.00"]
    runs = [run(trainer="APE", variant="", targets={"A": target(None, rule="other classes")})]
    assert list(shown(runs, "target")) == [("zero-shot",)]
    with pytest.raises(UserError, match="different num_test: 10, 9;"):
        compare([run(1, targets={"A": target(60.0)}), run(2, targets={"A": target(60.0, num_test=10)})], "target")


def test_a_model_of_another_data_set_counts_as_its_text_classifier_in_other_domains_and_as_the_method_elsewhere(run):
    """Tests with --eval-only, whose records have a "rule"."""

    def elsewhere(rule: str, **changes) -> dict:
        told = {"dataset": "Zoo", "rule": rule, "num_classes": 3, "trained_on": "Toy", "num_test": 9}
        return run(1, 60.0, **told | {"accuracy_text": 60.0, "accuracy_zero_shot": 40.0} | changes)

    def rows(*records: dict) -> list[list[str]]:
        return compare(records, "dataset").shown(str)

    assert rows(run(1, 80.0), elsewhere("same classes"), run(1, 70.0, **TIP), elsewhere("same classes", **TIP)) == [
        ["zero-shot", "50.00", "40.00", "45.00"],
        ["TipAdapter", "70.00", "60.00", "65.00"],
        ["HeGraphAdapter(T)", "79.00", "60.00", "69.50"],
        ["HeGraphAdapter", "80.00", "", ""],
    ]
    assert rows(run(1, 80.0), elsewhere("other classes"))[1:] == [
        ["HeGraphAdapter(T)", "79.00", "", ""],
        ["HeGraphAdapter", "80.00", "60.00", "70.00"],
    ]
    assert "; Zoo with models trained on Toy (same classes)" in compare([elsewhere("same classes")], "dataset").caption


# Base to new


def test_base_to_new_has_the_harmonic_mean_of_each_seed_of_runs_on_base_classes(run, cells):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0, rule="other classes")}),
        run(2, 60.0, BASE, targets={"Toy:new": target(60.0, rule="other classes")}),
        run(1, 99.0, targets={"Toy:new": target(99.0)}),  # not of base classes
    ]
    # 2 * 80 * 40 / 120 = 53.33; 2 * 60 * 60 / 120 = 60; zero-shot 2 * 50 * 40 / 90 = 44.44
    rows = cells(base_to_new(runs))
    assert [*rows["HeGraphAdapter",]] == ["base", "new", "H"]
    assert rows["HeGraphAdapter",]["base"].startswith("70.00") and rows["HeGraphAdapter",]["H"].startswith("56.67")
    assert rows["zero-shot",]["H"] == "44.44 ± 0.00"
    with pytest.raises(UserError, match="base"):
        base_to_new([runs[2], run(2, 80.0, BASE)])


def test_over_data_sets_h_is_of_the_mean_accuracies_and_of_0_it_is_0(run, cells):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0)}),
        run(1, 60.0, BASE, dataset="Zoo", targets={"Zoo:new": target(60.0)}),
        run(1, 0.0, BASE, targets={"Toy:new": target(0.0)}, **TIP),
    ]
    rows = cells(base_to_new(runs))
    assert [*rows["mean of 2", "HeGraphAdapter(T)"].values()] == ["69.00", "50.00", f"{2 * 69 * 50 / 119:.2f}"]
    assert [*rows["Toy", "TipAdapter"].values()] == ["0.00"] * 3
