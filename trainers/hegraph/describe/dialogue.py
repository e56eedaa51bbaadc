"""The question that a model is asked, and the reading of its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ..prompts.sentences import normalise_name
from .checks import LEAST_WORDS, MOST_WORDS

MOST_LISTED = 300  # how many class names a prompt lists; all 1000 of ImageNet would cost more than they help
WRONG_FORM = 'the answer is not of the form {"class name": ["sentence", ...]}'
STRING_OR_LAST_COMMA = re.compile(r'(?P<string>"(?:\\.|[^"\\])*"?)|,(?=\s*[\]}])', re.DOTALL)
MOST_NESTED = 4  # how many objects or lists may lie around the sentences of a class
MOST_PROBLEMS = 8  # how many problems of its earlier sentences a prompt repeats for a class

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
    """Reads the sentences in an answer, which may stand in a code fence or between other words.

    The prompt asks for one JSON object. Models also answer with an object for each class, one a line or in a list; with
    an object or list around it; with objects such as `{"class": "cat", "sentences": [...]}`; and with a comma after the
    last item. All of these are read.

    Args:
        text: The answer.
        classnames: The classes that were asked for. Others in the answer are left out.

    Returns:
        Class name -> sentences, for those of `classnames` that are in the answer.

    Raises:
        UnreadableAnswer: If the answer has no such object, or several for the same class.
    """
    objects = _json_objects(_without_commas(_without_thoughts(text)))
    if not objects:
        raise UnreadableAnswer("the answer holds no JSON objects where one is wanted")
    asked = {normalise_name(name): name for name in classnames}
    table: dict[str, list[str]] = {}
    understood = False
    for value in objects:
        for name, sentences in _described(value, asked):
            understood = True
            key = normalise_name(name)
            if key not in asked:
                continue
            if isinstance(sentences, list) and asked[key] in table:
                raise UnreadableAnswer(f"of {name!r} the answer holds 2 JSON objects where one is wanted")
            new = [sentences] if isinstance(sentences, str) else sentences
            table.setdefault(asked[key], []).extend(map(_tidy, new))
    if not understood:
        raise UnreadableAnswer(WRONG_FORM)
    return {name: table[name] for name in classnames if name in table}


def _without_thoughts(text: str) -> str:
    """What follows the thoughts of a model, of which some send only the end mark; nothing if the thoughts never end."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _without_commas(text: str) -> str:
    """The text from its first `{` or `[` on, with no comma before a closing bracket, except in strings."""
    start = re.search(r"[\[{]", text)
    return STRING_OR_LAST_COMMA.sub(lambda found: found["string"] or "", text[start.start() :]) if start else ""


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


def _described(value: object, asked: Container[str], depth: int = 0) -> Iterator[tuple[str, list[str] | str]]:
    """The classes that a part of an answer describes, each with its sentences, or with one of them.

    Args:
        value: The part.
        asked: The names that were asked for, as `normalise_name` gives them.
        depth: How many objects and lists lie around the part.

    Raises:
        UnreadableAnswer: If something else stands where the sentences of a class should be.
    """
    if depth > MOST_NESTED:
        return
    if isinstance(value, list):
        for item in value:
            yield from _described(item, asked, depth + 1)
    if not isinstance(value, dict):
        return
    if record := _record(value, asked):
        yield record
        return
    for name, item in value.items():
        wanted = normalise_name(name) in asked
        inner = [found for found in item.values() if _is_sentences(found)] if wanted and isinstance(item, dict) else []
        if _is_sentences(item) or len(inner) == 1:
            yield name, inner[0] if inner else item
        elif wanted:
            raise UnreadableAnswer(WRONG_FORM)
        else:
            yield from _described(item, asked, depth + 1)


def _record(value: dict, asked: Container[str]) -> tuple[str, list[str] | str] | None:
    """A class and its sentences from an object such as `{"class": "cat", "sentences": [...]}`; None from any other."""
    texts = [item for item in value.values() if isinstance(item, str)]
    named = [text for text in texts if normalise_name(text) in asked]
    lists = [item for item in value.values() if _is_sentences(item)]
    if len(named) != 1 or any(normalise_name(key) in asked for key in value):
        return None
    if len(lists) == 1:
        return named[0], lists[0]
    others = [text for text in texts if text != named[0]]
    return (named[0], others[0]) if not lists and len(others) == 1 else None


def _is_sentences(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


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
