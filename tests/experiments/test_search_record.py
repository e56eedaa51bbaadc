"""A search on val tells what it chose and counts all that it took; nothing is trained where nothing could be."""

from __future__ import annotations

import json

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments import tuning

NODE = "TRAINER.HEGRAPHADAPTER"


@pytest.fixture
def command(tiny_bank, tmp_path):
    def run(out: str, *more: str) -> int:
        arguments = ["--features", str(tiny_bank), "--shots", "4", "--output-dir", str(tmp_path / out), *more]
        return main([*arguments, "OPTIM.MAX_EPOCH", "2", f"{NODE}.MIN_STEPS", "0"])

    return run


def record(tmp_path, out: str) -> dict:
    return json.loads((tmp_path / out / "result.json").read_text())


def test_the_training_time_of_a_search_is_that_of_all_candidates(command, tmp_path, monkeypatch):
    taken = []

    def train(*args, **kwargs):
        trained = real(*args, **kwargs)
        taken.append(trained.training.seconds)
        return trained

    real = tuning.train_adapter
    monkeypatch.setattr(tuning, "train_adapter", train)
    assert command("out", "--select", "val") == 0
    assert len(taken) == 4
    assert record(tmp_path, "out")["seconds"]["training"] == pytest.approx(sum(taken), abs=0.001)


def test_the_record_of_a_search_and_of_a_test_of_its_model_say_what_was_chosen(command, tmp_path):
    grid = f'[["{NODE}.ALPHA_C", [0.5, 2.0]], ["{NODE}.BETA_C", [3.0]]]'
    assert command("out", "--select", "val", f"{NODE}.SELECT", grid) == 0
    assert command("again", "--eval-only", "--model-dir", str(tmp_path / "out")) == 0
    first, again = record(tmp_path, "out"), record(tmp_path, "again")
    assert first["selected"]["keys"] == [f"{NODE}.ALPHA_C", f"{NODE}.BETA_C"]
    assert first["selected"]["value"][1] == 3.0
    for key in ("accuracy", "selected_on", "selected"):
        assert again[key] == first[key]
    assert again["selected_on"] == "val"


@pytest.fixture
def chosen(command, tmp_path):
    """The chosen ALPHA_C of a run in "out", which is not the one that stands in the configuration (1), and others."""
    assert command("out", "--select", "val", f"{NODE}.ALPHA_C", "1.0", f"{NODE}.SELECT", GRID) == 0
    return record(tmp_path, "out")["selected"]["value"][0]


GRID = f'[["{NODE}.ALPHA_C", [0, 300]], ["{NODE}.BETA_C", ["7"]]]'


def test_a_chosen_value_may_be_given_again_when_its_model_is_tested(command, tmp_path, chosen):
    test = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    same = (f"{NODE}.ALPHA_C", str(chosen), f"{NODE}.BETA_C", "7.0")
    assert command("again", *test, *same) == 0
    for key in ("accuracy", "selected"):
        assert record(tmp_path, "again")[key] == record(tmp_path, "out")[key]


def test_another_value_than_the_chosen_one_is_refused_in_one_line(command, tmp_path, capsys, chosen):
    capsys.readouterr()
    other = 300.0 - chosen
    test = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    assert command("again", *test, f"{NODE}.ALPHA_C", str(other)) == 2
    assert capsys.readouterr().err == (
        f"error: the model got {NODE}.ALPHA_C {float(chosen)} on val and keeps it, but the configuration says {other}; "
        "leave the key as it was, or train again\n"
    )
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("selected", [{"keys": 1}, {"keys": ["NO.SUCH"], "value": [1]}, {"value": [1]}])
def test_a_model_with_another_account_of_its_choice_is_refused_in_one_line(command, tmp_path, capsys, chosen, selected):
    file = tmp_path / "out" / "model" / "config.json"
    config = json.loads(file.read_text())
    config["trained_on"]["selected"] = selected
    file.write_text(json.dumps(config))
    capsys.readouterr()
    assert command("again", "--eval-only", "--model-dir", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("variant", "zero", "named"),
    [
        ("T-N", ("ALPHA_NP",), "ALPHA_NP 0"),
        ("T-P", ("ALPHA_PP", "ALPHA_VP"), "ALPHA_PP 0 and ALPHA_VP 0"),
        ("T", ("ALPHA_PP", "ALPHA_VP", "ALPHA_NP"), "ALPHA_PP 0 and ALPHA_VP 0 and ALPHA_NP 0"),
    ],
)
def test_a_variant_without_a_message_is_refused_before_anything_is_written(
    command, tmp_path, capsys, variant, zero, named
):
    opts = [word for key in zero for word in (f"{NODE}.{key}", "0.0")]
    assert command("out", f"{NODE}.VARIANT", variant, *opts) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: VARIANT {variant} with {named} passes no message, so there is nothing to train")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_full_variant_still_moves_its_cache_without_any_other_message(command):
    opts = [word for key in ("ALPHA_PP", "ALPHA_VP", "ALPHA_NP") for word in (f"{NODE}.{key}", "0.0")]
    assert command("out", *opts) == 0
