"""The rules for good sentences about classes, each by something that breaks it."""

from __future__ import annotations

import pytest

from trainers.hegraph.backbones.clip import CONTEXT_LENGTH, count_tokens
from trainers.hegraph.backbones.identity import MINI_NAME
from trainers.hegraph.backbones.loading import create_model
from trainers.hegraph.describe.checks import Checker, alias_problems, name_pattern, sentence_problems

GOOD = "A cat sits on a warm wall and licks its striped paw."


def test_tokens_are_counted_as_clip_counts_them():
    _, _, tokenizer = create_model(MINI_NAME)
    for sentence in (GOOD, "", "Überlänge, naïve; 1984!", "cat " * (CONTEXT_LENGTH - 2)):
        assert count_tokens(sentence) == (tokenizer([sentence]) != 0).sum()
    assert count_tokens("cat " * CONTEXT_LENGTH) == CONTEXT_LENGTH + 2  # what does not fit is counted, too


def problems_of(sentence: str, *names: str) -> list[str]:
    return sentence_problems(sentence, name_pattern(names or ["cat"]))


@pytest.mark.parametrize(
    "sentence",
    [
        GOOD,
        "Eight words are just enough for one cat.",
        f"{'Very ' * 33}lazy cat.",
        '"Tabby" is what people call a cat with dark stripes.',
        "Élégante, a cat walks along the edge of a red roof.",
        "On Mt. Fuji a cat sits in the snow before a red gate.",
    ],
)
def test_a_good_sentence_has_no_problem(sentence):
    assert problems_of(sentence) == []


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A cat sits on a warm wall.", "7 words where 8 to 35"),
        (f"{'Very ' * 34}lazy cat.", "36 words where 8 to 35"),
        (
            f"The cat {'unquestionably-incomprehensible-antidisestablishmentarian ' * 6}sits.",
            "tokens where CLIP reads 77",
        ),
        ("A dog sits on a warm wall and licks its striped paw.", "does not name its class"),
        ("a cat sits on a warm wall and licks its paw.", "begins with a capital letter"),
        ("A cat sits on a warm wall and licks its paw", "ends with a full stop"),
        ("A cat sits on a warm wall and licks its paw!", "ends with a full stop"),
        ("A cat sits on a warm wall. It licks its striped paw.", "more than one sentence"),
        ('A cat sits "on a wall." "It licks" its striped paw.', "more than one sentence"),
        ("A cat sits on a warm wall\nand licks its striped paw.", "more than one sentence"),
    ],
)
def test_a_bad_sentence_has_exactly_its_problem(sentence, words):
    (problem,) = problems_of(sentence)
    assert words in problem


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Apply_Eye_Makeup", "a woman applies: apply eye makeup here"),
        ("hard-leaved pocket orchid", "the hard leaved pocket orchid"),
        ("pocket orchid", "two POCKET-ORCHIDS"),
        ("box", "three boxes"),
        ("butterfly", "many butterflies"),
        ("kite (bird of prey)", "a kite (bird of prey) soars"),
        ("C++", "the letters C++ on a screen"),
        ("737-200", "a Boeing 737-200, landing"),
        ("été", "un Été chaud"),
    ],
)
def test_a_name_is_found_however_it_is_spelled(name, text):
    assert name_pattern([name]).search(text)


@pytest.mark.parametrize(
    ("name", "text"), [("cat", "catalogue"), ("cat", "tomcat"), ("737-200", "a 737-2000"), ("C++", "the letter C")]
)
def test_a_name_within_a_word_is_not_found(name, text):
    assert not name_pattern([name]).search(text)


def test_an_alias_names_the_class():
    checker = Checker(100, {"Apply_Eye_Makeup": ["eye makeup"]})
    good, problems = checker.sift("Apply_Eye_Makeup", ["A brush spreads eye makeup over the closed lid of a woman."])
    assert (len(good), problems) == (1, [])


def test_the_stop_in_a_name_ends_no_sentence():
    assert problems_of("Snow covers the massive head of a Conv. Convertible car.", "Conv. Convertible") == []
    assert problems_of("Snow covers the massive head of a Conv. Convertible car.", "car") != []


def sift_all(checker: Checker, table: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: checker.sift(name, sentences)[1] for name, sentences in table.items()}


def test_a_sentence_twice_in_one_class_is_a_problem():
    (problem,) = Checker(100).sift("cat", [GOOD, GOOD.replace("cat", "Cat")])[1]
    assert "the same sentence as one of its own" in problem
    assert repr(GOOD.replace("cat", "Cat")) in problem


def test_a_template_with_the_name_swapped_in_is_a_problem():
    found = sift_all(Checker(100), {"cat": [GOOD], "guinea_pig": [GOOD.replace("cat", "guinea pig")]})
    assert found["cat"] == []
    assert "but for the name, the same sentence as one of 'cat'" in found["guinea_pig"][0]


def test_a_refused_sentence_is_not_compared_with():
    checker = Checker(100)
    assert checker.sift("cat", ["A cat sits."])[0] == []
    assert "7 words" not in str(checker.sift("dog", ["A dog sits."])[1])
    assert "same sentence" not in str(checker.sift("dog", ["A dog sits."])[1])


ENDINGS = ("red", "blue", "green", "grey", "pink", "brown")


def same_opening(name: str, opening: str, count: int) -> list[str]:
    return [f"{opening} {name} on a wall of a dull {colour} colour." for colour in ENDINGS[:count]]


@pytest.mark.parametrize(("total", "most"), [(10, 2), (40, 2), (59, 2), (60, 3), (100, 5)])
def test_an_opening_may_begin_one_sentence_in_twenty_and_always_two(total, most):
    good, problems = Checker(total).sift("cat", same_opening("cat", "Seen from behind, a", 6))
    assert len(good) == most
    assert f"already {most} sentences begin with 'seen from behind, a'" in problems[0]


def test_an_opening_counts_across_classes_with_names_masked():
    table = {
        "cat": ["The cat has a long tail and sits on a wall."],
        "dog": ["The dog has a wet nose and lies before the fire."],
        "cow": ["The cow has a broad head and stands in the grass."],
    }
    found = sift_all(Checker(40), table)
    assert found["cat"] == found["dog"] == []
    (problem,) = found["cow"]
    assert "already 2 sentences begin with 'the name has a'" in problem


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ({"cat": ["Felis"], "cow": ["ox"]}, "'cow' has aliases: no such class"),
        ({"cat": ["Dog"]}, "its alias 'Dog' also names 'dog'"),
        ({"cat": ["pet"], "dog": ["pet"]}, "'dog': its alias 'pet' also names 'cat'"),
        ({"cat": ["-"]}, "its alias '-' holds no letter"),
    ],
)
def test_an_alias_names_exactly_one_class(aliases, words):
    (problem,) = alias_problems(aliases, ["cat", "dog"])
    assert words in problem


def test_of_a_long_sentence_240_characters_are_repeated():
    (problem, *_) = Checker(10).sift("cat", ["Cat " * 1000])[1]
    assert len(problem.partition(" are wanted: ")[2]) == 240 + len("''")
