"""Training on a support set: classes without images, options of a loaded model."""

import numpy as np
import pytest
from training_free import training_free

from trainers.hegraph import UserError
from trainers.hegraph.estimator.training import changed_options

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
