"""The plain text of a comparison: every experiment with its deviation and every seed."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.table import as_text


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


def test_a_seed_that_a_method_does_not_have_is_left_blank(run):
    shown = text([run(1, 80.0), run(2, 82.0), run(2, 61.0, trainer="TipAdapter", variant="")])
    assert "seeds 1, 2" in shown
    assert "  TipAdapter           61.00      -         61.00\n" in shown


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
