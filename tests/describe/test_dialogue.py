"""What is asked, and how an answer is read."""

from __future__ import annotations

import json

import pytest

from trainers.hegraph.describe.dialogue import build_prompt, read_answer


def test_the_question_says_what_the_pictures_are_which_classes_there_are_and_what_is_wanted():
    classes = ["forest", "Annual_Crop", "river"]
    text = build_prompt("a {0} {context}", classes, "river", ["- river", "  has: {x}"], 5)
    assert "The pictures: a {0} {context}\n" in text
    assert "The classes: forest; Annual Crop; river\n" in text
    assert "5 for each" in text
    assert "8 to 35 words" in text
    assert text.endswith("The classes to describe:\n- river\n  has: {x}\n")


def test_of_many_classes_the_nearest_300_are_listed():
    names = [f"c{i}" for i in range(1000)]
    for index, first, last in ((0, 0, 299), (500, 350, 649), (999, 700, 999)):
        listed = build_prompt("", names, names[index], [], 5).partition("The classes: ")[2].partition("\n")[0]
        assert listed.split("; ") == [*names[first : last + 1], "and others"]


TABLE = {"cat": ["One.", "Two."], "dog": ["Three."]}
RECORDS = [{"class": "cat", "sentences": TABLE["cat"]}, {"class": "dog", "sentences": TABLE["dog"]}]
SINGLES = [
    {"class": "Cat", "sentence": "One."},
    {"class": "cat", "sentence": "Two."},
    {"name": "dog", "text": "Three."},
]
ONE_EACH = [{name: sentences} for name, sentences in TABLE.items()]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TABLE),
        f"```json\n{json.dumps(TABLE, indent=2)}\n```",
        f"Sure! Sets like {{}} and {{a, b}} aside: {json.dumps(TABLE)} I hope this helps {{you}}!",
        f'<think>Maybe {{"cat": ["Draft."]}}?</think>{json.dumps(TABLE)}',
        f'Maybe {{"cat": ["Draft."],}}, it\'s 5" tall?</think>```json\n{json.dumps(TABLE)}\n```',
        json.dumps({"Dog": ["Three."], "CAT": [" One. ", "Two."], "cow": ["Not asked for."]}),
        *("\n".join(map(json.dumps, rows)) for rows in (ONE_EACH, RECORDS, SINGLES)),
        *(json.dumps(rows) for rows in (ONE_EACH, RECORDS, SINGLES, [TABLE])),
        json.dumps({"status": "ok", "result": {"descriptions": TABLE, "count": 2}}),
        json.dumps({"classes": ["cat", "dog"], "descriptions": RECORDS}),
        json.dumps({name: {"sentences": sentences} for name, sentences in TABLE.items()}),
        json.dumps([record | {"model": "m", "words": 2} for record in RECORDS]),
        '{"cat": ["One.", "Two."\n  ,\n],\n "dog": ["Three.",]\n,\n}\nDone, I think,]',
        '{"cat": ["One.", "Two.",]}\n{"dog": ["Three."]},',
    ],
)
def test_the_forms_that_models_answer_in_are_read(text):
    assert read_answer(text, ["cat", "dog"]) == TABLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(TABLE).replace("dog", "cow"), {"cat": TABLE["cat"]}),
        (json.dumps(RECORDS)[:-20], {"cat": TABLE["cat"]}),  # cut off
        ('{"dog": ["One."], "note": "cat"}', {"dog": ["One."]}),  # a class may be called as anything is
        ('{"cat": ["A \\"cat\\",] with a bracket.", "A comma,} with a brace."],}',
         {"cat": ['A "cat",] with a bracket.', "A comma,} with a brace."]}),
        ('{"cat": ["One \\ud83d."]}', {"cat": ["One ?."]}),  # half a character cannot be written
    ],
)  # fmt: skip
def test_what_can_be_read_is_read_as_it_stands(text, expected):
    assert read_answer(text, ["cat", "dog"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        json.dumps(TABLE)[:-3],
        str(TABLE),
        '<think>Maybe {"cat": ["Draft."]}',
        '{"cat": ["Draft."]}</think>',
        json.dumps(list(TABLE.values())),
        '{"cat": "One."}',
        '{"class": "cat"}',
        '{"cat": {"a": ["One."], "b": ["Two."]}}',
        '{"class": "cat", "sentence": "One.", "other": "Two."}',
        '{"cat": [1]}',
        '{"cat": null}',
        '{"a":' * 50_000,
        '"' * 200_000,
        '{"' + '\\"' * 200_000,
        "{" * 200_000,
        "[{" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_nothing_is_read_from_anything_else(text):
    assert read_answer(text, ["cat", "dog"]) == {}
