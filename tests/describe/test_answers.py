"""How an answer is read."""

from __future__ import annotations

import json

import pytest

from trainers.hegraph.describe.collect import read_answer

TABLE = {"cat": ["One.", "Two."], "dog": ["Three."]}
RECORDS = [{"class": "cat", "sentences": TABLE["cat"]}, {"class": "dog", "sentences": TABLE["dog"]}]
ONE_EACH = [{name: sentences} for name, sentences in TABLE.items()]


@pytest.mark.parametrize(
    "text",
    [
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
    ],
)
def test_the_forms_that_models_answer_in_are_read(text):
    assert read_answer(text, ["cat", "dog"]) == TABLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(RECORDS)[:-20], {"cat": TABLE["cat"]}),  # cut off
        ('{"dog": ["One."], "note": "cat"}', {"dog": ["One."]}),  # a class may be called as anything is
        ('{"cat": ["One \\ud83d."]}', {"cat": ["One ?."]}),  # half a character cannot be written
        *((text, {}) for text in (
            "", "I cannot help with that.", json.dumps(TABLE)[:-3], str(TABLE), '<think>Maybe {"cat": ["Draft."]}',
            '{"cat": ["Draft."]}</think>', json.dumps(list(TABLE.values())), '{"cat": "One."}', '{"class": "cat"}',
            '{"cat": [1]}', '{"cat": null}', '{"a":' * 50_000, '{"' + '\\"' * 200_000, "[{" * 100_000,
        )),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_can_be_read_is_read_as_it_stands_and_nothing_from_anything_else(text, expected):
    assert read_answer(text, ["cat", "dog"]) == expected
