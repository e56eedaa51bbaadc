"""What training takes: means by hand, and what may not be averaged."""

from __future__ import annotations

import pytest

from trainers.hegraph.results.costs import complexity
from trainers.hegraph.utils.errors import UserError


@pytest.fixture
def timed(run):
    """Function of a seed, seconds of training and other keys: the record of a run with its times."""

    def make(seed: int = 1, seconds: float = 6.0, epochs: int = 3, **changes) -> dict:
        measured = {"seconds": {"training": seconds}, "epochs": epochs, "num_parameters": 1000, "peak_memory_mb": 500.0}
        return run(seed, **measured | {"device": "cpu", "threads": 2} | changes)

    return make


def test_seconds_per_epoch_are_means_over_seeds(timed, cells):
    assert cells(complexity([timed(1, 6.0), timed(2, 9.0)])) == {
        ("HeGraphAdapter",): {
            "epochs": "3", "seconds per epoch": "2.500", "seconds in all": "7.50", "trained parameters": "1000",
            "peak memory (MB)": "500",
        }
    }  # fmt: skip


def test_a_method_without_epochs_has_seconds_in_all_only(timed, cells):
    row = cells(complexity([timed(1, 2.0, 0, trainer="TipAdapter", variant="", num_parameters=0)]))["TipAdapter",]
    assert (row["epochs"], row["seconds per epoch"], row["seconds in all"]) == ("", "", "2.00")
    assert row["trained parameters"] == "0"


def test_a_run_that_tested_anothers_adapter_took_no_training(timed, cells):
    assert cells(complexity([timed(1, 6.0), timed(2, 0.0, 0, adapter_from="x")]))["HeGraphAdapter",]["epochs"] == "3"


@pytest.mark.parametrize("change", [{"device": "H100"}, {"threads": 8}])
def test_times_of_different_machines_are_refused(timed, change):
    with pytest.raises(UserError, match="different machines"):
        complexity([timed(1), timed(2, **change)])


def test_collected_records_hold_no_times(run):
    with pytest.raises(UserError, match="collect"):
        complexity([run()])


def test_a_method_that_chose_on_val_has_no_seconds_per_epoch(timed, cells):
    table = complexity([timed(trainer="LinearProbe", variant="", selected_on="val")])
    row = cells(table)["LinearProbe",]
    assert (row["epochs"], row["seconds per epoch"], row["seconds in all"]) == ("3", "", "6.00")
