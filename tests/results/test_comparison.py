"""Comparison of methods: cells, settings, cases, training costs and calibration."""

import pytest

from trainers.hegraph.baselines import METHODS
from trainers.hegraph.results.comparison import base_to_new, calibration_table, compare, complexity
from trainers.hegraph.results.figures import curves, reliability_diagrams
from trainers.hegraph.results.scores import read_quotes
from trainers.hegraph.results.settings import name_cases, read_cases, shortest_names, split_sweeps
from trainers.hegraph.results.table import Table, as_text
from trainers.hegraph.utils.errors import UserError

BASE = {"DATASET.SUBSAMPLE_CLASSES": "base"}
TIP = {"trainer": "TipAdapter", "variant": ""}
ALPHA, BETA = "TRAINER.X.ALPHA", "TRAINER.X.BETA"


def target(accuracy: float | None, zero_shot: float = 40.0, rule: str = "same classes", **changes) -> dict:
    test = {"accuracy": accuracy, "accuracy_zero_shot": zero_shot, "num_test": 9, "num_classes": 3, "rule": rule}
    return test | changes


def cells(table: Table) -> dict[tuple, dict[str, str]]:
    """Rows of a table without bold: labels -> {column header: text}."""
    heads = list(table.columns.values())
    return {labels: dict(zip(heads, row[len(labels) :])) for labels, row in zip(table.labels, table.text_rows(str))}


def shown(*args, **options) -> dict[tuple, list[str]]:
    """Rows of `compare`: labels -> scores."""
    return {labels: [*row.values()] for labels, row in cells(compare(*args, **options)).items()}


def test_rows_are_methods_and_columns_are_shots(run):
    runs = [
        run(1, 80.0), run(2, 84.0), run(1, 1.0, shots=-1), run(1, 60.0, variant="T-N"), run(1, 70.0, **TIP),
        run(1, 65.0, trainer="Another", variant=""), run(1, shots=16, accuracy_text=None),
    ]  # fmt: skip
    assert shown(runs) == {
        ("zero-shot",): ["50.00 ± 0.00", "50.00 (n = 1)", "50.00 (n = 1)"],
        ("TipAdapter",): ["70.00 (n = 1)", "", ""], ("Another",): ["65.00 (n = 1)", "", ""],
        ("HeGraphAdapter(T-N)",): ["60.00 (n = 1)", "", ""],
        ("HeGraphAdapter(T)",): ["81.00 ± 25.41", "", "0.00 (n = 1)"],
        ("HeGraphAdapter",): ["82.00 ± 25.41", "80.00 (n = 1)", "1.00 (n = 1)"],
    }  # fmt: skip
    table = compare(runs)
    assert [*table.columns.values()] == ["4", "16", "all"]
    assert table.caption == (
        "Accuracy on test (%) by shots, Toy, mini/mini; mean ± half-width of its 95% interval "
        "for these test images (Student's t) over n = 1 "
        "to 2 seeds"
    )
    assert compare(runs[:1]).caption.endswith(" by shots, Toy, mini/mini; 1 seed")
    assert compare(runs[:2], intervals=False).caption.endswith("; mean over n = 2 seeds")


def test_missing_cell_leaves_no_mean_over_data_sets(run):
    runs = [
        run(1, 60.0, shots=16), run(1, 20.0), run(2, 30.0), run(1, 80.0, shots=16, dataset="Zoo"),
        run(1, 50.0, dataset="Zoo"), run(1, 9.0, **TIP), run(1, 70.0, shots=2), run(1, 70.0, shots=2, **TIP),
        run(1, 90.0, shots=2, dataset="Zoo", **TIP),
    ]  # fmt: skip
    rows = shown(runs[::-1], intervals=False)
    assert list(dict.fromkeys(labels[0] for labels in rows)) == ["Toy", "Zoo", "mean of 2"]
    assert {labels: row for labels, row in rows.items() if labels[1] in ("TipAdapter", "HeGraphAdapter")} == {
        ("Toy", "TipAdapter"): ["70.00 (n = 1)", "9.00 (n = 1)", ""],
        ("Toy", "HeGraphAdapter"): ["70.00 (n = 1)", "25.00", "60.00 (n = 1)"],
        ("Zoo", "TipAdapter"): ["90.00 (n = 1)", "", ""],
        ("Zoo", "HeGraphAdapter"): ["", "50.00 (n = 1)", "80.00 (n = 1)"],
        ("mean of 2", "TipAdapter"): ["80.00 (n = 1)", "", ""],
        ("mean of 2", "HeGraphAdapter"): ["", "37.50 (unequal seeds)", "70.00 (n = 1)"],
    }  # fmt: skip


def test_own_folders_are_separate_data_sets(run):
    one, other = (run(1, value, dataset="ImageFolder", source=name) for name, value in (("a", 60.0), ("b", 80.0)))
    assert shown([one, other], "dataset")["HeGraphAdapter",] == ["60.00", "80.00", "70.00"]
    assert [axis.get_title() for axis in curves([one, other]).axes] == ["mean of 2", "a", "b"]
    evaluated = compare([other | {"rule": "same classes", "trained_on": "a"}], "dataset")
    assert "; b with models trained on a (same classes)" in evaluated.caption


def test_mean_over_data_sets_by_seed(run):
    runs = [run(1, 60.0), run(2, 70.0), run(1, 80.0, dataset="Zoo"), run(2, 94.0, dataset="Zoo")]
    # seeds: (60 + 80) / 2 = 70 and (70 + 94) / 2 = 82; t of 1 degree of freedom 12.706 * sqrt(72) / sqrt(2)
    assert shown(runs)["mean of 2", "HeGraphAdapter"] == ["76.00 ± 76.24"]
    assert shown(runs[:3])["mean of 2", "HeGraphAdapter"] == ["72.50 (unequal seeds)"]


def test_mean_skips_data_sets_without_these_shots(run):
    runs = [run(1, value, dataset=name) for name, value in (("A", 60.0), ("B", 70.0), ("C", 80.0))]
    runs += [run(1, value, dataset=name, shots=16) for name, value in (("A", 90.0), ("B", 92.0))]
    assert shown(runs)["mean of 3", "HeGraphAdapter"] == ["70.00", ""]
    assert shown(runs)["mean of 2", "HeGraphAdapter"] == ["", "91.00"]


def test_baselines_are_in_registry_order(run):
    runs = [run(1, 50.0, trainer=name, variant="") for name in sorted(METHODS)]
    assert [labels[-1] for labels in shown(runs)] == ["zero-shot", *list(METHODS)[1:]]


def test_recipes_and_bases_are_separate_methods(run):
    keys = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}
    paper = {f"TRAINER.HEGRAPHADAPTER.{key}": value for key, value in keys.items()}
    rows = shown([run(1, 70.0, paper), run(1, 80.0, paper | {"TRAINER.HEGRAPHADAPTER.NOISE": 0.1})])
    assert rows["HeGraphAdapter(paper)",] == ["70.00"] and rows["HeGraphAdapter",] == ["80.00"]
    adaptation = run(1, 70.0, trainer="ZeroShot", variant="", protocol="transductive")
    tip = run(1, 65.0, trainer="StatA", variant="", protocol="transductive", config={"TRAINER.STATA.BASE": "ZeroShot"})
    rows = shown([adaptation, tip])
    assert rows["StatA(zero-shot)",] == ["65.00"]
    assert rows["HeGraphAdapter(zero-shot)",] == ["70.00"] and rows["zero-shot",] == ["50.00"]


def test_text_variant_prefers_its_own_runs(run):
    full = [run(seed, 80.0 + seed) for seed in (1, 2)]
    text = [run(seed, 70.0, variant="T") for seed in (1, 2)]
    assert shown(full + text, intervals=False)["HeGraphAdapter(T)",] == ["70.00"]
    assert shown(full + text[:1], intervals=False)["HeGraphAdapter(T)",] == ["80.50"]


def test_protocols_have_separate_rows(run):
    protocol = "transductive"
    runs = [run(1, 80.0), run(1, 90.0, protocol=protocol), run(2, 80.0, protocol=None)]
    table = compare(runs)
    assert table.heads == ("protocol", "method")
    assert cells(table)["inductive", "HeGraphAdapter"] == {"4": "80.00 ± 0.00"}
    assert cells(table)[protocol, "HeGraphAdapter"] == {"4": "90.00 (n = 1)"}
    assert sum("best" in row[2] for row in table.text_rows("best {}".format)) == 2  # of each protocol
    assert cells(compare(runs, "protocol"))["HeGraphAdapter",] == {
        "inductive": "80.00 ± 0.00", protocol: "90.00 (n = 1)",
    }  # fmt: skip
    assert protocol in compare(runs[1:2]).caption and "inductive" not in compare(runs[:1]).caption


def test_unequal_numbers_of_images_have_separate_rows(run):
    tail = {"shots_per_class": "long-tailed:1-4"}
    runs = [run(1, 80.0), run(1, 90.0, **tail), run(2, 80.0)]
    table = compare(runs)
    assert table.heads == ("shots per class", "method")
    assert cells(table)["equal", "HeGraphAdapter"] == {"4": "80.00 ± 0.00"}
    assert cells(table)["long-tailed:1-4", "HeGraphAdapter"] == {"4": "90.00 (n = 1)"}
    assert "long-tailed:1-4" in compare(runs[1:2]).caption and "equal" not in compare(runs[:1]).caption
    with pytest.raises(UserError, match="runs with one shots per class"):
        curves(runs)


def test_macro_accuracy_replaces_accuracy(run):
    macro = {"macro_accuracy": 70.0, "macro_accuracy_zero_shot": 40.0}
    table = compare([run(1, **macro), run(2, **macro)], macro=True)
    assert cells(table) == {("zero-shot",): {"4": "40.00 ± 0.00"}, ("HeGraphAdapter",): {"4": "70.00 ± 0.00"}}
    assert table.caption.startswith("Macro accuracy on test (%) by shots")
    assert "macro accuracy on 123 test images (%)" in as_text(table)


def test_runs_without_macro_accuracy_are_skipped(run, caplog):
    table = compare([run(1, macro_accuracy=70.0, macro_accuracy_zero_shot=40.0), run(2)], macro=True)
    assert cells(table)["HeGraphAdapter",] == {"4": "70.00"}
    assert "1 of 2 runs are without a macro accuracy and are skipped" in caplog.text
    with pytest.raises(UserError, match="expected runs with a macro accuracy, got none"):
        compare([run(1)], macro=True)


@pytest.mark.parametrize(("by", "quotes", "words"), [("target", None, "targets"), ("shots", "2", "the paper has no")])
def test_macro_accuracy_of_targets_and_paper_is_refused(run, by, quotes, words):
    with pytest.raises(UserError, match=words):
        compare([run(1, macro_accuracy=70.0)], by, quotes and read_quotes(quotes), macro=True)


def test_model_tested_elsewhere_counts_as_text_variant(run):
    scores = {"macro_accuracy": 70.0, "macro_accuracy_zero_shot": 40.0, "rule": "same classes", "trained_on": "Toy"}
    assert ("HeGraphAdapter(T)",) in cells(compare([run(1, **scores)], macro=True))


# Comparable runs


@pytest.mark.parametrize(("other", "words"), [
    ({"config": {ALPHA: 0.5}}, "HeGraphAdapter, 4: different config: TRAINER.X.ALPHA;.* --by setting"),
    ({"config": {f"X.A{n}": n for n in range(4)}}, r"config: X.A0, X.A1, X.A2, \.\.\.;"),
    ({"versions": {"torch": "2.4", "numpy": "2.4"}}, "different versions: torch;"),
    ({"num_test": 99}, "different num_test: 123, 99;"), ({"test_set": "b"}, "different test_set: a, b;"),
    ({"seed": 1}, "2 runs have seed 1"),
    ({"seed": 1, "accuracy_zero_shot": 51.0, **TIP}, r"disagree about zero-shot CLIP \(50.00 and 51.00\)"),
    ({"rule": "other classes"}, "different rule: none, other classes"),
])  # fmt: skip
def test_cell_rejects_different_runs(run, other, words):
    with pytest.raises(UserError, match=words):
        compare([run(1, test_set="a"), run(**{"seed": 2} | other)])


@pytest.mark.parametrize(("key", "values"), [("test_set", ("a", "b")), ("num_test", (123, 99))])
def test_methods_with_other_test_images_are_not_ranked(run, key, values):
    scores = {"accuracy_zero_shot": None}  # nothing that the runs of both methods have
    ours = run(1, **scores, **{key: values[0]})
    with pytest.raises(UserError, match=rf"^4, Toy, mini/mini.*: different {key}: |^Toy, mini/mini.*different {key}: "):
        compare([ours, run(1, **scores, **{key: values[1]}, **TIP)])
    assert ("TipAdapter",) in shown([ours, run(1, **scores, **{key: values[0]}, **TIP)])
    assert shown([ours, run(1, **scores, **{key: values[1]}, **TIP, shots=8)])  # another column


def test_caption_names_seeds_with_one_split(run):
    runs = [run(seed, split_hash=split, shots=shots) for seed, split, shots in ((1, "a", 4), (2, "b", 4), (1, "c", 16))]
    assert "same training images" not in compare(runs).caption
    again = run(2, split_hash="c", shots=16)
    assert "; several seeds have the same training images: Toy with 16 shots;" in compare([*runs, again]).caption


def test_older_records_and_other_methods_are_accepted(run):
    assert shown([run(1, test_set="a"), run(2)])["HeGraphAdapter",] == ["80.00 ± 0.00"]
    assert ("TipAdapter",) in shown([run(1), run(1, versions={"torch": "2.4"}, **TIP)])


# Targets


def test_comparison_by_target(run):
    tip = {"A": target(60.0), "B": target(20.0, 30.0)}
    table = compare([run(1, 80.0, targets=tip, **TIP), run(2, 99.0, trainer="Other", variant="")], "target")
    assert "targets with same classes" in table.caption
    assert cells(table) == {
        ("zero-shot",): {"Toy (source)": "50.00", "A": "40.00", "B": "30.00", "mean of targets": "35.00"},
        ("TipAdapter",): {"Toy (source)": "80.00", "A": "60.00", "B": "20.00", "mean of targets": "40.00"},
    }


def test_targets_need_a_rule_and_equal_images(run):
    full = {"A": target(60.0), "B": target(50.0)}
    assert shown([run(targets=full)], "target")["HeGraphAdapter(T)",] == ["79.00", "60.00", "50.00", "55.00"]
    runs = [run(trainer="APE", variant="", targets={"A": target(None, rule="other classes")})]
    assert list(shown(runs, "target")) == [("zero-shot",)]
    with pytest.raises(UserError, match="expected runs with scores for this table, got none"):
        compare([run(targets={"A": {}})], "target")
    with pytest.raises(UserError, match="different num_test: 10, 9;"):
        compare([run(1, targets={"A": target(60.0)}), run(2, targets={"A": target(60.0, num_test=10)})], "target")


def test_evaluated_models_count_by_rule(run):
    """Tests with --eval-only, whose records have a "rule"."""
    zoo = {"dataset": "Zoo", "trained_on": "Toy", "num_classes": 3, "num_test": 9, "accuracy_zero_shot": 40.0}
    same, other = (run(1, 60.0, accuracy_text=60.0, rule=f"{rule} classes", **zoo) for rule in ("same", "other"))
    assert shown([run(1, 80.0), same, run(1, 70.0, **TIP), same | TIP], "dataset") == {
        ("zero-shot",): ["50.00", "40.00", "45.00"], ("TipAdapter",): ["70.00", "60.00", "65.00"],
        ("HeGraphAdapter(T)",): ["79.00", "60.00", "69.50"], ("HeGraphAdapter",): ["80.00", "", ""],
    }  # fmt: skip
    rows = shown([run(1, 80.0), other], "dataset")
    assert rows["HeGraphAdapter(T)",] == ["79.00", "", ""] and rows["HeGraphAdapter",] == ["80.00", "60.00", "70.00"]
    alone = compare([same], "dataset")
    assert "; Zoo with models trained on Toy (same classes)" in alone.caption and alone.columns == {"Zoo": "Zoo"}


# Base to new


def test_base_to_new_has_harmonic_mean_by_seed(run):
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
    with pytest.raises(UserError, match="train with --target-datasets NAME:new DATASET.SUBSAMPLE_CLASSES base"):
        base_to_new([runs[2], run(2, 80.0, BASE)])


def test_new_classes_are_found_by_an_alias_of_the_data_set(run):
    tested = run(
        1, 80.0, BASE, dataset="DescribableTextures", targets={"dtd:new": target(40.0), "Zoo:new": target(9.0)}
    )
    assert cells(base_to_new([tested]))["HeGraphAdapter(T)",]["new"] == "40.00"


def test_harmonic_mean_over_data_sets_and_of_zero(run):
    runs = [
        run(1, 80.0, BASE, targets={"Toy:new": target(40.0)}),
        run(1, 60.0, BASE, dataset="Zoo", targets={"Zoo:new": target(60.0)}),
        run(1, 0.0, BASE, targets={"Toy:new": target(0.0)}, **TIP),
    ]
    rows = cells(base_to_new(runs))
    assert [*rows["mean of 2", "HeGraphAdapter(T)"].values()] == ["69.00", "50.00", f"{2 * 69 * 50 / 119:.2f}"]
    assert [*rows["Toy", "TipAdapter"].values()] == ["0.00"] * 3


# Settings


def test_shortest_name_is_a_unique_suffix():
    keys = {"OPTIM.LR", "X.LR", "X.VISUAL_LR", "X.ALPHA"}
    assert shortest_names(sorted(keys), keys) == {
        "OPTIM.LR": "OPTIM.LR", "X.LR": "X.LR", "X.VISUAL_LR": "VISUAL_LR", "X.ALPHA": "ALPHA",
    }  # fmt: skip


def test_sweep_values_are_sorted_columns(run, caplog):
    sweep = [run(seed, 80 + a, {ALPHA: a}) for a in (10.0, 0.0, 2.0) for seed in (1, 2)]
    table = compare([*sweep, run(1, trainer="APE", variant="")], "setting")
    assert [*table.columns] == ["ALPHA=0", "ALPHA=2", "ALPHA=10"]
    assert cells(table)["HeGraphAdapter",]["ALPHA=10"] == "90.00 ± 0.00" and ("APE",) not in cells(table)
    assert "where not named" not in table.caption and "1 of 7 runs" in caplog.text
    assert [*compare(sweep[:2], "setting").columns.values()] == ["one setting"]


def test_settings_are_named_by_uncommon_values(run):
    runs = [run(1), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0}), run(1, config={BETA: "auto"})]
    table = compare(runs, "setting")
    assert [*table.columns] == ["ALPHA=0.1, BETA=1", "ALPHA=0.5", "BETA=2", "BETA=auto"]
    assert "where not named, ALPHA=0.1, BETA=1" in table.caption
    assert compare([run(1), run(1, config={"NEW": True})], "setting").columns.keys() == {"NEW=True", "NEW=None"}


def test_split_sweeps_counts_the_middle_once(run):
    middle, again = run(1), run(1, adapter_from="trained/seed1")
    low, high, other = run(1, config={ALPHA: 0.0}), run(1, config={ALPHA: 0.5}), run(1, config={BETA: 2.0})
    tip = run(1, trainer="TipAdapter", variant="")
    plain, sweeps = split_sweeps([again, low, middle, run(2), high, other, tip])
    assert (plain, sweeps) == ([middle, run(2), tip], [[low, middle, run(2), high, other]])


# Cases


def test_run_belongs_to_case_with_most_keys(run, tmp_path, caplog):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"{{set: {{{BETA}: 1.0}}, cases: {{plain: {{}}, 1: {{{ALPHA}: 0}}, both: {{{ALPHA}: 0, {BETA}: 2.0}}}}}}"
    )
    runs = [
        run(1, 83.0, {ALPHA: 0.0, BETA: 2.0}), run(1, 82.0, {ALPHA: 0.0}), run(1, 81.0), run(2, 83.0),
        run(1, 70.0, {ALPHA: 0.0}, shots=16), run(1, 1.0, {BETA: 3.0}),
    ]  # fmt: skip
    shown = cells(compare(runs, intervals=False, cases=read_cases(grid)))
    assert [*shown] == [("zero-shot",), ("plain",), ("1",), ("both",)]
    assert [shown[name,]["4"] for name in ("plain", "1", "both")] == ["82.00", "82.00 (n = 1)", "83.00 (n = 1)"]
    assert shown["1",]["16"] == "70.00 (n = 1)" and "1 of 6 runs are of no case and are skipped" in caplog.text
    with pytest.raises(UserError, match="no run belongs to one of the cases plain, 1, both"):
        name_cases(runs[5:], read_cases(grid))
    with pytest.raises(UserError, match="expected cases of one method, got runs of HeGraphAdapter, TipAdapter;"):
        name_cases([runs[0], runs[0] | {"trainer": "TipAdapter"}], read_cases(grid))


@pytest.mark.parametrize(("value", "recorded"), [
    ("''", None), ("1e-3", 0.001), ("'0.001'", 0.001), ("2", 2.0), ("[1, 2]", [1, 2]), ("'(1, 2)'", [1, 2]),
    ("yes", True), ("16", "16"),
])  # fmt: skip
def test_values_of_cases_are_converted_as_in_a_sweep(run, tmp_path, value, recorded):
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"cases: {{plain: {{}}, one: {{X.KEY: {value}}}, other: {{X.KEY: 3.5}}}}")
    config = {} if recorded is None else {"X.KEY": recorded}
    [named] = name_cases([run(1, config=config)], read_cases(grid))
    assert named["case"] == "one"


@pytest.mark.parametrize("text", ["", "cases: {a: 1}", "cases: {}"])
def test_file_without_cases_is_rejected(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=r"grid\.yaml names no cases"):
        read_cases(tmp_path / "grid.yaml")


# Training costs


def test_training_costs_are_means_over_seeds(run):
    tested = run(3, seconds={"training": 0.0}, epochs=0, adapter_from="x")
    table = complexity([run(1), run(2, seconds={"training": 9.0}), tested])
    assert cells(table) == {
        ("HeGraphAdapter",): {
            "epochs": "3", "seconds per epoch": "2.500", "seconds in all": "7.50", "trained parameters": "1000",
            "peak memory (MB)": "500",
        }
    }  # fmt: skip
    assert table.caption == "Training costs, means over seeds, cpu, 2 threads, Toy, mini/mini, 4 shots"
    assert not any("best" in text for row in table.text_rows("best {}".format) for text in row)
    [row] = cells(complexity([run(1), run(2, peak_memory_mb=None)])).values()
    assert (row["peak memory (MB)"], row["epochs"]) == ("", "3")  # of a number that not all have is no mean


def test_seconds_per_epoch_need_epochs_and_fixed_hyperparameters(run):
    rows = cells(complexity([run(epochs=0, **TIP), run(trainer="LinearProbe", variant="", selected_on="val")]))
    assert [*rows["TipAdapter",].values()][:3] == ["", "", "6.00"]
    assert [*rows["LinearProbe",].values()][:3] == ["3", "", "6.00"]


def test_training_costs_need_times_on_one_machine(run):
    with pytest.raises(UserError, match="different machines"):
        complexity([run(1), run(2, threads=8)])
    with pytest.raises(UserError, match="collect"):
        complexity([run(seconds={})])


# Calibration


def test_calibration_of_a_run_without_class_texts_has_one_row(calibrated):
    nameless = calibrated(1, 9.0, 2.0, 0.7)
    nameless["calibration"]["zero_shot"] = None
    assert [*cells(calibration_table([nameless]))] == [("HeGraphAdapter",)]


def test_calibration_table_has_method_and_zero_shot(calibrated, run):
    incomplete = calibrated(3)
    incomplete["calibration"]["after"] = None
    records = [calibrated(1, 9.0, 2.0, 0.7), calibrated(2, 7.0, 3.0, 0.9), run(2), incomplete]
    table = calibration_table(records)
    assert "NLL in nats, Brier score from 0 to 2, T the temperature, other columns in %" in table.caption
    table = cells(table)
    assert table["HeGraphAdapter",] == {
        "accuracy": "80.00", "macro F1": "79.00", "NLL": "0.500", "NLL at T": "0.400", "Brier": "0.300",
        "Brier at T": "0.250", "ECE": "8.00", "ECE at T": "2.50", "T": "0.80", "accepted": "",
        "coverage": "", "classes": "",
    }  # fmt: skip
    assert table["zero-shot",]["ECE"] == "5.00" and table["zero-shot",]["accuracy"] == "50.00"
    assert table["zero-shot",]["ECE at T"] == table["zero-shot",]["T"] == ""
    own = calibrated(1, 5.0, 1.5, 0.8, trainer="ZeroShot", variant="")
    row = cells(calibration_table([records[0], own]))["zero-shot",]
    assert (row["ECE"], row["ECE at T"], row["T"]) == ("5.00", "1.50", "0.80")
    with pytest.raises(UserError, match="expected runs with calibration scores, got none"):
        calibration_table(records[2:])
    own["calibration"]["zero_shot"]["accuracy"] = 51.0
    with pytest.raises(UserError, match=r"zero-shot, accuracy: the runs disagree about .* \(50.00 and 51.00\)"):
        calibration_table([records[0], own | {"trainer": "TaskRes"}])


def test_reliability_diagram_merges_runs(calibrated):
    other = calibrated(2)
    bins = other["calibration"]["after"]["bins"]
    bins["count"][8], bins["accuracy"][8] = 10, 90.0
    [axis] = reliability_diagrams([calibrated(1), other]).axes
    assert axis.get_title() == "HeGraphAdapter"
    _, before, after = (line.get_xydata().tolist() for line in axis.get_lines())
    assert before == [[10.0, 0.0], [60.0, 50.0], [90.0, 100.0]]
    assert after == [[10.0, 0.0], [60.0, (30 * 50.0 + 10 * 90.0) / 40], [90.0, 100.0]]


def with_counts(record: dict, counts: dict[int, int]) -> dict:
    """Record with a number of images in each bin."""
    for part in ("before", "after"):
        bins = record["calibration"][part]["bins"]
        bins["count"] = [counts.get(number, 0) for number in range(15)]
        bins["confidence"] = [float(number) for number in range(15)]
        bins["accuracy"] = [2.0 * number for number in range(15)]
    return record


@pytest.mark.parametrize(("counts", "dots"), [
    ({14: 30, 5: 6, 3: 4}, [[(5 * 6 + 3 * 4) / 10, 2 * (5 * 6 + 3 * 4) / 10], [14, 28]]),
    ({14: 4, 12: 6, 2: 9}, [[(14 * 4 + 12 * 6 + 2 * 9) / 19, 2 * (14 * 4 + 12 * 6 + 2 * 9) / 19]]),
    ({14: 9}, [[14, 28]]),
    ({14: 6, 1: 4}, [[(14 * 6 + 4) / 10, 2 * (14 * 6 + 4) / 10]]),
])  # fmt: skip
def test_bins_of_few_images_are_merged(calibrated, counts, dots):
    [axis] = reliability_diagrams([with_counts(calibrated(1), counts)]).axes
    _, before, after = (line.get_xydata().tolist() for line in axis.get_lines())
    assert before == after == [pytest.approx(dot) for dot in dots]


def test_accepted_is_averaged_if_all_runs_have_it(calibrated):
    records = [
        calibrated(seed, rejection={"rate": 0.95, "accepted": accepted}) for seed, accepted in ((1, 94.0), (2, 97.0))
    ]
    assert cells(calibration_table(records))["HeGraphAdapter",]["accepted"] == "95.50"
    assert cells(calibration_table([*records, calibrated(3)]))["HeGraphAdapter",]["accepted"] == ""
    records = [calibrated(1, after=2.0), calibrated(1, after=4.0, dataset="Other")]
    assert cells(calibration_table(records))["mean of 2", "HeGraphAdapter"]["ECE at T"] == "3.00"


def test_calibration_table_has_coverage_and_size(calibrated):
    sets = [{"nominal": 0.9, "coverage": coverage, "mean_size": size} for coverage, size in ((91.0, 1.5), (93.0, 1.7))]
    records = [calibrated(seed, prediction_sets=found) for seed, found in enumerate(sets, 1)]
    table = calibration_table(records)
    assert "coverage, classes: of prediction sets for 90%" in table.caption
    row = cells(table)["HeGraphAdapter",]
    assert (row["coverage"], row["classes"]) == ("92.00", "1.60")
