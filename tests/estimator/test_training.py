"""Training on a support set: classes without images, options of a loaded model."""

import numpy as np
import pytest
import torch
from training_free import training_free

from trainers.hegraph import UserError, load_cfg
from trainers.hegraph.estimator import training
from trainers.hegraph.estimator.training import Origin, changed_options, task_of
from trainers.hegraph.models.support_set import SupportSet

NODE = "TRAINER.HEGRAPHADAPTER."


@pytest.fixture
def model(data):
    return training_free().fit(data.X, data.y).model_


def selected(model, **values):
    """The model with options that its run selected on val images."""
    return model.model_copy(update={"trained_on": model.trained_on.model_copy(update={"selected": values})})


def test_class_without_text_is_named(data):
    with pytest.raises(UserError, match="classes without images, such as 'emu', need text_features or a backbone"):
        training_free().add_class("emu")


def test_selected_options_are_kept(model):
    found = changed_options(selected(model, keys=[f"{NODE}ALPHA_C"], value=[7.0]))
    assert found[f"{NODE}ALPHA_C"] == 7.0


@pytest.mark.parametrize(("values", "reason"), [
    ({"keys": [f"{NODE}ALPHA_C"]}, "value: Field required"),
    ({"keys": "ALPHA_C", "value": [7.0]}, "keys"),
    ({"keys": ["NO.KEY"], "value": [7.0]}, "NO.KEY"),
], ids=["missing", "text", "unknown"])  # fmt: skip
def test_unsupported_options_are_reported_with_the_reason(model, values, reason, caplog):
    assert changed_options(selected(model, **values)) == {}
    assert "so further training uses the default: " in caplog.text and reason in caplog.text


def test_options_by_shots_are_filled_again(data):
    rows = np.concatenate([np.flatnonzero(data.y == label)[:1] for label in range(4)])
    assert not [key for key in changed_options(training_free().fit(data.X[rows], data.y[rows]).model_) if NODE in key]


def test_memory_of_a_batch_is_at_most_all_images(data, monkeypatch):
    X = torch.from_numpy(data.X)
    support_set = SupportSet(np.arange(4), tuple("abcd"), X[None], torch.from_numpy(data.y), torch.zeros(120).long())
    bank = task_of(support_set, Origin.of_task(None, None, False), load_cfg()).bank()
    sizes = []
    monkeypatch.setattr(training, "refuse_beyond_memory", lambda num_bytes, what, device: sizes.append(num_bytes))
    for batch in (4, 120, 1000):
        training.check_memory(bank, batch, "cpu")
    assert sizes[0] < sizes[1] == sizes[2]
