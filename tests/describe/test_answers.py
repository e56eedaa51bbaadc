"""What is asked, and how an answer is read."""

from __future__ import annotations

import json

import pytest

from trainers.hegraph.describe.collect import Collection, read_answer


def test_the_question_says_what_the_pictures_are_which_classes_there_are_and_what_is_wanted(tmp_path):
    names = ["forest", "Annual_Crop", "river"]
    text = Collection(names, tmp_path / "out.json", "a {0} {context}", 5, 2, 4).prompt(["river", "Annual_Crop"])
    for said in (
        "The pictures: a {0} {context}\n",
        "The classes: forest; Annual Crop; river\n",
        "5 for each",
        "8 to 35",
    ):
        assert said in text
    assert text.endswith("The classes to describe:\n- river\n- Annual Crop\n")


def test_of_many_classes_the_nearest_300_are_listed(tmp_path):
    names = [f"c{i}" for i in range(1000)]
    collection = Collection(names, tmp_path / "out.json", "pictures", 5, 2, 4)
    for index, first, last in ((0, 0, 299), (500, 350, 649), (999, 700, 999)):
        listed = collection.prompt([names[index]]).partition("The classes: ")[2].partition("\n")[0]
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
        (json.dumps(RECORDS)[:-20], {"cat": TABLE["cat"]}),  # cut off
        ('{"dog": ["One."], "note": "cat"}', {"dog": ["One."]}),  # a class may be called as anything is
        ('{"cat": ["A \\"cat\\",] with a bracket.", "A comma,} with a brace."],}',
         {"cat": ['A "cat",] with a bracket.', "A comma,} with a brace."]}),
        ('{"cat": ["One \\ud83d."]}', {"cat": ["One ?."]}),  # half a character cannot be written
        *((text, {}) for text in (
            "", "I cannot help with that.", json.dumps(TABLE)[:-3], str(TABLE), '<think>Maybe {"cat": ["Draft."]}',
            '{"cat": ["Draft."]}</think>', json.dumps(list(TABLE.values())), '{"cat": "One."}', '{"class": "cat"}',
            '{"cat": {"a": ["One."], "b": ["Two."]}}', '{"class": "cat", "sentence": "One.", "other": "Two."}',
            '{"cat": [1]}', '{"cat": null}', '{"a":' * 50_000, '{"' + '\\"' * 200_000, "[{" * 100_000,
        )),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_can_be_read_is_read_as_it_stands_and_nothing_from_anything_else(text, expected):
    assert read_answer(text, ["cat", "dog"]) == expected
