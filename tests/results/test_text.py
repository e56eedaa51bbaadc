"""The plain text of a comparison: every experiment with its deviation and every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.table import as_text
from trainers.hegraph.utils.errors import UserError


def text(records: Sequence[dict], by: str = "shots") -> str:
    return as_text(compare(records, by))


def numbers(text: str, row: str) -> list[str]:
    """The cells of a row."""
    [line] = [line for line in text.splitlines() if line.split()[:1] == [row]]
    return line.split()[1:]


def test_an_experiment_is_laid_out_to_the_letter(run):
    assert text([run(2, 84.0), run(1, 80.0), run(3, 85.0)]) == (
        "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)\n"
        "                        mean    std  seeds 1, 2, 3\n"
        "  zero-shot            50.00   0.00  50.00  50.00  50.00\n"
        "  HeGraphAdapter(T)    82.00   2.65  79.00  83.00  84.00\n"
        "  HeGraphAdapter       83.00   2.65  80.00  84.00  85.00\n"
    )


def test_an_experiment_holds_mean_deviation_and_every_seed(run):
    shown = text([run(2, 84.0), run(1, 80.0), run(3, 85.0)])
    assert "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)" in shown
    assert "seeds 1, 2, 3" in shown
    # mean 83; squared distances 9 + 1 + 4 = 14; 14 / 2 = 7
    assert numbers(shown, "HeGraphAdapter") == ["83.00", "2.65", "80.00", "84.00", "85.00"]
    assert numbers(shown, "HeGraphAdapter(T)") == ["82.00", "2.65", "79.00", "83.00", "84.00"]
    assert numbers(shown, "zero-shot") == ["50.00", "0.00", "50.00", "50.00", "50.00"]


def test_one_seed_has_a_dash_for_its_deviation(run):
    assert numbers(text([run()]), "HeGraphAdapter") == ["80.00", "-", "80.00"]


def test_a_variant_has_a_row_of_its_own_name(run):
    shown = text([run(variant="T-N", accuracy=61.0)])
    assert numbers(shown, "HeGraphAdapter(T-N)") == ["61.00", "-", "61.00"]
    assert "HeGraphAdapter(T)" not in shown


def test_a_seed_that_a_method_does_not_have_is_left_blank(run):
    shown = text([run(1, 80.0), run(2, 82.0), run(2, 61.0, trainer="TipAdapter", variant="")])
    assert "seeds 1, 2" in shown
    assert "  TipAdapter           61.00      -         61.00\n" in shown


@pytest.mark.parametrize(("key", "other"), [("dataset", "Toys"), ("backbone", "RN50"), ("shots", 8)])
def test_experiments_are_not_averaged_with_one_another(run, key, other):
    shown = text([run(1, 80.0), run(1, 20.0, **{key: other})])
    own = [block for block in shown.split("\n\n") if "accuracy on 123 test images" in block]
    assert len(own) == 2
    assert sum(" 80.00 " in f"{block} " for block in map(flat, own)) == 1
    assert sum(" 20.00 " in f"{block} " for block in map(flat, own)) == 1


def flat(block: str) -> str:
    return " ".join(block.split())


@pytest.mark.parametrize(
    ("change", "name"), [({"variant": "T-P"}, "HeGraphAdapter(T-P)"), ({"trainer": "CoOp"}, "CoOp")]
)
def test_methods_of_one_experiment_have_rows_of_their_own(run, change, name):
    shown = text([run(1, 80.0), run(1, 20.0, **change)])
    assert shown.count("accuracy on") == 1
    assert numbers(shown, "HeGraphAdapter") == ["80.00", "-", "80.00"]
    assert numbers(shown, name) == ["20.00", "-", "20.00"]


def test_shot_counts_are_in_the_order_of_numbers(run):
    shown = text([run(shots=16), run(shots=2), run(shots=8)])
    assert shown.index(" 2 shots") < shown.index(" 8 shots") < shown.index(" 16 shots")


def test_data_sets_have_their_mean_below_them(run):
    shown = text([run(1, 80.0), run(1, 60.0, dataset="Zoo")])
    last = shown.split("\n\n")[-1]
    assert last.startswith("mean of 2, mini/mini, 4 shots, accuracy on test (%)\n")
    assert numbers(last, "HeGraphAdapter") == ["70.00", "-", "70.00"]


def test_any_columns_are_blocks(run):
    sweep: list[dict] = [run(1, 80 + a, {"TRAINER.X.ALPHA": a}) for a in (0.0, 0.5)]
    shown = text(sweep, "setting")
    assert "Toy, mini/mini, 4 shots, ALPHA=0, accuracy on 123 test images (%)\n" in shown
    assert "Toy, mini/mini, 4 shots, ALPHA=0.5, accuracy on 123 test images (%)\n" in shown


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"seed": 2, "config": {"TRAINER.X.ALPHA": 0.5}}, r"Toy, .*, 4: runs of different configurations"),
        ({"seed": 1, "accuracy": 90.0}, "seed 1 is there more than once"),
    ],
)
def test_runs_that_must_not_be_averaged_are_refused(run: Callable[..., dict], second: dict, words: str):
    with pytest.raises(UserError, match=words):
        text([run(1, 80.0), run(**second)])
