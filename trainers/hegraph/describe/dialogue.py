"""The question that a model is asked, and the reading of its answer."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Container, Iterator, Sequence

from ..prompts.sentences import normalise_name
from .checks import LEAST_WORDS, MOST_WORDS

MOST_LISTED = 300  # how many class names a prompt lists; all 1000 of ImageNet would cost more than they help
STRING_OR_LAST_COMMA = re.compile(r'(?P<string>"(?:\\.|[^"\\])*"?)|,(?=\s*[\]}])', re.DOTALL)

PROMPT = """\
You describe classes of pictures for a program that compares pictures with sentences.

The pictures: {context}
The classes: {listed}

Write English sentences about the classes at the end of this message, {count} for each unless it says otherwise there.
- A sentence says what can be SEEN in a picture of its class: shape, parts, colours, texture, pose, setting, size. \
Choose what none of the other classes above has.
- It names no other class and compares with none: no "unlike", "rather than", "larger than" or "similar to".
- A sentence contains the name of its class, as listed.
- It is a single sentence in the present tense with {least} to {most} words, begins with a capital letter and ends \
with a full stop.
- It is true. Where a class has little to see, say what can be seen.
- The sentences of a class differ in what they describe and in how they begin. No formula: no sentence would fit \
another class with the names exchanged, and "A photo of ..." is no way to begin.

Answer with one JSON object and nothing else, with a list of sentences for each class and its name as key:
{{"class name": ["sentence", ...], ...}}

The classes to describe:
{classes}
"""


def build_prompt(context: str, classnames: Sequence[str], first: str, wanted: Sequence[str], per_class: int) -> str:
    """The message that asks for the sentences of some classes.

    Args:
        context: What the pictures are, such as "satellite photos of land use".
        classnames: All classes, in label order. Of very many, those around `first` are listed.
        first: One of them.
        wanted: Lines that say what is wanted.
        per_class: How many sentences each class is to have in the end.
    """
    start = max(0, min(classnames.index(first) - MOST_LISTED // 2, len(classnames) - MOST_LISTED))
    listed = [readable(name) for name in classnames[start : start + MOST_LISTED]]
    if len(listed) < len(classnames):
        listed.append("and others")
    return PROMPT.format(
        context=context,
        listed="; ".join(listed),
        count=per_class,
        least=LEAST_WORDS,
        most=MOST_WORDS,
        classes="\n".join(wanted),
    )


def readable(name: str) -> str:
    """A class name as a prompt lists it."""
    return " ".join(name.replace("_", " ").split())


def read_answer(text: str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """The sentences in an answer, which may stand in a code fence or between other words.

    The prompt asks for one JSON object. Models also answer with an object for each class, one a line or in a list; with
    an object or list around it; with objects such as `{"class": "cat", "sentences": [...]}`; and with a comma after the
    last item. All of these are read.

    Args:
        text: The answer.
        classnames: The classes that were asked for. Others in the answer are left out.

    Returns:
        Class name -> sentences, for those of `classnames` that are in the answer.
    """
    asked = {normalise_name(name): name for name in classnames}
    table: dict[str, list[str]] = {}
    waiting = deque(_json_objects(_without_commas(_without_thoughts(text))))
    while waiting:
        value = waiting.popleft()
        found = dict(_described(value, asked)) if isinstance(value, dict) else {}
        for key, sentences in found.items():
            table.setdefault(asked[key], []).extend(map(_tidy, sentences))
        if not found and isinstance(value, (dict, list)):
            waiting.extendleft(reversed(list(value.values()) if isinstance(value, dict) else value))
    return {name: table[name] for name in classnames if name in table}


def _without_thoughts(text: str) -> str:
    """What follows the thoughts of a model, of which some send only the end mark; nothing if the thoughts never end."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _without_commas(text: str) -> str:
    """The text from its first `{` or `[` on, with no comma before a closing bracket, except in strings."""
    start = re.search(r"[\[{]", text)
    return STRING_OR_LAST_COMMA.sub(lambda found: found["string"] or "", text[start.start() :]) if start else ""


def _json_objects(text: str) -> list[object]:
    """The JSON objects in a text that are not part of another."""
    decoder, objects, position = json.JSONDecoder(), [], text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            objects.append(value)
        except ValueError:
            end = position + 1
        except RecursionError:  # no proper answer is nested so deeply; and every later start would fail in the same way
            return []
        position = text.find("{", end)
    return objects


def _described(value: dict, asked: Container[str]) -> Iterator[tuple[str, list[str]]]:
    """The classes that an object itself describes, as `normalise_name` gives them, each with its sentences."""
    keys = [key for key in value if normalise_name(key) in asked]
    for key in keys:
        held = value[key]
        sentences = [*filter(_are_sentences, held.values())] if isinstance(held, dict) else [held]
        if len(sentences) == 1 and _are_sentences(sentences[0]):
            yield normalise_name(key), sentences[0]
    # An object such as {"class": "cat", "sentences": [...]} or {"name": "cat", "text": "..."}
    texts = [item for item in value.values() if isinstance(item, str)]
    named = [text for text in texts if normalise_name(text) in asked]
    if not keys and len(named) == 1:
        lists = [item for item in value.values() if _are_sentences(item)]
        lists = lists or [[text] for text in texts if text != named[0]]
        if len(lists) == 1:
            yield normalise_name(named[0]), lists[0]


def _are_sentences(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _tidy(sentence: str) -> str:
    """A sentence with single spaces, and "?" for half a surrogate pair, which JSON can spell but no file can hold."""
    return " ".join(sentence.split()).encode(errors="replace").decode()
