"""Asks for sentences about every class until they are good: the question, the reading of answers, the rules for good
sentences, and what is kept.

Good sentences are written to `<out>.partial` after every answer, and to the out file in the end. Both are read at the
next start. So nothing is lost if the command is killed, and a class that has its sentences is never asked for again.
Which models wrote the sentences of each class is in `<out without .json>.models.json`.

The files of `prompts/descriptions/` keep the same rules, which a test checks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, Field
from tqdm import tqdm

from ..backbones.clip import CONTEXT_LENGTH, count_tokens
from ..prompts.sentences import normalise_name
from ..utils.errors import UserError, shortened
from ..utils.files import write_json
from ..utils.reading import LenientModel, StrictModel, read_json, validate

LEAST_WORDS, MOST_WORDS = 8, 35
OPENING_WORDS = 4
MOST_OPENINGS = 0.05  # the share of a data set's sentences that may begin with the same OPENING_WORDS words
FEW_OPENINGS = 2  # so many sentences may always begin alike, however small the data set
LONGEST_QUOTE = 240  # how many characters of a sentence a problem quotes
MASK = "NAME"  # stands for the name of the class where sentences are compared without it

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
Table = Mapping[str, Sequence[str]]  # class name -> sentences or aliases
Form = TypeVar("Form", Texts, "_Partial")


class Progress(LenientModel):
    """How far a class is: its good sentences, the models that wrote them, and what was wrong with the last answer."""

    model_config = ConfigDict(frozen=False)  # the sentences come one after the other

    sentences: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)


class _Partial(StrictModel):
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
        written, models = self._read(out, Texts), self._read(self.models_file, Texts)
        partial = self._read(self.partial, _Partial)
        if partial.classes and partial.context != context:
            raise UserError(f"{self.partial} holds answers for the --context {partial.context!r}; choose another --out")
        self.done = frozenset(written)
        self.progress |= partial.classes
        for name, sentences in written.items():
            self.progress[name] = Progress(sentences=sentences, models=models.get(name, []))
        self.checker = Checker(sum(max(per_class, len(p.sentences)) for p in self.progress.values()), self.aliases)
        for name, progress in self.progress.items():
            self.checker.sift(name, progress.sentences)  # which new ones may not repeat

    def unfinished(self) -> list[str]:
        """Classes that lack sentences, in label order."""
        progress = {name: found for name, found in self.progress.items() if name not in self.done}
        return [name for name, found in progress.items() if len(found.sentences) < self.per_class]

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

    def _read(self, path: Path, form: type[Form]) -> Form:
        """A file of an earlier run, or of the user's; nothing is in one that is not there."""
        value = read_json(path) if path.exists() else {}
        content = validate(form, value, f"{path} is not what this command writes; choose another --out")
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
                    # JSON can spell half of a surrogate pair, which no file can hold: it becomes "?"
                    tidy = [" ".join(text.split()).encode(errors="replace").decode() for text in sentences]
                    table.setdefault(found[0], []).extend(tidy)
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


# --- rules


class Checker:
    """Finds the good sentences of one data set: those that keep all rules and do not repeat an earlier good one.

    Args:
        total: How many sentences the data set has, or will have; it limits how often an opening may occur.
        aliases: Class name -> other names that a sentence may use, where the class name reads badly in a sentence.
    """

    def __init__(self, total: int, aliases: Table | None = None) -> None:
        self.most_openings = max(FEW_OPENINGS, int(MOST_OPENINGS * total))
        self.aliases = aliases or {}
        self.texts: dict[str, str] = {}  # a good sentence in plain letters, as it is and with names masked -> its class
        self.openings: Counter[str] = Counter()  # the first words of a good sentence -> how many begin so

    def sift(self, name: str, sentences: Sequence[str], most: int | None = None) -> tuple[list[str], list[str]]:
        """The good ones of a class's sentences, which later ones may not repeat, and a line for each problem of others.

        What comes after `most` good ones is left alone.
        """
        pattern = name_pattern([name, *self.aliases.get(name, ())])
        good: list[str] = []
        problems: list[str] = []
        for sentence in sentences:
            if len(good) == most:
                break
            texts = normalise_name(sentence), normalise_name(pattern.sub(MASK, sentence))
            openings = {" ".join(text.split()[:OPENING_WORDS]) for text in texts}
            found = sentence_problems(sentence, pattern)
            if twin := next((text for text in texts if text in self.texts), None):
                found.append(f"but for names, the same sentence as one of {self.texts[twin]!r}")
            if worn := [opening for opening in sorted(openings) if self.openings[opening] >= self.most_openings]:
                found.append(f"already {self.openings[worn[0]]} sentences begin with {worn[0]!r}")
            problems += [f"{problem}: {shortened(sentence, LONGEST_QUOTE)!r}" for problem in found]
            if not found:
                good.append(sentence)
                self.texts |= dict.fromkeys(texts, name)
                self.openings.update(openings)
        return good, problems


def sentence_problems(sentence: str, pattern: re.Pattern[str]) -> list[str]:
    """A line for each rule that a sentence breaks, whatever the others are; `pattern` finds the names of its class."""
    problems = []
    words, tokens = len(sentence.split()), count_tokens(sentence)
    if not LEAST_WORDS <= words <= MOST_WORDS:
        problems.append(f"{words} words where {LEAST_WORDS} to {MOST_WORDS} are wanted")
    if tokens > CONTEXT_LENGTH:
        problems.append(f"{tokens} tokens where CLIP reads {CONTEXT_LENGTH}")
    if not pattern.search(sentence):
        problems.append("it does not name its class")
    start = sentence.lstrip("\"'“(")[:1]
    if not (start.isalnum() and not start.islower() and sentence.endswith(".")):
        problems.append("a sentence begins with a capital letter and ends with a full stop")
    # A full stop ends a sentence only after a word of three letters, since shorter ones may be abbreviations. The name
    # of the class is masked, as it may hold a full stop too.
    if len(sentence.splitlines()) > 1 or re.search(r"\w{3}[.!?][\"'”)]*\s+\W?[A-Z]", pattern.sub(MASK, sentence)):
        problems.append("more than one sentence")
    return problems


def name_problems(classnames: Sequence[str], aliases: Table) -> list[str]:
    """What is wrong with the names and aliases of classes: two classes have one name, or one holds no letter."""
    problems = [f"{name!r} has aliases: no such class" for name in aliases if name not in set(classnames)]
    owners: dict[str, str] = {}
    for name in classnames:
        for called in (name, *aliases.get(name, ())):
            if not any(letter.isalnum() for letter in called):
                problems.append(f"the name {called!r} of {name!r} holds no letter and no digit")
            elif (owner := owners.setdefault(normalise_name(called), name)) != name:
                problems.append(f"{called!r} names both {owner!r} and {name!r}, as case, '_' and '-' do not count")
    return problems


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the names and their plurals in a text, whatever the case, and `_`, `-` or spaces between words."""
    spelled = []
    for name in sorted(names, key=len, reverse=True):  # so that of two names, one of which begins the other, both match
        *words, last = map(re.escape, normalise_name(name).split() or [name])
        plurals = f"{last}(?:s|es)?" + (f"|{last[:-1]}ies" if last.endswith("y") else "")
        spelled.append(r"[\s_-]+".join([*words, f"(?:{plurals})"]))
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)
