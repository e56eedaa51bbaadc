"""Negative prompts: every data set has one, and it says the opposite of the positive one."""

from __future__ import annotations

import re

import pytest

from trainers.hegraph.datasets.registry import ENTRIES
from trainers.hegraph.prompts.sentences import negative_prompts, positive_prompts


@pytest.mark.parametrize("dataset", [*ENTRIES, "MyBirds"])
def test_the_negative_prompts_differ_from_the_positive_ones_by_a_negation(dataset):
    ((positive,),) = positive_prompts(dataset, ["cat"])
    (negative,) = negative_prompts(dataset, ["cat"])
    assert len(negative) == len(positive)
    assert not set(negative) & set(positive)
    for said, denied in zip(positive, negative):
        # Without its "no" or "not", a negative prompt is the positive one up to the article
        affirmed = re.sub(r"\bnot? ", "", denied)
        assert affirmed != denied
        assert affirmed == re.sub(r"\ba (?=cat|handwritten)", "", said)


def test_the_default_is_the_papers():
    assert negative_prompts("ImageNet", ["cat"]) == [["a photo of no cat."]]  # section 3.1.1, after CLIPN


def test_there_is_one_list_per_class_in_label_order_with_underscores_as_spaces():
    assert negative_prompts("OxfordPets", ["pug", "great_dane"]) == [
        ["a photo of no pug, a type of pet."],
        ["a photo of no great dane, a type of pet."],
    ]


def test_the_users_templates_replace_the_data_sets_own():
    assert negative_prompts("OxfordPets", ["pug"], ["not a {}", "no {}!"]) == [["not a pug", "no pug!"]]
