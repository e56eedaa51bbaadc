"""CoOp's few-shot pickles: what Dassl's `Datum` says is read, and nothing in a pickle is ever run.

Pickles are made with a class that calls itself Dassl's. Read and dumped so, the pickles of the real CoOp (ff61507) come
out byte for byte, so these are like them.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from own_images import make, write

from trainers.hegraph.datasets import Dataset, Item, load_few_shot
from trainers.hegraph.datasets.splits import read_coop_pickle
from trainers.hegraph.utils.errors import UserError

MODULE = "dassl.data.datasets.base_dataset"


class Datum:
    def __init__(self, impath: object, label: object, classname: object) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


class Subclass(Datum):
    pass


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


Datum.__module__ = Subclass.__module__ = MODULE


def dump(content: Any, protocol: int = 5) -> bytes:
    """Pickles as in a process that has imported Dassl."""
    parts = MODULE.split(".")
    modules = {".".join(parts[: n + 1]): types.ModuleType(".".join(parts[: n + 1])) for n in range(len(parts))}
    vars(modules[MODULE]).update({"Datum": Datum, "Subclass": Subclass})
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        return pickle.dumps(content, protocol)


def datum(path: str, label: int, name: str) -> Datum:
    return Datum(f"/home/somebody/data/dtd/images/{path}", label, name)


CONTENT = {
    "train": [datum("bee/2.jpg", 1, "bee"), datum("ant/1.jpg", 0, "ant")],
    "val": [datum("bee/5.jpg", 1, "bee")],
}
READ = {
    "train": [Item("dtd/images/bee/2.jpg", 1, "bee"), Item("dtd/images/ant/1.jpg", 0, "ant")],
    "val": [Item("dtd/images/bee/5.jpg", 1, "bee")],
}


def read(folder: Path, content: bytes) -> dict[str, list[Item]]:
    (folder / "shot_1-seed_1.pkl").write_bytes(content)
    return read_coop_pickle(folder / "shot_1-seed_1.pkl", "dtd")


@pytest.mark.parametrize("protocol", [2, 5])
def test_items_are_read_in_their_order_with_paths_from_the_folder_of_the_data_set(protocol, tmp_path):
    assert read(tmp_path, dump(CONTENT, protocol)) == READ
    for path in ("/dtd/backup/dtd/images/a.jpg", "C:\\data\\dtd\\images\\a.jpg"):
        assert read(tmp_path, dump({"train": [Datum(path, 0, "ant")]})) == {"train": [("dtd/images/a.jpg", 0, "ant")]}


def test_a_call_is_refused_and_not_made_wherever_it_stands(tmp_path):
    trace = tmp_path / "it-ran"
    call = Calls(os.system, f"touch {trace}")
    for content in (call, {"train": [Datum(call, 0, "ant")]}, {**CONTENT, "more": call}):
        for protocol in (0, 2, 5):
            with pytest.raises(UserError, match="nothing in it was run"):
                read(tmp_path, dump(content, protocol))
            assert not trace.exists()
    pickle.loads(pickle.dumps(call))  # and it would have been made
    assert trace.exists()


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [OrderedDict()]}, "collections.OrderedDict"),
        ({"train": [Datum("/dtd/a.jpg", "0", "ant")]}, "has no path, label and name"),
        ({"train": [Datum("/dtdx/a.jpg", 0, "ant")]}, "/dtdx/a.jpg, which is not in a folder dtd"),
        ({"train": [datum("../dtd/a.jpg", 0, "ant")]}, "../dtd/a.jpg, which is not in a folder dtd"),
        ([1, 2], "it holds no training images"),
        (dump({"train": [Subclass("/dtd/a.jpg", 0, "ant")]}), f"it holds {MODULE}.Subclass"),
        (dump(CONTENT).replace(MODULE.encode(), b"x" * len(MODULE)), f"it holds {'x' * len(MODULE)}.Datum"),
        (b"\x80\x04" + _text(MODULE) + _text("Datum.__init__.__globals__") + b"\x93.", "Datum.__init__"),
        (dump(CONTENT)[:-20], ""),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", ""),  # a text of 2**63 bytes
        (b"Psomething\n.", ""),  # a persistent id
    ],
)
def test_other_content_and_a_damaged_pickle_are_refused_in_one_line(content, words, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, content if isinstance(content, bytes) else dump(content))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/shot_1-seed_1.pkl is damaged or not a pickle of CoOp's items")
    assert words in message and "\n" not in message


# --- in a data root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """DTD of CoOp with two classes; of each, images 1 to 4 are for training, 5 and 6 for val, 7 and 8 for testing."""
    numbers = {"train": (1, 2, 3, 4), "val": (5, 6), "test": (7, 8)}
    classes = list(enumerate(("ant", "bee")))
    rows = {split: [[f"{name}/{n}.jpg", y, name] for y, name in classes for n in of] for split, of in numbers.items()}
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps(rows))
    make(tmp_path / "dtd" / "images", *(path for split in rows.values() for path, *_ in split))
    (tmp_path / "dtd" / "split_fewshot").mkdir()
    return tmp_path


def load(root: Path, shots: int = 1, seed: int = 1) -> Dataset:
    return load_few_shot("DescribableTextures", str(root), shots, seed)


def test_what_coop_selected_before_wins_over_the_draw_of_these_shots_and_seed_and_this_is_said(root, caplog):
    tasks = [(1, 1), (1, 2), (2, 1), (-1, 1)]
    drawn = {task: load(root, *task) for task in tasks}
    path = root / "dtd" / "split_fewshot" / "shot_1-seed_1.pkl"
    path.write_bytes(dump(CONTENT))
    caplog.set_level(logging.INFO)
    for task in tasks:
        expected = READ | {"test": drawn[task].test} if task == (1, 1) else drawn[task].splits
        assert load(root, *task).splits == expected
    assert drawn[1, 1].train != READ["train"]
    assert caplog.messages.count(f"{path}: CoOp's own few-shot selection is used") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": [datum("ant/1.jpg", 0, "ant"), datum("bee/1.jpg", 7, "bee")]}, "bee/1.jpg is 'bee'"),
        ({"val": [datum("bee/1.jpg", 1, "wasp")]}, "bee/1.jpg is 'wasp'"),
        ({"train": [datum("ant/7.jpg", 0, "ant")]}, "ant/7.jpg is a test image"),
        ({"val": None}, "it has no val"),
    ],
)
def test_a_pickle_of_another_split_is_an_error_that_names_it(changes, words, root):
    path = root / "dtd" / "split_fewshot" / "shot_1-seed_1.pkl"
    path.write_bytes(dump({split: data for split, data in {**CONTENT, **changes}.items() if data is not None}))
    with pytest.raises(UserError, match=words) as error:
        load(root)
    assert f"{path} was drawn from another split; delete it" in str(error.value)
