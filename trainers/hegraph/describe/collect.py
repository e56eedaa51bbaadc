"""Asks for sentences about every class until they are good: the question, the reading of answers, and what is kept.

Good sentences are written to `<out>.partial` after every answer, and to the out file in the end. Both are read at the
next start. So nothing is lost if the command is killed, and a class that has its sentences is never asked for again.
Which models wrote the sentences of each class is in `<out without .json>.models.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, Field
from tqdm import tqdm

from ..prompts.sentences import normalise_name
from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.reading import read_json
from ..utils.schema import OpenPart, Part, check
from .checks import LEAST_WORDS, MOST_WORDS, Checker, name_problems

TOO_FEW = "the answer leaves this class out, or holds too few sentences"
WRONG_FORM = 'the answer is not of the form {"class name": ["sentence", ...]}'
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

Texts = dict[str, list[str]]  # class name -> sentences, aliases or models
Form = TypeVar("Form", Texts, "_Partial")


class Progress(OpenPart):
    """How far a class is: its good sentences, the models that wrote them, and what was wrong with the last answer."""

    model_config = ConfigDict(frozen=False)  # the sentences come one after the other

    sentences: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)


class _Partial(Part):
    """All of `<out>.partial`."""

    context: str = ""
    classes: dict[str, Progress] = Field(default_factory=dict)


class Collection:
    """The sentences of a data set while they are collected, in memory and in files.

    Args:
        classnames: The classes in label order; a name that occurs twice is one class.
        out: The description file to write. Classes that it holds are done, whatever their sentences.
        context: What the pictures are, such as "satellite photos of land use".
        per_class: How many sentences each class is to have.
        batch_size: How many classes one question asks for at most.
        model: The model that is asked.

    Raises:
        UserError: If names cannot be told apart, or the files were written for other classes or another context.
    """

    def __init__(
        self, classnames: Sequence[str], out: Path, context: str, per_class: int, batch_size: int,
        aliases: Texts | None = None, model: str = "",
    ) -> None:  # fmt: skip
        self.classnames, self.aliases, self.model = list(dict.fromkeys(classnames)), aliases or {}, model
        self.out, self.partial, self.context = out, out.with_name(f"{out.name}.partial"), context
        self.models_file = out.with_suffix(".models.json")
        self.per_class, self.batch_size = per_class, batch_size
        if problems := name_problems(self.classnames, self.aliases):
            raise UserError(problems[0])
        self.progress = {name: Progress() for name in self.classnames}
        written, partial = self._read(out, Texts, {}), self._read(self.partial, _Partial, _Partial())
        models = self._read(self.models_file, Texts, {})
        if partial.classes and partial.context != context:
            raise UserError(f"{self.partial} holds answers for the --context {partial.context!r}; choose another --out")
        self.done = frozenset(written)
        self.progress |= partial.classes
        for name, sentences in written.items():
            self.progress[name] = Progress(sentences=sentences, models=models.get(name, []))
        self.checker = Checker(sum(max(per_class, len(p.sentences)) for p in self.progress.values()), self.aliases)
        for name in sorted(self.progress, key=lambda name: name not in written):
            good, problems = self.checker.sift(name, self.progress[name].sentences)
            if name not in written:
                self.progress[name].sentences = good
                self.progress[name].problems = self.progress[name].problems or problems

    def other_models(self) -> Counter[str]:
        """The models other than the one that is asked now -> how many classes have sentences of theirs."""
        return Counter(model for progress in self.progress.values() for model in progress.models if model != self.model)

    def unfinished(self) -> list[str]:
        """Classes that lack sentences, in label order."""
        lacking = [name for name, progress in self.progress.items() if len(progress.sentences) < self.per_class]
        return [name for name in lacking if name not in self.done]

    def batches(self, attempt: int) -> list[list[str]]:
        """The questions of an attempt, counted from 0, each as the classes that it asks for.

        They get smaller from one attempt to the next, since an answer may have been cut off for its length.
        """
        names, size = self.unfinished(), max(1, self.batch_size >> attempt)
        return [names[i : i + size] for i in range(0, len(names), size)]

    def prompt(self, batch: Sequence[str]) -> str:
        """The question that asks for some classes."""
        lines = []
        for name in batch:
            progress, line = self.progress[name], f"- {readable(name)}"
            if aliases := self.aliases.get(name, ()):
                line += f" (a sentence may also call it {', or '.join(aliases)})"
            if progress.sentences:
                line += f": {self.per_class - len(progress.sentences)} more, unlike the ones there:"
            lines += [line, *(f"  has: {sentence}" for sentence in progress.sentences)]
            lines += [f"  was refused: {problem}" for problem in progress.problems[:MOST_PROBLEMS]]
        listed = "; ".join(map(readable, self.classnames))
        words = {"least": LEAST_WORDS, "most": MOST_WORDS, "count": self.per_class, "context": self.context}
        return PROMPT.format(listed=listed, classes="\n".join(lines), **words)

    def take(self, batch: Sequence[str], answer: str) -> None:
        """Keeps the good sentences of an answer about the classes of a batch, and writes them to `<out>.partial`."""
        table = read_answer(answer, batch)
        for name in batch:
            progress = self.progress[name]
            missing = self.per_class - len(progress.sentences)
            good, problems = self.checker.sift(name, table.get(name, ()), missing)
            progress.sentences += good
            if good and self.model not in progress.models:
                progress.models.append(self.model)
            progress.problems = [] if len(good) == missing else problems or [TOO_FEW if table else WRONG_FORM]
        self.save()

    def save(self) -> None:
        classes = {name: progress.model_dump() for name, progress in self.progress.items() if progress != Progress()}
        write_json(self.partial, {"context": self.context, "classes": classes})

    def finish(self) -> dict[str, str]:
        """Writes the out file, with all classes that have their sentences; returns what was wrong with the others."""
        failed = {name: (self.progress[name].problems or ["not asked for"])[0] for name in self.unfinished()}
        if table := {name: self.progress[name].sentences for name in self.classnames if name not in failed}:
            write_json(self.out, table)
            known = {name: self.progress[name].models for name in table if self.progress[name].models}
            write_json(self.models_file, known)
        if not failed:
            self.partial.unlink(missing_ok=True)
        return failed

    def _read(self, path: Path, form: type[Form], empty: Form) -> Form:
        """A file of an earlier run, or of the user's; `empty` where there is none."""
        if not path.exists():
            return empty
        content = check(form, read_json(path), f"{path} is not what this command writes; choose another --out")
        for name in content.classes if isinstance(content, _Partial) else content:
            if name not in self.progress:
                raise UserError(f"{path} holds {name!r}, which is not in --classes; choose another --out")
        return content


def collect(collection: Collection, ask: Callable[[str], str], tries: int) -> None:
    """Asks until every class has its sentences, or was asked for `tries` times; `ask` answers a prompt."""
    collection.save()  # so that a folder that cannot be written is an error before any answer is paid for
    for attempt in range(tries):
        for batch in tqdm(collection.batches(attempt), desc="describing", unit="question", leave=False, disable=None):
            collection.take(batch, ask(collection.prompt(batch)))


# --- answers


def readable(name: str) -> str:
    """A class name as a prompt lists it."""
    return " ".join(name.replace("_", " ").split())


def read_answer(text: str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """Class name -> sentences, for those of `classnames` that are in an answer.

    The prompt asks for one JSON object. Models also answer with an object for each class, one a line or in a list, with
    an object or list around it, with objects such as `{"class": "cat", "sentences": [...]}`, with a comma after the
    last item, and with other words or thoughts around. All of these are read.
    """
    asked = {normalise_name(name): name for name in classnames}
    table: dict[str, list[str]] = {}
    try:
        # Some models send only the mark that ends their thoughts; of thoughts that never end, nothing is read
        said = text.rpartition("</think>")[2].partition("<think>")[0]
        for value in _json_objects(re.sub(r",\s*(?=[\]}])", "", said)):
            for names, sentences in _lists(value, []):
                if found := [asked[normalise_name(name)] for name in names if normalise_name(name) in asked]:
                    table.setdefault(found[0], []).extend(map(_tidy, sentences))
    except RecursionError:  # no proper answer is nested so deeply
        return {}
    return {name: table[name] for name in classnames if name in table}


def _json_objects(text: str) -> Iterator[object]:
    """The JSON objects in a text that are not part of another."""
    position = text.find("{")
    while position >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, position)
            yield value
        except ValueError:
            end = position + 1
        position = text.find("{", end)


def _lists(value: object, names: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The lists of texts in a JSON value, each with what may name its class: keys above it and texts beside it, the
    nearest first.
    """
    if isinstance(value, dict):
        beside = [text for text in value.values() if isinstance(text, str)]
        for key, held in value.items():
            yield from _lists(held, [key, *beside, *names])
    elif isinstance(value, list) and all(isinstance(text, str) for text in value):
        yield names, value
    elif isinstance(value, list):
        for held in value:
            yield from _lists(held, names)


def _tidy(sentence: str) -> str:
    """A sentence with single spaces, and "?" for half a surrogate pair, which JSON can spell but no file can hold."""
    return " ".join(sentence.split()).encode(errors="replace").decode()
