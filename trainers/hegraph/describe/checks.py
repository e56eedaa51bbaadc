"""Rules for sentences that describe image classes. Each way of breaking one is reported as a line of text.

The files of `prompts/descriptions/` keep these rules, which a test checks, and so does every sentence that the command
of this folder accepts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ..backbones.clip import CONTEXT_LENGTH, count_tokens
from ..prompts.sentences import normalise_name
from ..utils.errors import shortened

LEAST_WORDS, MOST_WORDS = 8, 35
OPENING_WORDS = 4
MOST_OPENINGS = 0.05  # the share of a data set's sentences that may begin with the same OPENING_WORDS words
FEW_OPENINGS = 2  # so many sentences may always begin alike, however small the data set
LONGEST_QUOTE = 240  # how many characters of a sentence a problem quotes

MASK = "NAME"  # stands for the name of the class where sentences are compared without it

Table = Mapping[str, Sequence[str]]  # class name -> sentences, or class name -> aliases


class Checker:
    """Finds the good sentences of one data set: those that keep all rules and do not repeat an earlier good one.

    Args:
        total: How many sentences the data set has, or will have; it limits how often an opening may occur.
        aliases: Class name -> other names that a sentence may use, where the class name reads badly in a sentence.
    """

    def __init__(self, total: int, aliases: Table | None = None) -> None:
        self.most_openings = max(FEW_OPENINGS, int(MOST_OPENINGS * total))
        self.aliases = aliases or {}
        self.texts: dict[str, str] = {}  # a good sentence in plain letters -> its class
        self.masked: dict[str, str] = {}  # the same with names masked
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
            found = sentence_problems(sentence, pattern) + self._repetitions(name, sentence, pattern)
            if found:
                problems += [f"{problem}: {shortened(sentence, LONGEST_QUOTE)!r}" for problem in found]
            else:
                good.append(sentence)
                plain, masked, openings = _keys(sentence, pattern)
                self.texts[plain] = self.masked[masked] = name
                self.openings.update(openings)
        return good, problems

    def _repetitions(self, name: str, sentence: str, pattern: re.Pattern[str]) -> list[str]:
        """In what a sentence repeats the good ones so far."""
        plain, masked, openings = _keys(sentence, pattern)
        problems = []
        if plain in self.texts:
            problems.append(f"the same sentence as one of {_whose(self.texts[plain], name)}")
        elif masked in self.masked:
            problems.append(f"but for the name, the same sentence as one of {_whose(self.masked[masked], name)}")
        worn = [opening for opening in sorted(openings) if self.openings[opening] >= self.most_openings]
        if worn:
            problems.append(f"already {self.openings[worn[0]]} sentences begin with {worn[0]!r}")
        return problems


def sentence_problems(sentence: str, pattern: re.Pattern[str]) -> list[str]:
    """What is wrong with a sentence, whatever the others are; `pattern` finds the names of its class."""
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


def _keys(sentence: str, pattern: re.Pattern[str]) -> tuple[str, str, set[str]]:
    """What a sentence is compared by: its plain letters, the same with names masked, and the openings of both."""
    plain, masked = normalise_name(sentence), normalise_name(pattern.sub(MASK, sentence))
    return plain, masked, {" ".join(text.split()[:OPENING_WORDS]) for text in (plain, masked)}


def _whose(owner: str, name: str) -> str:
    return "its own" if owner == name else repr(owner)
