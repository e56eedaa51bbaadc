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
        "The cat, in contrast to the lynx, has a long tail.",
        "A cat wears a bell instead of a leash.",
        "Dogs pant, whereas the cat lies still.",
        "Whiskers and a short nose set the cat apart from a fox.",
        "Slit pupils distinguish the cat.",
        "Retracted claws tell the cat from a small dog.",
        "Soft paws separate a cat from the other pets.",
        "The cat differs from a lynx by its tail.",
        "The cat is smaller than a lynx.",
        "A cat is quieter than most pets.",
        "The cat lacks the ear tufts of a lynx.",
        "A cat has the long tail that lynxes lack.",
        "The cat has round pupils at night, which no goat has.",
        "The cat purrs, with no mane as on a lion.",
        "The cat walks on its toes where a person puts down the heel.",
        "The cat climbs without the wide paws of a lynx.",
        "The cat has a smooth face, none of a dog's long muzzle.",
        "The cat lands on its feet as a dog does not.",
        "The cat has a small head, while a brown bear has a broad one.",
        "The cat is no brown bear.",
        "The cat moves like a mountain hare.",
        "The cat is white as a blue hare in winter.",
        "The cat has the brown bear's flat feet.",
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
        "The cat is longer than it is tall.",
        "A newborn cat is no bigger than a thumb.",
        "The cat holds a tin between its paws.",
        "One cat sleeps while the second watches the door.",
        "The cat curls up like a ball of wool.",
        "The ears of the cat sit wide apart, and its legs are set wide apart.",
        "The cat has no stripes, spots or collar.",
        "The cat sleeps beside the cello.",
        "Without a sound the cat steps over the keys.",
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
