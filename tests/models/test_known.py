"""What a model folder keeps of the scores of known images."""

from __future__ import annotations

import json

import pytest
import torch

from trainers.hegraph.models.folder import CONFIG, load_model, save_model
from trainers.hegraph.training.rejection import KnownScores
from trainers.hegraph.utils.errors import UserError

KNOWN = KnownScores(tuple(0.1 * step for step in range(101)), "val", 12)


def edit(folder, change) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def test_known_scores_and_class_nodes_are_read_as_they_were_saved(tmp_path, saved_model, unit_features):
    nodes = unit_features(3, 8, seed=5)
    save_model(saved_model(known=KNOWN, class_nodes=nodes), tmp_path / "model")
    read = load_model(tmp_path / "model")
    assert read.known == KNOWN
    assert torch.equal(read.class_nodes, nodes.half().float())


def test_a_folder_of_an_earlier_version_has_no_threshold_and_says_so(tmp_path, saved_model):
    save_model(saved_model(), tmp_path / "model")
    assert "known" not in json.loads((tmp_path / "model" / CONFIG).read_text())
    read = load_model(tmp_path / "model")
    assert read.known is None and read.class_nodes is None
    with pytest.raises(UserError, match="train it again"):
        read.is_known(torch.zeros(1, 3), 0.95)


def test_an_image_is_known_from_the_threshold_on(saved_model):
    model = saved_model(known=KNOWN, temperature=2.0)  # the threshold for 50 % is 5
    highest = torch.tensor([10.0, 9.9, 10.1])
    logits = torch.stack([highest, torch.full((3,), -1e4), torch.full((3,), -1e4)], dim=1)
    assert model.is_known(logits, 0.5).tolist() == [True, False, True]
    assert model.is_known(logits, 0.9).tolist() == [True, True, True]


@pytest.mark.parametrize("keep", [0, 1, 95, -0.5, float("nan")])
def test_a_share_that_is_none_is_refused(saved_model, keep):
    with pytest.raises(UserError, match="keep must lie between 0 and 1, as 0.95, got "):
        saved_model(known=KNOWN).is_known(torch.zeros(1, 3), keep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda known: known["quantiles"].pop(), "known.quantiles"),
        (lambda known: known["quantiles"].reverse(), "quantiles must not fall"),
        (lambda known: known.update(score="luck"), "known.score"),
        (lambda known: known["quantiles"].__setitem__(100, float("nan")), "known.quantiles"),
    ],
)
def test_damaged_known_scores_are_refused(tmp_path, saved_model, change, message):
    save_model(saved_model(known=KNOWN), tmp_path / "model")
    edit(tmp_path / "model", lambda config: change(config["known"]))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "model")
