"""The default recipe runs the whole graph: each relation counts once trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments.fitting import new_model
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.method.relations import RELATIONS
from trainers.hegraph.training.loop import AdapterTraining, train_to_end

NODE = "TRAINER.HEGRAPHADAPTER"
FILES = sorted((Path(__file__).parents[2] / "configs" / "trainers" / "HeGraphAdapter").glob("*.yaml"))
OURS, PAPERS = ([file for file in FILES if file.stem.endswith("_paper") == papers] for papers in (False, True))


@pytest.fixture
def trained(tiny_bank):
    """Function of pairs of keys and values: a model that the default recipe leaves of two images for each class."""

    def train(*pairs: object):
        cfg = load_cfg("", "vit_b32", {"DATASET.NUM_SHOTS": 2, f"{NODE}.MIN_STEPS": 30}, list(pairs))
        task = BankTask(tiny_bank, cfg, 1)
        model = new_model(task.bank(), cfg, 1)
        if model.layers is not None:
            train_to_end(AdapterTraining(model, task.batches(task.bank()), cfg.training))
        return model

    return train


def parts(model, bank) -> tuple[Tensor, Tensor | None]:
    return model.fold().parts(bank.test_features)


def test_every_file_of_ours_has_all_six_relations_with_a_w_from_zero():
    for file in OURS:
        options = load_cfg("", str(file)).model
        found = options.variant, options.text_weights, options.bias, options.weight_init
        assert found == ("full", True, True, "zero"), file.stem
        assert all(options.metapath[relation.weight_key] for relation in RELATIONS if relation.weight_key)
        assert options.metapath["ALPHA_NP_TEST"] == options.metapath["ALPHA_NP"] == 0.2


def test_every_file_of_the_papers_has_its_recipe_and_nothing_of_ours():
    for file in PAPERS:
        cfg = load_cfg("", str(file), {"DATASET.NUM_SHOTS": 1})
        options, training = cfg.model, cfg.training
        found = options.text_weights, options.weight_init, options.noise, options.closed_form.omega
        assert found == (True, "xavier", 0.0, 0.0), file.stem
        assert (options.metapath["ALPHA_NP"], options.metapath["ALPHA_NP_TEST"]) == (0.2, 0.1)
        assert (options.alpha_c, options.beta_c, training.leave_one_out) == (1.0, 5.5, False)
        found = training.learning_rate, training.weight_lr_mult, training.epochs, training.min_steps
        assert found == (0.001, 1.0, 30, 0)
        found = training.lr_width, training.lr_tau, training.weak_text_lr_mult, training.visual_weight
        assert found == (0, 0.0, 1.0, 0.1)


def test_every_w_moves_and_leaving_out_any_relation_changes_the_logits(tiny_bank, trained):
    bank = BankTask(tiny_bank, load_cfg(), 1).bank()
    whole = trained()
    assert set(whole.layers.weight) == {"positive", "negative", "visual"}
    assert all(weight.any() for weight in whole.layers.weight.values())
    for relation in RELATIONS:
        left_out = (f"{NODE}.{relation.weight_key}", 0.0) if relation.weight_key else (f"{NODE}.VISUAL_LR", 0.0)
        of_text, of_cache = ((a - b).abs().max() for a, b in zip(parts(whole, bank), parts(trained(*left_out), bank)))
        assert (of_text if relation.weight_key else of_cache) > 1e-5, relation.name
