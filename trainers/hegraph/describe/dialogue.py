"""The question that a model is asked, and the reading of its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..prompts.positive import normalise_name
from .checks import LEAST_WORDS, MOST_WORDS

MOST_LISTED = 300  # how many class names a prompt lists; all 1000 of ImageNet would cost more than they help
MOST_PROBLEMS = 8  # how many problems of its earlier sentences a prompt repeats for a class

PROMPT = """\
You describe classes of pictures for a program that compares pictures with sentences.

The pictures: {context}
The classes: {listed}

Write English sentences about the classes at the end of this message, {count} for each unless it says otherwise there.
- A sentence says what can be SEEN in a picture of its class: shape, parts, colours, texture, pose, setting, size. At \
least one sentence of each class says what tells it from the classes above that it is most easily confused with.
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


@dataclass(frozen=True)
class Request:
    """A class to be described.

    Attributes:
        name: The name of the class.
        aliases: Other names that a sentence may use.
        missing: How many sentences are wanted.
        kept: The good sentences that the class has already.
        problems: What was wrong with the other sentences that were answered.
    """

    name: str
    aliases: Sequence[str] = ()
    missing: int = 1
    kept: Sequence[str] = ()
    problems: Sequence[str] = ()


class UnreadableAnswer(ValueError):
    """An answer that does not have the form that the prompt asks for; the message says what is wrong."""


def build_prompt(context: str, classnames: Sequence[str], requests: Sequence[Request], per_class: int) -> str:
    """The message that asks for the sentences of some classes.

    Args:
        context: What the pictures are, such as "satellite photos of land use".
        classnames: All classes, in label order.
        requests: The classes to be described.
        per_class: How many sentences each class is to have in the end.
    """
    first = classnames.index(requests[0].name)
    start = max(0, min(first - MOST_LISTED // 2, len(classnames) - MOST_LISTED))
    listed = [_readable(name) for name in classnames[start : start + MOST_LISTED]]
    if len(listed) < len(classnames):
        listed.append("and others")
    return PROMPT.format(
        context=context,
        listed="; ".join(listed),
        count=per_class,
        least=LEAST_WORDS,
        most=MOST_WORDS,
        classes="\n".join(_request_lines(request, per_class) for request in requests),
    )


def read_answer(text: str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """Reads the JSON object in an answer, which may stand in a code fence or between other words.

    Args:
        text: The answer.
        classnames: The classes that were asked for. Others in the answer are left out.

    Returns:
        Class name -> sentences, for those of `classnames` that are in the answer.

    Raises:
        UnreadableAnswer: If the answer has no such object, or several.
    """
    objects = _json_objects(re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL))
    if len(objects) != 1:
        raise UnreadableAnswer(f"the answer holds {len(objects) or 'no'} JSON objects where one is wanted")
    answer = objects[0]
    if not all(isinstance(value, list) and all(isinstance(s, str) for s in value) for value in answer.values()):
        raise UnreadableAnswer('the answer is not of the form {"class name": ["sentence", ...]}')
    by_name = {normalise_name(name): list(map(_tidy, sentences)) for name, sentences in answer.items()}
    return {name: by_name[normalise_name(name)] for name in classnames if normalise_name(name) in by_name}


def _json_objects(text: str) -> list[dict]:
    """The JSON objects in a text that are not empty and not part of another."""
    decoder, objects, position = json.JSONDecoder(), [], text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except ValueError:
            end = position + 1
        except RecursionError:  # no proper answer is nested so deeply; and every later start would fail in the same way
            return []
        else:
            objects += [value] if value else []
        position = text.find("{", end)
    return objects


def _request_lines(request: Request, per_class: int) -> str:
    line = f"- {_readable(request.name)}"
    if request.aliases:
        line += f" (a sentence may also call it {', or '.join(request.aliases)})"
    if request.missing < per_class:
        line += f": {request.missing} more, unlike the ones there:"
    lines = [line, *(f"  has: {sentence}" for sentence in request.kept)]
    lines += [f"  was refused: {problem}" for problem in request.problems[:MOST_PROBLEMS]]
    return "\n".join(lines)


def _tidy(sentence: str) -> str:
    """A sentence with single spaces, and "?" for half a surrogate pair, which JSON can spell but no file can hold."""
    return " ".join(sentence.split()).encode(errors="replace").decode()


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
