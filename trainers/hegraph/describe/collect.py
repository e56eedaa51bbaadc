"""Asks for sentences about every class until they are good: the question, the reading of answers, and what is kept.

Good sentences are written to `<out>.partial` after every answer, and to the out file in the end. Both are read at the
next start. So nothing is lost if the command is killed, and a class that has its sentences is never asked for again.
Which models wrote the sentences of each class is in `<out without .json>.models.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, Field
from tqdm import tqdm

from ..prompts.sentences import normalise_name
from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.reading import read_json
from ..utils.schema import Count, Part, check
from .checks import LEAST_WORDS, MOST_WORDS, Checker, alias_problems

LEFT_OUT = "the answer leaves this class out"
WRONG_FORM = 'the answer is not of the form {"class name": ["sentence", ...]}'
MOST_PROBLEMS = 8  # how many problems of its earlier sentences a prompt repeats for a class
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

Texts = dict[str, list[str]]  # class name -> sentences, aliases or models
Form = TypeVar("Form", Texts, "_Partial")


class Progress(Part):
    """How far a class is, in memory and in `<out>.partial`: its good sentences, how often it was asked for, what was
    wrong with the last answer, and the models that wrote the sentences, of which the user's own have none.
    """

    model_config = ConfigDict(frozen=False)  # the sentences come one after the other

    sentences: list[str] = Field(default_factory=list)
    tries: Count = 0
    problems: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)


class _Partial(Part):
    """All of `<out>.partial`."""

    context: str = ""
    classes: dict[str, Progress] = Field(default_factory=dict)


@dataclass
class Collection:
    """The sentences of a data set while they are collected, in memory and in files.

    Attributes:
        classnames: The classes in label order; a name that occurs twice is one class.
        out: The description file to write.
        context: What the pictures are, such as "satellite photos of land use".
        per_class: How many sentences each class is to have.
        batch_size: How many classes one question asks for at most.
        tries: How often a class is asked for at most.
        aliases: Class name -> other names of it.
        model: The model that is asked.

    Raises:
        UserError: If names cannot be told apart, or the files were written for other classes or another context.
    """

    classnames: Sequence[str]
    out: Path
    context: str
    per_class: int
    batch_size: int
    tries: int
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    model: str = ""

    def __post_init__(self) -> None:
        self.classnames = list(dict.fromkeys(self.classnames))
        self.models_file = self.out.with_suffix(".models.json")
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        _check_names(self.classnames, self.aliases)
        self.progress = {name: Progress() for name in self.classnames}
        written, partial = self._read(self.out, Texts, {}), self._read(self.partial, _Partial, _Partial())
        total = sum(max(self.per_class, len(written.get(name, ()))) for name in self.classnames)
        self.checker = Checker(total, self.aliases)
        self._keep_written(written, self._read(self.models_file, Texts, {}) if written else {})
        if partial.classes and partial.context != self.context:
            raise UserError(f"{self.partial} holds answers for the --context {partial.context!r}; choose another --out")
        for name in partial.classes.keys() - written.keys():
            progress = self.progress[name] = partial.classes[name]
            progress.sentences, problems = self.checker.sift(name, progress.sentences)
            progress.problems = progress.problems or problems

    def unfinished(self) -> list[str]:
        """Classes that lack sentences, in label order."""
        return [name for name, progress in self.progress.items() if len(progress.sentences) < self.per_class]

    def other_models(self) -> Counter[str]:
        """The models other than the one that is asked now -> how many classes have sentences of theirs."""
        return Counter(model for progress in self.progress.values() for model in progress.models if model != self.model)

    def batches(self, attempt: int) -> list[list[str]]:
        """The questions of an attempt, counted from 0, each as the classes that it asks for.

        They get smaller from one attempt to the next, since an answer may have been cut off for its length.
        """
        names = [name for name in self.unfinished() if self.progress[name].tries == attempt]
        size = max(1, self.batch_size >> attempt)
        return [names[i : i + size] for i in range(0, len(names), size)]

    def prompt(self, batch: Sequence[str]) -> str:
        """The question that asks for some classes. Of very many classes, those around the first of them are listed."""
        first, names = self.classnames.index(batch[0]), self.classnames
        start = max(0, min(first - MOST_LISTED // 2, len(names) - MOST_LISTED))
        listed = [readable(name) for name in names[start : start + MOST_LISTED]]
        if len(listed) < len(names):
            listed.append("and others")
        lines = []
        for name in batch:
            progress, line = self.progress[name], f"- {readable(name)}"
            if aliases := self.aliases.get(name, ()):
                line += f" (a sentence may also call it {', or '.join(aliases)})"
            if progress.sentences:
                line += f": {self.per_class - len(progress.sentences)} more, unlike the ones there:"
            lines += [line, *(f"  has: {sentence}" for sentence in progress.sentences)]
            lines += [f"  was refused: {problem}" for problem in progress.problems[:MOST_PROBLEMS]]
        words = {"least": LEAST_WORDS, "most": MOST_WORDS, "count": self.per_class}
        return PROMPT.format(context=self.context, listed="; ".join(listed), classes="\n".join(lines), **words)

    def take(self, batch: Sequence[str], answer: str) -> None:
        """Keeps the good sentences of an answer about the classes of a batch, and writes them to `<out>.partial`."""
        table = read_answer(answer, batch)
        for name in batch:
            progress = self.progress[name]
            progress.tries += 1
            missing = self.per_class - len(progress.sentences)
            good, problems = self.checker.sift(name, table.get(name, ()), missing)
            progress.sentences += good
            if good and self.model not in progress.models:
                progress.models.append(self.model)
            if name not in table:
                problems = [LEFT_OUT if table else WRONG_FORM]
            elif not problems:
                problems = [f"the answer holds {len(good)} sentences where {missing} are wanted"]
            progress.problems = problems if len(good) < missing else []
        self.save()

    def save(self) -> None:
        classes = {name: progress.model_dump() for name, progress in self.progress.items() if progress != Progress()}
        write_json(self.partial, {"context": self.context, "classes": classes})

    def finish(self) -> dict[str, str]:
        """Writes the out file, with all classes that have their sentences, and beside it which models wrote them.

        Returns:
            Class name -> what was wrong, for each other class.
        """
        failed = {name: (self.progress[name].problems or ["not asked for"])[0] for name in self.unfinished()}
        table = {name: self.progress[name].sentences for name in self.classnames if name not in failed}
        # The out file comes last: classes that it holds are done, and of a class that is done nothing is written again
        if models := {name: self.progress[name].models for name in table if self.progress[name].models}:
            write_json(self.models_file, models)
        if table:
            write_json(self.out, table)
        if not failed:
            self.partial.unlink(missing_ok=True)
            return failed
        for progress in self.progress.values():
            progress.tries = 0  # so that the same command asks for these classes again
        self.save()
        return failed

    def _keep_written(self, table: Texts, models: Texts) -> None:
        """Takes over the sentences of the out file. They stay in that file, so they must be good."""
        for name, sentences in table.items():
            self.progress[name].models = list(models.get(name, ()))
            self.progress[name].sentences, problems = self.checker.sift(name, sentences)
            if len(sentences) < self.per_class:
                problems.append(f"{len(sentences)} sentences where {self.per_class} are wanted")
            if problems:
                raise UserError(
                    f"{self.out} exists, and of {name!r} it holds something wrong: {problems[0]}; mend it, or take the "
                    "class out of the file to have it described anew, or choose another --out"
                )

    def _read(self, path: Path, form: type[Form], empty: Form) -> Form:
        """A file of an earlier run, or of the user's; `empty` where there is none."""
        if not path.exists():
            return empty
        content = check(form, read_json(path), f"{path} is not what this command writes; choose another --out")
        for name in content.classes if isinstance(content, _Partial) else content:
            if name not in self.progress:
                raise UserError(f"{path} holds {name!r}, which is not in --classes; choose another --out")
        return content


def collect(collection: Collection, ask: Callable[[str], str]) -> None:
    """Asks until every class has its sentences, or was asked for as often as is allowed.

    `ask` takes a prompt and returns the answer. Raises UserError if `ask` does, or a file cannot be written.
    """
    collection.save()  # so that a folder that cannot be written is an error before any answer is paid for
    num_classes = len(collection.classnames)
    with tqdm(total=num_classes, desc="describing", unit="class", disable=None) as bar:
        bar.update(num_classes - len(collection.unfinished()))
        for attempt in range(collection.tries):
            for batch in collection.batches(attempt):
                try:
                    answer = ask(collection.prompt(batch))
                except UserError as error:
                    kept = f"what was answered is kept in {collection.partial}, and the same command goes on"
                    raise UserError(f"{error}; {kept}") from None
                collection.take(batch, answer)
                bar.update(num_classes - len(collection.unfinished()) - bar.n)


def _check_names(classnames: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> None:
    seen: dict[str, str] = {}
    for name in classnames:
        if not any(letter.isalnum() for letter in name):
            raise UserError(f"the class name {name!r} holds no letter and no digit")
        if (other := seen.setdefault(normalise_name(name), name)) != name:
            raise UserError(f"the class names {other!r} and {name!r} are the same but for case, '_' and '-'")
    check(Texts, aliases, "--aliases must hold {class name: [alias, ...]}")
    if problems := alias_problems(aliases, classnames):
        raise UserError(f"--aliases: {problems[0]}")


# --- answers


def readable(name: str) -> str:
    """A class name as a prompt lists it."""
    return " ".join(name.replace("_", " ").split())


def read_answer(text: str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """The sentences in an answer, which may stand in a code fence or between other words.

    The prompt asks for one JSON object. Models also answer with an object for each class, one a line or in a list; with
    an object or list around it; with objects such as `{"class": "cat", "sentences": [...]}`; and with a comma after the
    last item. All of these are read.

    Returns:
        Class name -> sentences, for those of `classnames` that are in the answer. Others are left out.
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
