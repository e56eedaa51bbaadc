"""Runs that are no independent observations: other backbones, rules, sources, and splits that occur several times.

The right interval is that of the runs without their copies. Taken for further data sets, n copies would make it
narrower by the square root of n.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from trainers.hegraph.commands.results import main
from trainers.hegraph.results.paired import paired_differences, paired_table
from trainers.hegraph.results.paired_runs import read_runs
from trainers.hegraph.results.records import SPLIT, ImageFiles
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import hash_json, write_json

TASKRES = {"trainer": "TaskRes", "variant": ""}
OTHER_CLASSES = {"rule": "other classes", "trained_on": "Source"}
RIGHT = {1: 40, 2: 60, 3: 50}  # seed -> number of 100 images that our model classifies correctly, and the other one not


@pytest.fixture
def pair(finish) -> Callable[..., None]:
    """Function that writes runs of two methods with three seeds, whose difference is `RIGHT`, and a changed record."""

    def make(folder: str, trained: bool = True, **changes) -> None:
        for seed, right in RIGHT.items():
            split = {"train": [[f"{changes.get('trained_on', 'own')}{seed}.jpg", 0, "a"]], "val": []}
            changes |= {"seed": seed, "split_hash": hash_json(split)}
            for name, wrong, method in (("ours", 100 - right, {}), ("theirs", 100, TASKRES)):
                path = finish(f"{folder}/{name}{seed}", [0] * (100 - wrong) + [1] * wrong, **(changes | method))
                if trained:
                    write_json(path / SPLIT, split)

    return make


def rows(text: str) -> list[str]:
    """Rows of tables with the difference to TaskRes."""
    return [line for line in text.splitlines() if line.startswith("| TaskRes |")]


def test_two_backbones_have_two_tables(pair, tmp_path):
    pair("one", backbone="RN50/openai")
    [single] = rows(paired_table([tmp_path / "one"]))
    pair("two", backbone="RN101/openai")
    text = paired_table([tmp_path])
    assert rows(text) == [single, single]
    captions = [line for line in text.splitlines() if line.startswith("Accuracy of")]
    assert [caption.split("; ")[1] for caption in captions] == ["RN50/openai", "RN101/openai"]
    with pytest.raises(UserError, match="expected runs of one backbone and one source, got RN50/openai and RN101"):
        paired_differences(read_runs([tmp_path]))


def test_models_of_two_sources_have_two_tables(pair, tmp_path):
    pair("own")
    [single] = rows(paired_table([tmp_path]))
    pair("tested", trained=False, adapter_from=None, rule="same classes", trained_on="Source")
    text = paired_table([tmp_path])
    assert rows(text) == [single, single]
    assert "; mini/mini, models trained on Source (same classes); same seeds" in text


def test_models_tested_on_two_data_sets_are_the_same_draws(pair, tmp_path):
    for number in (1, 2):
        pair(f"B{number}", trained=False, dataset=f"B{number}", **OTHER_CLASSES)
    differences = paired_differences(read_runs([tmp_path])).differences["TaskRes"][4]
    values = 100.0 * np.array([np.arange(100) < right for right in RIGHT.values()])  # of each data set, [3, 100]
    of_images = values.mean(axis=0)
    of_draws = values.mean(axis=1)
    images = of_images.var(ddof=1) / 100
    residuals = ((values - of_images - of_draws[:, None] + values.mean()) ** 2).sum() / (99 * 2) / 300
    draws = (2 * of_draws).var(ddof=1) / 3  # of the sum of two data sets, with their covariance
    variance = 2 * images + draws - 2 * residuals
    freedom = variance**2 / (2 * images**2 / 99 + draws**2 / 2 + 2 * residuals**2 / 198)
    half_width = t.ppf(0.975, freedom) * variance**0.5 / 2
    assert differences == pytest.approx((50, 50 - half_width, 50 + half_width))


def test_tests_of_models_share_the_training_images_of_their_run(finish, tmp_path):
    """All seeds of an exhausted pool have the same images, in another order, and so another hash of their split."""
    for seed in (1, 2):
        split = {"train": [["x.jpg", 0, "a"], ["y.jpg", 0, "a"]][:: 3 - 2 * seed], "val": []}
        write_json(tmp_path / f"trained{seed}" / SPLIT, split)
        for name, method in (("ours", {}), ("theirs", TASKRES)):
            origin = {"split_hash": hash_json(split), "adapter_from": str(tmp_path / f"trained{seed}" / "model")}
            finish(f"tests/{name}{seed}", [0, 0, 1, 1], seed=seed, **OTHER_CLASSES, **origin, **method)
    caption = paired_table([tmp_path / "tests"]).splitlines()[0]
    assert caption.endswith("; given these training images: Toy with 4 shots")
    for seed in (1, 2):
        (tmp_path / f"trained{seed}" / SPLIT).unlink()
    caption = paired_table([tmp_path / "tests"]).splitlines()[0]
    assert caption.endswith("no folder names the training images (split.json): Toy with 4 shots")


def test_equal_hash_is_one_split(finish, tmp_path):
    for seed in (1, 2):
        finish(f"ours{seed}", [0, 0, 1], seed=seed, split_hash="a", **OTHER_CLASSES)
        finish(f"theirs{seed}", [0, 1, 1], seed=seed, split_hash="a", **OTHER_CLASSES, **TASKRES)
    assert paired_table([tmp_path]).splitlines()[0].endswith("; given these training images: Toy with 4 shots")


def test_common_seeds_are_paired_and_named(pair, finish, tmp_path):
    pair("runs")
    [three] = rows(paired_table([tmp_path]))
    finish("runs/ours4", [0] * 100, seed=4)
    text = paired_table([tmp_path])
    assert rows(text) == [three]
    assert text.endswith("\n- TaskRes with 4 shots: only the common seeds 1, 2, 3 of 4 on Toy\n")


@pytest.mark.parametrize(("changes", "note"), [
    ({"seed": 2}, "no mean, because the methods have no seed in common"),
    ({"dataset": "Zoo"}, "no mean, because only one of the methods was tested on Toy, Zoo"),
])  # fmt: skip
def test_empty_cells_have_a_reason(finish, tmp_path, changes, note):
    finish("ours", [0, 0])
    finish("theirs", [0, 1], **TASKRES, **changes)
    text = paired_table([tmp_path])
    assert rows(text) == ["| TaskRes |  |"] and text.endswith(f"\n- TaskRes with 4 shots: {note}\n")


def test_other_training_images_are_named(pair, tmp_path):
    pair("runs")
    write_json(tmp_path / "runs" / "theirs1" / SPLIT, {"train": [["z.jpg", 0, "a"]], "val": []})
    record = tmp_path / "runs" / "theirs1" / "result.json"
    values = json.loads(record.read_text())
    values["split_hash"] = hash_json({"train": [["z.jpg", 0, "a"]], "val": []})
    record.write_text(json.dumps(values))
    assert "- TaskRes with 4 shots: other training images with equal seeds\n" in paired_table([tmp_path])


def test_other_files_with_equal_labels_are_rejected(finish, tmp_path):
    finish("ours", [0, 0], files=ImageFiles(root="here", test=["1.jpg", "2.jpg"]))
    finish("theirs", [0, 1], files=ImageFiles(root="moved", test=["1.jpg", "2.jpg"]), **TASKRES)
    assert rows(paired_table([tmp_path]))
    finish("wrong", [0, 1], files=ImageFiles(root="here", test=["1.jpg", "3.jpg"]), trainer="APE", variant="")
    with pytest.raises(UserError, match="wrong: not tested on the same images as"):
        read_runs([tmp_path])


def test_a_single_method_is_refused(finish, tmp_path):
    finish("ours", [0, 0])
    with pytest.raises(UserError, match="expected runs of HeGraphAdapter and of other methods"):
        paired_table([tmp_path])


def test_groups_of_no_run_are_an_error(finish, tmp_path):
    finish("ours", [0, 0])
    with pytest.raises(UserError, match="unknown data set of --groups 'Zoo'"):
        read_runs([tmp_path], {"Zoo": np.arange(2)})


def test_paired_command_prints_the_tables(pair, tmp_path, capsys):
    pair("runs")
    assert main(["paired", str(tmp_path)]) == 0
    assert capsys.readouterr().out == paired_table([Path(tmp_path)])
