"""Sentences that compare a class with another one are found, and others are not."""

from __future__ import annotations

import pytest

from tools.comparisons import comparisons

NAMES = ("cat", "mountain hare", "cello", "brown bear", "tin", "other")
ALIASES = {"mountain hare": ["blue hare"]}


def found(sentence: str) -> str:
    """The words that compare in a sentence about the cat; "" if there are none."""
    table = {name: [] for name in NAMES} | {"cat": [sentence]}
    hits = comparisons(table, ALIASES)
    assert all(hit[:2] == ("cat", sentence) for hit in hits)
    return hits[0][2] if hits else ""


@pytest.mark.parametrize(
    "sentence",
    [
        "Unlike a dog, the cat has claws that draw in.",
        "The cat shows slit pupils rather than round ones.",
        "Compared with a lynx, the cat is small.",
        "Dogs pant, whereas the cat lies still.",
        "The cat is smaller than a lynx.",
        "The cat lacks the ear tufts of a lynx.",
        "The cat has round pupils at night, which no goat has.",
        "The cat walks on its toes where a person puts down the heel.",
        "The cat has a smooth face, none of a dog's long muzzle.",
        "The cat has a small head, while a brown bear has a broad one.",
        "The cat is no brown bear.",
        "The cat moves like a mountain hare.",
        "The cat is white as a blue hare in winter.",
        "The cat is a distant cousin of the brown bear.",
    ],
)
def test_a_comparison_is_found(sentence):
    assert found(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "A cat sits on a warm wall and licks its striped paw.",
        "The cat has a tail longer than its body.",
        "The cat holds a tin between its paws.",
        "The cat curls up like a ball of wool.",
        "The cat has no stripes, spots or collar.",
        "The cat sleeps beside the cello.",
        "Nothing but a black cat is to be seen on the roof.",
    ],
)
def test_a_sentence_that_says_what_is_seen_is_not_found(sentence):
    assert found(sentence) == ""


def test_a_class_is_not_compared_with_itself():
    table = {"cat": [], "brown bear": ["A young brown bear moves like a brown bear at play."]}
    assert comparisons(table) == []


def test_the_words_that_compare_come_with_the_class_and_the_sentence():
    table = {"cat": ["The cat sits like a brown bear."], "brown bear": ["A brown bear sits on a rock."]}
    assert comparisons(table) == [("cat", "The cat sits like a brown bear.", "like a OTHERCLASS")]
