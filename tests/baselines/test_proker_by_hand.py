"""ProKeR's search, and the ranges of what the training-free methods search over, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from by_hand import bank_of
from yacs.config import CfgNode

from trainers.hegraph.baselines import proker
from trainers.hegraph.utils.errors import UserError

AXES = [[1.0, 0.0], [0.0, 1.0]]


def options(**changed: object) -> CfgNode:
    common = {"BETA": [[1, 1.0]], "LAMBDA": [[1, 2.0]], "SEARCH": True, "SEARCH_RANGE": [["", [1.0, 3.0, 0.5, 2.0]]]}
    return CfgNode({**common, "SEARCH_STEP": [3, 2], **changed})


def test_the_grid_holds_both_ends_and_even_steps_between_them():
    betas, strengths = proker.grid(bank_of(AXES, [0, 1], AXES), options())
    assert betas == [1.0, 2.0, 3.0]
    assert strengths == [0.5, 2.0]
    one = proker.grid(bank_of(AXES, [0, 1], AXES), options(SEARCH_STEP=[1, 1]))
    assert one == ([1.0], [0.5])


def test_the_grid_is_that_of_the_data_set():
    rows = [["", [1.0, 3.0, 0.5, 2.0]], ["OxfordPets", [2.0, 4.0, 1.0, 3.0]]]
    bank = bank_of(AXES, [0, 1], AXES, dataset="oxford_pets")
    assert proker.grid(bank, options(SEARCH_RANGE=rows)) == ([2.0, 3.0, 4.0], [1.0, 3.0])


@pytest.mark.parametrize("steps", [[0, 2], [2, 0], [2, 1.5]], ids=str)
def test_the_grid_needs_a_whole_number_of_values_from_1(steps):
    with pytest.raises(UserError, match="SEARCH_STEP must be whole numbers from 1"):
        proker.grid(bank_of(AXES, [0, 1], AXES), options(SEARCH_STEP=steps))


@pytest.mark.parametrize(("betas", "strengths"), [([0.0, 1.0], [1.0]), ([1.0], [1.0, 0.0]), ([1.0, -1.0], [1.0])])
def test_a_beta_or_a_lambda_of_zero_is_refused(betas, strengths):
    proker.check_positive([1e-9], [1e-9])
    with pytest.raises(UserError, match="BETA and LAMBDA must be above 0, got"):
        proker.check_positive(betas, strengths)


@pytest.mark.parametrize(("beta", "strength"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_fixed_beta_or_lambda_of_zero_is_refused(fit, beta, strength):
    with pytest.raises(UserError, match="BETA and LAMBDA must be above 0, got"):
        fit("ProKeR", bank_of(AXES, [0, 1], AXES), BETA=[[1, beta]], LAMBDA=[[1, strength]])


def test_the_search_lists_beta_first_and_of_equals_takes_the_smallest():
    bank = bank_of(AXES, [0, 1], AXES, val=(AXES, [0, 1]), test=(AXES, [1, 0]))
    best, selected = proker.search(bank, options(), bank.cache_keys())
    table = selected["BETA, LAMBDA"]["candidates"]
    assert [value for value, _ in table] == [(1.0, 0.5), (1.0, 2.0), (2.0, 0.5), (2.0, 2.0), (3.0, 0.5), (3.0, 2.0)]
    assert {accuracy for _, accuracy in table} == {100.0}
    assert best == selected["BETA, LAMBDA"]["value"] == (1.0, 0.5)


def test_a_candidate_counts_by_text_and_kernel_together():
    # One image of class 0, which the text takes for class 1: cosines (0.6, 0.8). Y - T = (0.4, -0.8). The val image is
    # the same, so the kernel is 1 and the correction is (0.4, -0.8) * lambda / (1 + lambda): with 0.5 a third of it,
    # (0.733, 0.533); with 0.1 a eleventh, (0.636, 0.727): only lambda 0.5 is right, whatever beta is.
    bank = bank_of(AXES[:1], [0], [[0.6, 0.8], [0.8, 0.6]], val=(AXES[:1], [0]), test=(AXES[:1], [1]))
    asked = options(SEARCH_RANGE=[["", [1.0, 3.0, 0.1, 0.5]]])
    best, selected = proker.search(bank, asked, bank.cache_keys())
    assert best == (1.0, 0.5)
    assert [accuracy for _, accuracy in selected["BETA, LAMBDA"]["candidates"]] == [0.0, 100.0] * 3


@pytest.mark.parametrize("search", [True, False])
def test_without_a_search_beta_and_lambda_are_those_of_the_shots(search):
    val = None if search else (AXES, [0, 1])
    bank = bank_of([*AXES, AXES[0]], [0, 1, 0], AXES, val=val)
    rows = {"BETA": [[1, 1.0], [2, 4.0], [3, 9.0]], "LAMBDA": [[1, 0.5], [2, 0.25]]}
    assert proker.search(bank, options(SEARCH=search, **rows), bank.cache_keys()) == ((4.0, 0.25), {})


# TIMO-S


@pytest.mark.parametrize("changed", [{"BETA": 0}, {"BETAS": [1, 0]}, {"BETAS": []}, {"BETAS": [1.0]}], ids=str)
def test_timo_s_counts_a_text_feature_a_whole_number_of_times(fit, changed):
    with pytest.raises(UserError, match="BETA and BETAS must be whole numbers from 1"):
        fit("TIMOS", bank_of(AXES, [0, 1], AXES), **changed)


def test_timo_s_predicts_with_what_val_chose(fit):
    # The text has the labels the wrong way round, the images the right way: the less the text weighs, the better
    text, val = AXES[::-1], (AXES, [0, 1])
    images = [[0.8, 0.6], [0.8, -0.6], [0.6, 0.8], [-0.6, 0.8]]
    bank = bank_of(images, [0, 0, 1, 1], text, val=val)
    fitted = fit("TIMOS", bank, BETAS=[2, 1], CANDIDATES=[100.0, 0.01])
    [entry] = fitted.selected.values()
    assert [value for value, _ in entry["candidates"]] == [(2, 100.0), (2, 0.01), (1, 100.0), (1, 0.01)]
    assert entry["value"] == (2, 0.01)
    fixed = fit("TIMOS", bank, BETA=2, ALPHA=0.01, SEARCH=False)
    query = torch.tensor([[0.6, 0.8]])
    assert torch.equal(fitted.logits(query), fixed.logits(query))


def test_gda_takes_one_candidate_and_refuses_none(fit):
    bank = bank_of(AXES, [0, 1], AXES, val=(AXES, [0, 1]))
    assert fit("GDA", bank, CANDIDATES=[0.5]).selected["ALPHA"]["value"] == 0.5
    for candidates in ([], ["one"]):
        with pytest.raises(UserError, match="CANDIDATES must be a list of one number or more"):
            fit("GDA", bank, CANDIDATES=candidates)
