"""Asks for sentences about every class until they are good.

Good sentences are written to `<out>.partial` after every answer, and to the out file in the end. Both are read at the
next start. So nothing is lost if the command is killed, and a class that has its sentences is never asked for again.
Which models wrote the sentences of each class is in `<out without .json>.models.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, Field
from tqdm import tqdm

from ..prompts.sentences import normalise_name
from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.reading import read_json
from ..utils.schema import Count, Part, check
from .checks import Checker, alias_problems
from .dialogue import build_prompt, read_answer, readable

LEFT_OUT = "the answer leaves this class out"
WRONG_FORM = 'the answer is not of the form {"class name": ["sentence", ...]}'
MOST_PROBLEMS = 8  # how many problems of its earlier sentences a prompt repeats for a class

Texts = dict[str, list[str]]  # class name -> sentences, aliases or models
Form = TypeVar("Form", Texts, "_Partial")


class Progress(Part):
    """How far a class is, in memory and in `<out>.partial`.

    Attributes:
        sentences: The good sentences so far.
        tries: How often the class was asked for.
        problems: What was wrong with the last answer.
        models: The models that wrote the sentences; empty where the user wrote them.
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


class Collection:
    """The sentences of a data set while they are collected, in memory and in files.

    Args:
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

    def __init__(
        self,
        classnames: Sequence[str],
        out: Path,
        context: str,
        per_class: int,
        batch_size: int,
        tries: int,
        aliases: Mapping[str, Sequence[str]] | None = None,
        model: str = "",
    ) -> None:
        self.model, self.models_file = model, out.with_suffix(".models.json")
        self.classnames = list(dict.fromkeys(classnames))
        self.out, self.partial = out, out.with_name(f"{out.name}.partial")
        self.context, self.per_class, self.batch_size, self.tries = context, per_class, batch_size, tries
        self.aliases = {} if aliases is None else aliases
        _check_names(self.classnames, self.aliases)
        self.progress = {name: Progress() for name in self.classnames}
        written, partial = self._read(out, Texts, {}), self._read(self.partial, _Partial, _Partial())
        total = sum(max(per_class, len(written.get(name, ()))) for name in self.classnames)
        self.checker = Checker(total, self.aliases)
        self._keep_written(written, self._read(self.models_file, Texts, {}) if written else {})
        if partial.classes and partial.context != context:
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
        return build_prompt(self.context, self.classnames, batch[0], lines, self.per_class)

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
        """Writes `<out>.partial`."""
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
