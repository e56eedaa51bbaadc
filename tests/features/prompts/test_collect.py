"""Parsing of answers, rules for good sentences, and comparisons in sentences."""

import json

import pytest

from tools.comparisons import comparisons
from trainers.hegraph.features.backbones.clip_tokens import CONTEXT_LENGTH, count_tokens
from trainers.hegraph.features.backbones.identity import MINI_NAME
from trainers.hegraph.features.backbones.open_clip_models import create_model
from trainers.hegraph.features.prompts.collect import (
    Checker,
    name_pattern,
    name_problems,
    read_answer,
    sentence_problems,
)

GOOD = "A cat sits on a warm wall and licks its striped paw."
TABLE = {"cat": ["One.", "Two."], "dog": ["Three."]}
RECORDS = [{"class": "cat", "sentences": TABLE["cat"]}, {"class": "dog", "sentences": TABLE["dog"]}]
ONE_EACH = [{name: sentences} for name, sentences in TABLE.items()]


@pytest.mark.parametrize("text", [
    json.dumps(TABLE),
    f"Sets like {{}} and {{a, b}} aside:\n```json\n{json.dumps(TABLE, indent=2)}\n```\nI hope this helps {{you}}!",
    f'<think>Maybe {{"cat": ["Draft."]}}?</think>{json.dumps(TABLE)}',
    f'Maybe {{"cat": ["Draft."],}}, it\'s 5" tall?</think>{json.dumps(TABLE)}',
    json.dumps({"Dog": ["Three."], "CAT": [" One. ", "Two."], "cow": ["Not asked for."]}),
    *("\n".join(map(json.dumps, rows)) for rows in (ONE_EACH, RECORDS)),
    *(json.dumps(rows) for rows in (ONE_EACH, RECORDS, [TABLE])),
    json.dumps({"status": "ok", "result": {"descriptions": TABLE, "count": 2}}),
    json.dumps({"classes": ["cat", "dog"], "descriptions": RECORDS}),
    json.dumps({name: {"sentences": sentences} for name, sentences in TABLE.items()}),
    '{"cat": ["One.", "Two."\n  ,\n],\n "dog": ["Three.",]\n,\n}\nDone, I think,]',
])  # fmt: skip
def test_forms_of_answers(text):
    assert read_answer(text, ["cat", "dog"]) == TABLE


@pytest.mark.parametrize(("text", "expected"), [
    (json.dumps(RECORDS)[:-20], {"cat": TABLE["cat"]}),  # cut off
    ('{"dog": ["One."], "note": "cat"}', {"dog": ["One."]}),  # a class name as a value
    ('{"cat": ["One \\ud83d."]}', {"cat": ["One ?."]}),  # a lone surrogate
    *((text, {}) for text in (
        "", "I cannot help with that.", json.dumps(TABLE)[:-3], str(TABLE), '<think>Maybe {"cat": ["Draft."]}',
        '{"cat": ["Draft."]}</think>', json.dumps(list(TABLE.values())), '{"cat": "One."}', '{"class": "cat"}',
        '{"cat": [1]}', '{"cat": null}', '{"a":' * 50_000, '{"' + '\\"' * 200_000, "[{" * 100_000,
    )),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_damaged_and_invalid_answers(text, expected):
    assert read_answer(text, ["cat", "dog"]) == expected


def test_token_counts_are_clips():
    _, _, tokenizer = create_model(MINI_NAME)
    for sentence in (GOOD, "", "Überlänge, naïve; 1984!", "cat " * (CONTEXT_LENGTH - 2)):
        assert count_tokens(sentence) == (tokenizer([sentence]) != 0).sum()
    assert count_tokens("cat " * CONTEXT_LENGTH) == CONTEXT_LENGTH + 2  # also counts tokens beyond the context


@pytest.mark.parametrize(("sentence", "problem"), [
    (GOOD, ""), ("Eight words are just enough for one cat.", ""), (f"{'Very ' * 33}lazy cat.", ""),
    ('"Tabby" is what people call a cat with dark stripes.', ""),
    ("Élégante, a cat walks along the edge of a red roof.", ""),
    ("On Mt. Fuji a cat sits in the snow before a red gate.", ""),
    ("A cat sits on a warm wall.", "8 to 35 words, got 7"), (f"{'Very ' * 34}lazy cat.", "8 to 35 words, got 36"),
    (f"The cat {'unquestionably-incomprehensible-antidisestablishmentarian ' * 6}sits.", "at most 77 tokens"),
    ("A dog sits on a warm wall and licks its striped paw.", "class name is missing"),
    ("a cat sits on a warm wall and licks its paw.", "a capital letter at the start"),
    ("A cat sits on a warm wall and licks its paw!", "a full stop at the end"),
    ("A cat sits on a warm wall. It licks its striped paw.", "more than one sentence"),
    ('A cat sits "on a wall." "It licks" its striped paw.', "more than one sentence"),
    ("A cat sits on a warm wall\nand licks its striped paw.", "more than one sentence"),
])  # fmt: skip
def test_rules_for_sentences(sentence, problem):
    problems = sentence_problems(sentence, name_pattern(["cat"]))
    assert len(problems) == bool(problem) and problem in "".join(problems)


def test_spellings_of_a_class_name():
    for name, text in {
        "pocket orchid": "two POCKET-ORCHIDS", "box": "three boxes", "butterfly": "many butterflies",
        "kite (bird of prey)": "a kite (bird of prey) soars", "C++": "the letters C++ on a screen",
    }.items():  # fmt: skip
        assert name_pattern([name]).search(text)
    for name, text in {"cat": "catalogue", "737-200": "a 737-2000", "C++": "the letter C"}.items():
        assert not name_pattern([name]).search(text)


def test_aliases_and_full_stops_in_names():
    checker = Checker(100, {"Apply_Eye_Makeup": ["eye makeup"]})
    good, problems = checker.select("Apply_Eye_Makeup", ["A brush spreads eye makeup over the closed lid of a woman."])
    assert (len(good), problems) == (1, [])
    sentence = "Snow covers the massive head of a Conv. Convertible car."
    assert sentence_problems(sentence, name_pattern(["Conv. Convertible"])) == []
    assert sentence_problems(sentence, name_pattern(["car"])) != []


def problems_of(checker: Checker, table: dict[str, str]) -> list[str]:
    """The problems of one sentence for each class, "" for a good one."""
    return ["; ".join(checker.select(name, [sentence])[1]) for name, sentence in table.items()]


def test_repeated_sentences_are_problems():
    other = GOOD.replace("cat", "Cat")
    (problem,) = Checker(100).select("cat", [GOOD, other])[1]
    assert "equal to a sentence of 'cat'" in problem and repr(other) in problem
    swapped = {"cat": GOOD, "guinea_pig": GOOD.replace("cat", "guinea pig")}
    first, second = problems_of(Checker(100), swapped)
    assert first == "" and "equal to a sentence of 'cat' except for names" in second
    assert problems_of(Checker(100), swapped | {"cat": "A cat sits."})[1] == ""
    (problem, *_) = Checker(10).select("cat", ["Cat " * 1000])[1]
    assert len(problem.partition(" words, got 1000: ")[2]) == 240 + len("''")


@pytest.mark.parametrize(("total", "most"), [(10, 2), (59, 2), (60, 3), (100, 5)])
def test_frequency_of_openings(total, most):
    colours = ("red", "blue", "green", "grey", "pink", "brown")
    sentences = [f"Seen from behind, a cat on a wall of a dull {colour} colour." for colour in colours]
    good, problems = Checker(total).select("cat", sentences)
    assert good == sentences[:most]
    assert f"already {most} sentences begin with 'seen from behind, a'" in problems[0]
    assert Checker(100).select("cat", sentences, 1) == (sentences[:1], [])


def test_openings_count_across_classes():
    table = {
        "cat": "The cat has a long tail and sits on a wall.",
        "dog": "The dog has a wet nose and lies before the fire.",
        "cow": "The cow has a broad head and stands in the grass.",
    }
    *good, problem = problems_of(Checker(40), table)
    assert good == ["", ""] and "already 2 sentences begin with 'the name has a'" in problem


def test_names_and_aliases_are_unique():
    for aliases, words in (
        ({"cat": ["Felis"], "cow": ["ox"]}, "'cow' has aliases: no such class"),
        ({"cat": ["Guinea-Pig"]}, "'guinea_pig' means both 'cat' and 'guinea_pig'"),
        ({"cat": ["pet"], "dog": ["pet"]}, "'pet' means both 'cat' and 'dog'"),
        ({"cat": ["-"]}, "'-' of 'cat' has no letter"),
    ):
        (problem,) = name_problems(["cat", "dog", "guinea_pig"], aliases)
        assert words in problem


def test_comparisons_with_other_classes():
    names = ("cat", "mountain hare", "cello", "brown bear", "tin", "other")
    for sentence, words in {
        "Unlike a dog, the cat has claws that draw in.": "Unlike", "The cat lacks the ear tufts of a lynx.": "lacks",
        "The cat is white as a blue hare in winter.": "as a OTHERCLASS", GOOD: "",
        "The cat holds a tin between its paws.": "",
    }.items():  # fmt: skip
        hits = comparisons({name: [] for name in names} | {"cat": [sentence]}, {"mountain hare": ["blue hare"]})
        assert [hit[:2] for hit in hits] == [("cat", sentence)] * bool(words)
        assert not words or words in hits[0][2]
    itself = {"cat": [], "brown bear": ["A young brown bear moves like a brown bear at play."]}
    assert comparisons(itself) == []
