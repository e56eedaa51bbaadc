"""Collect good sentences about classes from a chat model: prompts, parsing of answers, and rules for sentences.

Good sentences are written to `<out>.partial` after each answer, and to the output file at the end. The next start reads
both files, so that a killed command loses nothing and no complete class is requested again.
`<out without .json>.models.json` lists the models that wrote the sentences of each class.

A test checks that the files in `prompts/descriptions/` follow the same rules.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, Field
from tqdm import tqdm

from ...utils.errors import UserError
from ...utils.files import write_json
from ...utils.reading import LenientModel, StrictModel, read_json, validate
from ...utils.text import shortened
from ..backbones.clip_tokens import CONTEXT_LENGTH, count_tokens
from .sentences import normalise_name

LEAST_WORDS, MOST_WORDS = 8, 35
OPENING_WORDS = 4
MOST_OPENINGS = 0.05  # fraction of a data set's sentences that may begin with the same OPENING_WORDS words
FEW_OPENINGS = 2  # number of sentences that may begin alike in small data sets
MAX_QUOTE = 240  # characters of a sentence in the description of a problem
MASK = "NAME"  # replaces the class name in comparisons of sentences

TOO_FEW = "the answer has too few sentences about this class, or none"
WRONG_FORM = 'the answer is not of the form {"class name": ["sentence", ...]}'
MAX_PROBLEMS = 8  # problems of earlier sentences of a class in a prompt

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
    """Progress of a class: good sentences, the models that wrote them, and problems of the last answer."""

    model_config = ConfigDict(frozen=False)  # sentences are added one by one

    sentences: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)


class _Partial(StrictModel):
    """Schema of `<out>.partial`."""

    context: str = ""
    classes: dict[str, Progress] = Field(default_factory=dict)


class Collection:
    """Sentences about the classes of a data set, in memory and in files.

    Args:
        classnames: Classes in label order; duplicates are one class.
        out: Description file to write. Classes that it describes are complete, whatever their sentences.
        context: Content of the images, such as "satellite photos of land use".
        per_class: Number of sentences per class.
        batch_size: Maximum number of classes per prompt.
        model: Name of the chat model.
        aliases: Class name -> other names that sentences may use instead.

    Raises:
        UserError: If class names are ambiguous, or the files belong to other classes or another context.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        out: Path,
        context: str,
        per_class: int,
        batch_size: int,
        model: str,
        aliases: Texts | None = None,
    ) -> None:
        self.classnames = list(dict.fromkeys(classnames))
        self.aliases = aliases or {}
        self.out = out
        self.partial = out.with_name(f"{out.name}.partial")
        self.context = context
        self.models_file = out.with_suffix(".models.json")
        self.per_class, self.batch_size, self.model = per_class, batch_size, model
        if problems := name_problems(self.classnames, self.aliases):
            raise UserError(problems[0])
        self.progress = {name: Progress() for name in self.classnames}
        written = self._read(out, Texts)
        models = self._read(self.models_file, Texts)
        partial = self._read(self.partial, _Partial)
        if partial.classes and partial.context != context:
            raise UserError(f"{self.partial} has answers for --context {partial.context!r}; choose another --out")
        self.done = frozenset(name for name, sentences in written.items() if sentences)
        self.progress |= partial.classes
        for name in self.done:
            self.progress[name] = Progress(sentences=written[name], models=models.get(name, []))
        self.checker = Checker(sum(max(per_class, len(p.sentences)) for p in self.progress.values()), self.aliases)
        for name, progress in self.progress.items():
            self.checker.select(name, progress.sentences)  # registers them as used

    def unfinished(self) -> list[str]:
        """List classes that lack sentences, in label order."""
        lacks = {name for name, progress in self.progress.items() if len(progress.sentences) < self.per_class}
        return [name for name in self.progress if name in lacks and name not in self.done]

    def batches(self, attempt: int) -> list[list[str]]:
        """Split the unfinished classes into prompts, for an attempt counted from 0.

        The size is halved in each attempt, because long answers may be cut off.
        """
        names = self.unfinished()
        size = max(1, self.batch_size >> attempt)
        return [names[i : i + size] for i in range(0, len(names), size)]

    def prompt(self, batch: Sequence[str]) -> str:
        """Write the prompt for a batch of classes."""
        lines = []
        for name in batch:
            progress = self.progress[name]
            line = f"- {readable(name)}"
            if aliases := self.aliases.get(name, ()):
                line += f" (a sentence may also call it {', or '.join(aliases)})"
            if progress.sentences:
                line += f": {self.per_class - len(progress.sentences)} more, unlike the ones there:"
            lines += [line, *(f"  has: {sentence}" for sentence in progress.sentences)]
            lines += [f"  was refused: {problem}" for problem in progress.problems[:MAX_PROBLEMS]]
        listed = "; ".join(map(readable, self.classnames))
        words = {"least": LEAST_WORDS, "most": MOST_WORDS, "count": self.per_class, "context": self.context}
        return PROMPT.format(listed=listed, classes="\n".join(lines), **words)

    def add_answer(self, batch: Sequence[str], answer: str) -> None:
        """Add the good sentences of an answer for a batch of classes, and write them to `<out>.partial`."""
        table = read_answer(answer, batch)
        for name in batch:
            progress = self.progress[name]
            missing = self.per_class - len(progress.sentences)
            good, problems = self.checker.select(name, table.get(name, ()), missing)
            progress.sentences += good
            if good and self.model not in progress.models:
                progress.models.append(self.model)
            if len(good) == missing:
                progress.problems = []
            else:
                progress.problems = problems or [TOO_FEW if table else WRONG_FORM]
        self.save()

    def save(self) -> None:
        """Write the sentences and problems so far to `<out>.partial`."""
        classes = {name: progress.model_dump() for name, progress in self.progress.items() if progress != Progress()}
        write_json(self.partial, {"context": self.context, "classes": classes})

    def finish(self) -> dict[str, str]:
        """Write the output file with all complete classes; return incomplete classes with their first problem."""
        failed = {name: (self.progress[name].problems or ["not requested"])[0] for name in self.unfinished()}
        if table := {name: self.progress[name].sentences for name in self.classnames if name not in failed}:
            write_json(self.out, table)
            models = {name: self.progress[name].models for name in table if self.progress[name].models}
            write_json(self.models_file, models)
        if not failed:
            self.partial.unlink(missing_ok=True)
        return failed

    def _read(self, path: Path, form: type[Form]) -> Form:
        """Read a file of an earlier call; a missing file is empty."""
        value = read_json(path) if path.exists() else {}
        content = validate(form, value, f"{path} was not written by this command; choose another --out")
        for name in content.classes if isinstance(content, _Partial) else content:
            if name not in self.progress:
                raise UserError(f"{path} has {name!r}, which is not in --classes; choose another --out")
        return content


def collect(collection: Collection, ask: Callable[[str], str], tries: int) -> None:
    """Request sentences until every class is complete or was requested `tries` times; `ask` answers a prompt."""
    collection.save()  # fails before the first paid request if the folder is not writable
    for attempt in range(tries):
        for batch in tqdm(collection.batches(attempt), desc="describing", unit="request", leave=False, disable=None):
            collection.add_answer(batch, ask(collection.prompt(batch)))


# Answers


def readable(name: str) -> str:
    """Format a class name for a prompt."""
    return " ".join(name.replace("_", " ").split())


def read_answer(text: str, classnames: Sequence[str]) -> dict[str, list[str]]:
    """Parse the answer of a language model to a prompt for sentences about classes.

    The prompt requests one JSON object. Models also answer with one object per class, one per line or in a list, with
    an enclosing object or list, with objects such as `{"class": "cat", "sentences": [...]}`, with a comma after the
    last item, and with other text or thoughts around. All of these are parsed.

    Returns:
        Sentences of each class in the answer, in the order of `classnames`; {} for an answer without any. Names are
        compared as by `normalise_name`.
    """
    requested = {normalise_name(name): name for name in classnames}
    table: dict[str, list[str]] = {}
    try:
        # Some models send the closing tag only; unfinished thoughts are ignored
        answer = text.rpartition("</think>")[2].partition("<think>")[0]
        for value in _json_objects(re.sub(r",\s*(?=[\]}])", "", answer)):
            for names, sentences in _lists(value, []):
                found = [requested.get(normalise_name(name)) for name in names]
                matches = [key for key in found if key]
                if matches:
                    # A lone surrogate, which JSON allows and UTF-8 does not, becomes "?"
                    tidy = [" ".join(text.split()).encode(errors="replace").decode() for text in sentences]
                    table.setdefault(matches[0], []).extend(tidy)
    except RecursionError:  # nested too deeply
        return {}
    return {name: table[name] for name in classnames if name in table}


def _json_objects(text: str) -> Iterator[object]:
    """Iterate over the outermost JSON objects in a text."""
    position = text.find("{")
    while position >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, position)
            yield value
        except ValueError:
            end = position + 1
        position = text.find("{", end)


def _lists(value: object, names: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Iterate over the lists of strings in a JSON value, each with candidates for its class name, the nearest first.

    Candidates are the keys above the list, and the strings in the same object.
    """
    if isinstance(value, dict):
        siblings = [text for text in value.values() if isinstance(text, str)]
        for key, entry in value.items():
            yield from _lists(entry, [key, *siblings, *names])
    elif isinstance(value, list) and all(isinstance(text, str) for text in value):
        yield names, value
    elif isinstance(value, list):
        for entry in value:
            yield from _lists(entry, names)


# Rules


class Checker:
    """Selects sentences of one data set that follow all rules and do not repeat an earlier good sentence.

    Args:
        total: Final number of sentences of the data set, which limits the frequency of an opening.
        aliases: Class name -> other names that sentences may use instead.
    """

    def __init__(self, total: int, aliases: Table | None = None) -> None:
        self.most_openings = max(FEW_OPENINGS, int(MOST_OPENINGS * total))
        self.aliases = aliases or {}
        self.texts: dict[str, str] = {}  # normalised good sentence, with and without class name -> class
        self.openings: Counter[str] = Counter()  # first words of good sentences -> frequency

    def select(self, name: str, sentences: Sequence[str], most: int | None = None) -> tuple[list[str], list[str]]:
        """Return the first `most` good sentences of a class, and the problems of bad ones.

        Later sentences may not repeat the good ones.
        """
        pattern = name_pattern([name, *self.aliases.get(name, ())])
        good: list[str] = []
        problems: list[str] = []
        for sentence in sentences:
            if len(good) == most:
                break
            texts = normalise_name(sentence), normalise_name(pattern.sub(MASK, sentence))
            openings = {" ".join(text.split()[:OPENING_WORDS]) for text in texts}
            broken = sentence_problems(sentence, pattern)
            if repeated := next((text for text in texts if text in self.texts), None):
                broken.append(f"equal to a sentence of {self.texts[repeated]!r} except for names")
            if overused := [opening for opening in sorted(openings) if self.openings[opening] >= self.most_openings]:
                broken.append(f"already {self.openings[overused[0]]} sentences begin with {overused[0]!r}")
            problems += [f"{problem}: {shortened(sentence, MAX_QUOTE)!r}" for problem in broken]
            if not broken:
                good.append(sentence)
                self.texts |= dict.fromkeys(texts, name)
                self.openings.update(openings)
        return good, problems


def sentence_problems(sentence: str, pattern: re.Pattern[str]) -> list[str]:
    """Describe each rule that a sentence breaks on its own; `pattern` matches the names of its class."""
    problems = []
    words = len(sentence.split())
    tokens = count_tokens(sentence)
    if not LEAST_WORDS <= words <= MOST_WORDS:
        problems.append(f"expected {LEAST_WORDS} to {MOST_WORDS} words, got {words}")
    if tokens > CONTEXT_LENGTH:
        problems.append(f"expected at most {CONTEXT_LENGTH} tokens, got {tokens}")
    if not pattern.search(sentence):
        problems.append("the class name is missing")
    start = sentence.lstrip("\"'“(")[:1]
    if not (start.isalnum() and not start.islower() and sentence.endswith(".")):
        problems.append("expected a capital letter at the start and a full stop at the end")
    # A full stop ends a sentence after three letters or more; shorter words may be abbreviations. The class name is
    # masked, as it may contain a full stop.
    if len(sentence.splitlines()) > 1 or re.search(r"\w{3}[.!?][\"'”)]*\s+\W?[A-Z]", pattern.sub(MASK, sentence)):
        problems.append("more than one sentence")
    return problems


def name_problems(classnames: Sequence[str], aliases: Table) -> list[str]:
    """Describe ambiguous class names and aliases, and names without a letter."""
    problems = [f"{name!r} has aliases: no such class" for name in aliases if name not in set(classnames)]
    owners: dict[str, str] = {}
    for name in classnames:
        for called in (name, *aliases.get(name, ())):
            if not any(letter.isalnum() for letter in called):
                problems.append(f"the name {called!r} of {name!r} has no letter and no digit")
            elif (owner := owners.setdefault(normalise_name(called), name)) != name:
                problems.append(f"{called!r} means both {owner!r} and {name!r}, as case, '_' and '-' are ignored")
    return problems


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Compile a pattern that matches the names and their plurals, with `_`, `-` or spaces between words."""
    spelled = []
    for name in sorted(names, key=len, reverse=True):  # the longest alternative first
        *words, last = map(re.escape, normalise_name(name).split() or [name])
        plurals = f"{last}(?:s|es)?" + (f"|{last[:-1]}ies" if last.endswith("y") else "")
        spelled.append(r"[\s_-]+".join([*words, f"(?:{plurals})"]))
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)
