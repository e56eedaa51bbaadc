"""Random sequences of changes, undo, kills and zip files of a teach project, compared with a model in memory."""

import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import pytest
from teach_files import FLAT, NESTED, files_of, png, write

from trainers.hegraph.apps.teach.contents import Picture
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.utils.errors import UserError

pytest.importorskip("hypothesis", reason="hypothesis is not installed, which generates the sequences")
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

POOLS = ("unlabelled", "none of these")
PLACES = st.sampled_from(["cat", "dog", "elk", *POOLS])
COLOURS = st.lists(st.sampled_from(["red", "lime", "blue", "damaged"]), max_size=3)
# Equal except for case or Unicode form, forbidden as a folder, a split, a pool, new
NAMES = ("cat", "CAT", "dog", "\xe9t\xe9", "E\u0301te\u0301", "a/b", "", "Test", "Unlabelled", "elk")
POSITIONS = st.integers(0, 9)  # of an image
State = dict[str, Counter[str]]  # place -> digests of its images


def key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class ProjectMachine(RuleBasedStateMachine):
    """`state` and `confirmed` are the expected contents; `history` holds them and the files before each change."""

    @initialize(files=st.sampled_from([NESTED, FLAT]))
    def start(self, files: dict[str, bytes]) -> None:
        self.folder = Path(tempfile.mkdtemp(), "project")
        write(self.folder, files)
        self.project = Project(self.folder)
        self.state, self.confirmed = self.read()
        self.history: list[tuple[State, set[str], dict[str, bytes]]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder.parent)

    def read(self) -> tuple[State, set[str]]:
        contents = self.project.read()
        state = {place: Counter(p.digest for p in images) for place, images in contents.images.items()}
        return state, {*contents.confirmed}

    def pick(self, number: int) -> Picture:
        pictures = sorted(self.project.read().pictures())
        return pictures[number % len(pictures)] if pictures else Picture("missing.png", "")

    def expect(self, act: Callable[[], object], state: State | None, confirmed: set[str] | None = None) -> None:
        """Check that a change leads to a state, or for None that it is refused."""
        before = self.state, self.confirmed, files_of(self.folder)
        if state is None:
            with pytest.raises(UserError):
                act()
            assert files_of(self.folder) == before[2]
            return
        act()
        self.state, self.confirmed = state, self.confirmed if confirmed is None else confirmed
        if (self.state, self.confirmed) != before[:2]:
            self.history.append(before)

    def is_free(self, name: str, renamed: str = "") -> bool:
        """Whether a class can have a name."""
        used = {key(place) for place in self.state if place != renamed}
        split = not self.project.read().base and name == "Test"
        return name not in ("", "a/b") and key(name) not in used and not split

    def after_move(self, picture: Picture, place: str) -> State:
        state = {name: Counter(digests) for name, digests in self.state.items()}
        state[self.project.read().pictures()[picture]][picture.digest] -= 1
        if place:
            state[place][picture.digest] += 1
        return {name: +digests for name, digests in state.items()}

    @rule(name=st.sampled_from(NAMES))
    def add_class(self, name: str) -> None:
        state = {**self.state, unicodedata.normalize("NFC", name): Counter[str]()} if self.is_free(name) else None
        self.expect(lambda: self.project.add_class(name), state)

    @rule(old=st.sampled_from([*NAMES, *POOLS]), new=st.sampled_from(NAMES))
    def rename_class(self, old: str, new: str) -> None:
        state = None
        if old in self.state and old not in POOLS and self.is_free(new, old):
            state = {unicodedata.normalize("NFC", new) if name == old else name: d for name, d in self.state.items()}
        self.expect(lambda: self.project.rename_class(old, new), state)

    @rule(name=st.sampled_from([*NAMES, *POOLS]))
    def delete_class(self, name: str) -> None:
        exists = name in self.state and name not in POOLS
        state = {place: digests for place, digests in self.state.items() if place != name} if exists else None
        self.expect(lambda: self.project.delete_class(name), state)

    @rule(number=POSITIONS, place=PLACES | st.just(""))
    def move(self, number: int, place: str) -> None:
        picture, state, confirmed = self.pick(number), None, self.confirmed
        before = self.project.read().pictures().get(picture)
        if before is not None and (not place or place in self.state):
            state = self.after_move(picture, place)
            confirmed = confirmed if before == place else confirmed - {picture.digest}
        self.expect(lambda: self.project.move([picture], place), state, confirmed)

    @rule(number=POSITIONS)
    def confirm(self, number: int) -> None:
        picture = self.pick(number)
        self.expect(lambda: self.project.confirm(picture), self.state, self.confirmed | {picture.digest} - {""})

    @rule(number=POSITIONS, name=PLACES)
    def keep_in_one_class(self, number: int, name: str) -> None:
        digest, state = self.pick(number).digest, None
        if name not in POOLS and self.state.get(name, {}).get(digest):
            state = {
                place: Counter({d: n for d, n in digests.items() if place in (name, *POOLS) or d != digest})
                for place, digests in self.state.items()
            }
        self.expect(lambda: self.project.keep_in_one_class(digest, name), state)

    @rule(place=PLACES, colours=COLOURS)
    def add(self, place: str, colours: list[str]) -> None:
        files = [("a.png", b"no image" if colour == "damaged" else png(colour)) for colour in colours]
        state = None
        if place in self.state:
            new = {sha256(png(c)).hexdigest() for c in colours if c != "damaged"} - {*self.state[place]}
            state = {**self.state, place: self.state[place] + Counter(new)}
        self.expect(lambda: self.project.add(place, files), state)

    @rule()
    def undo(self) -> None:
        if not self.history:
            self.expect(self.project.undo, None)
            return
        self.state, self.confirmed, files = self.history.pop()
        self.project.undo()
        assert files_of(self.folder) == files

    @rule()
    def reopen(self) -> None:
        self.project = Project(self.folder)

    @rule(after=st.integers(0, 4), number=st.integers(1))
    def kill(self, after: int, number: int) -> None:
        """Kill the program within a change, which is then made as a whole or not at all."""
        images = [png("navy", (number % 100 + 1, height)) for height in (1, 2)]
        before, new = files_of(self.folder), {sha256(image).hexdigest() for image in images}
        with killed(after), suppress(SystemExit):
            self.project.add("unlabelled", [("k.png", image) for image in images])
        self.project = Project(self.folder)
        added = Counter(new - {*self.state["unlabelled"]})
        if self.read()[0] != self.state:
            self.history.append((self.state, self.confirmed, before))
            self.state = {**self.state, "unlabelled": self.state["unlabelled"] + added}
        else:
            assert files_of(self.folder) == before

    @rule()
    def copy_by_zip(self) -> None:
        path, other = self.folder.with_name("project.zip"), Project(self.folder.with_name("copy"))
        self.project.write_zip(path)
        if len(self.state) > len(POOLS) or self.project.read().pictures():
            other.add_zip(path)
            images = other.read().images.items()
            distinct = {place: set(digests) for place, digests in self.state.items()}
            assert {place: {p.digest for p in found} for place, found in images} == distinct
            other.undo()
            assert files_of(other.folder) == {}
            shutil.rmtree(other.folder)

    @invariant()
    def contents_are_expected(self) -> None:
        assert self.read() == (self.state, self.confirmed)
        assert len(self.project.journal().changes) == len(self.history)


@contextmanager
def killed(after: int) -> Iterator[None]:
    """Kill the program before its renaming number `after`, so that no roll-back follows."""
    left, roll_back = [after], Project._roll_back

    def counted(function: Callable) -> Callable:
        def rename(*paths: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise SystemExit
            function(*paths)

        return rename

    with (
        patch.object(os, "rename", counted(os.rename)), patch.object(os, "replace", counted(os.replace)),
        patch.object(Project, "_roll_back", lambda project: roll_back(project) if left[0] >= 0 else None),
    ):  # fmt: skip
        yield


TestProject = ProjectMachine.TestCase
TestProject.settings = settings(max_examples=20, stateful_step_count=25, deadline=None, derandomize=True)
