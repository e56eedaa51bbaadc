"""CoOp's few-shot pickles: what Dassl's `Datum` says is read, and nothing in a pickle is ever run.

Pickles are made with a class that calls itself Dassl's. Read and dumped so, the pickles of the real CoOp (ff61507) come
out byte for byte, so these are like them.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.hegraph.datasets import Item, load_few_shot
from trainers.hegraph.datasets.splits import read_coop_pickle
from trainers.hegraph.utils.errors import UserError

MODULE = "dassl.data.datasets.base_dataset"


class Datum:
    def __init__(self, impath: object, label: object, classname: object) -> None:
        self._impath = impath
        self._label = label
        self._domain = 0
        self._classname = classname


Datum.__module__ = MODULE


def dump(content: Any, protocol: int = 5, **classes: type) -> bytes:
    """Pickles as in a process that has imported Dassl; `classes` are further ones in Datum's module."""
    parts = MODULE.split(".")
    modules = {".".join(parts[: n + 1]): types.ModuleType(".".join(parts[: n + 1])) for n in range(len(parts))}
    vars(modules[MODULE]).update({"Datum": Datum, **classes})
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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shot_1-seed_1.pkl"


def read(file: Path, content: bytes) -> dict[str, list[Item]]:
    file.write_bytes(content)
    return read_coop_pickle(file, "dtd")


@pytest.mark.parametrize("protocol", [2, 5])
def test_items_are_read_in_their_order_with_paths_from_the_folder_of_the_data_set(protocol, file):
    assert read(file, dump(CONTENT, protocol)) == READ


@pytest.mark.parametrize(
    "path",
    ["/data/dtd/images/a.jpg", "/dtd/backup/dtd/images/a.jpg", "C:\\data\\dtd\\images\\a.jpg", "dtd/images/a.jpg"],
)
def test_paths_of_another_machine_are_cut_to_begin_with_the_folder(path, file):
    assert read(file, dump({"train": [Datum(path, 0, "ant")]})) == {"train": [Item("dtd/images/a.jpg", 0, "ant")]}


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["alone", "as an item", "as a path", "after the items"])
def test_a_call_is_refused_and_not_made(place, protocol, file, tmp_path):
    trace = tmp_path / "it-ran"
    for call in (Calls(os.system, f"touch {trace}"), Calls(builtins.exec, f"open({str(trace)!r}, 'w')")):
        content = {
            "alone": call,
            "as an item": {"train": [call]},
            "as a path": {"train": [Datum(call, 0, "ant")]},
            "after the items": {**CONTENT, "more": call},
        }[place]
        with pytest.raises(UserError):
            read(file, dump(content, protocol))
        assert not trace.exists()
        pickle.loads(pickle.dumps(call))  # and it would have been made
        assert trace.exists()
        trace.unlink()


class Subclass(Datum):
    pass


Subclass.__module__, Subclass.__qualname__ = MODULE, "Subclass"
THROUGH = "Datum.__init__.__globals__"  # a dotted name, which protocol 4 looks up attribute by attribute


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [Datum("/dtd/a.jpg", np.int64(0), "ant")]}, "numpy"),
        ({"train": [OrderedDict()]}, "collections.OrderedDict"),
        ({"train": [{"_impath": "/dtd/a.jpg", "_label": 0, "_classname": "ant"}]}, "it holds a dict"),
        ({"train": "dtd"}, "it holds a str"),
        ({"train": [Datum(None, 0, "ant")]}, "has no path, label and name"),
        ({"train": [Datum("/dtd/a.jpg", "0", "ant")]}, "has no path, label and name"),
        ({"train": [Datum("/dtd/a.jpg", 0, None)]}, "has no path, label and name"),
        ({"train": [Datum("/dtdx/a.jpg", 0, "ant")]}, "/dtdx/a.jpg, which is not in a folder dtd"),
        ({"train": [datum("a.jpg", 0, "ant")], "val": [7]}, "it holds a int"),
        ({"train": [Calls(os.system, "1")]}, f"it holds {os.system.__module__}.system"),
        ({"train": [Datum.__new__(Datum)]}, "_impath"),
        ([1, 2], "it holds no training images"),
        ({"train": [], "val": []}, "it holds no training images"),
        (dump({"train": [Subclass("/dtd/a.jpg", 0, "ant")]}, Subclass=Subclass), f"it holds {MODULE}.Subclass"),
        (dump(CONTENT).replace(MODULE.encode(), b"x" * len(MODULE)), f"it holds {'x' * len(MODULE)}.Datum"),
        (b"\x80\x04" + _text(MODULE) + _text(THROUGH) + b"\x93.", "Datum.__init__"),
        (b"", ""),
        (b"PK\x03\x04 a zip file", ""),
        (dump(CONTENT)[:-20], ""),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", ""),  # a text of 2**63 bytes
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00.", ""),  # as many bytes as no memory has
        (b"\x80\x04h\xff.", ""),  # an unknown memo
        (b"\x80\x02\x82\x01.", ""),  # an extension
        (b"Psomething\n.", ""),  # a persistent id
        (b"(" * 100000, ""),
    ],
)
def test_other_content_and_a_damaged_pickle_are_refused_in_one_line(content, words, file):
    with pytest.raises(UserError) as error:
        read(file, content if isinstance(content, bytes) else dump(content))
    message = str(error.value)
    assert message.startswith(f"{file} is damaged or not a pickle of CoOp's items")
    assert words in message and "\n" not in message


# --- in a data root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """DTD of CoOp with two classes; of each, images 1 to 4 are for training, 5 and 6 for val, 7 and 8 for testing."""
    folder = tmp_path / "dtd"
    rows = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("ant", "bee")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(1, 9):
            split = "train" if number <= 4 else "val" if number <= 6 else "test"
            (folder / "images" / name / f"{number}.jpg").touch()
            rows[split].append([f"{name}/{number}.jpg", label, name])
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    (folder / "split_fewshot").mkdir()
    return tmp_path


def keep(root: Path, content: Any, shots: int = 1, seed: int = 1) -> Path:
    path = root / "dtd" / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    path.write_bytes(dump(content))
    return path


def load(root: Path, shots: int = 1, seed: int = 1):
    return load_few_shot("DescribableTextures", str(root), shots, seed)


def test_what_coop_selected_before_wins_over_the_draw_of_these_shots_and_seed_and_this_is_said(root, caplog):
    drawn = {(shots, seed): load(root, shots, seed) for shots in (1, 2, -1) for seed in (1, 2)}
    path = keep(root, CONTENT)
    with caplog.at_level(logging.INFO):
        for (shots, seed), before in drawn.items():
            dataset = load(root, shots, seed)
            if (shots, seed) == (1, 1):
                assert (dataset.train, dataset.val, dataset.test) == (READ["train"], READ["val"], before.test)
                assert dataset.train != before.train
            else:
                assert dataset.splits == before.splits
    assert caplog.messages.count(f"{path}: CoOp's own few-shot selection is used") == 1


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([datum("../../elsewhere.jpg", 0, "ant"), datum("bee/1.jpg", 1, "bee")], r"not a pickle .* it names .*\.\./"),
        ([datum("bee/../ant/7.jpg", 0, "ant"), datum("bee/1.jpg", 1, "bee")], r"not a pickle .* it names .*\.\./"),
        ([datum("ant/1.jpg", 0, "ant"), datum("bee/1.jpg", 7, "bee")], "bee/1.jpg has label 7, 'bee'"),
        ([datum("ant/1.jpg", 1, "ant"), datum("bee/1.jpg", 0, "bee")], "has label 0, 'bee'"),
        ([datum("ant/1.jpg", 0, "ant"), datum("bee/1.jpg", 1, "wasp")], "has label 1, 'wasp'"),
        ([datum("ant/7.jpg", 0, "ant"), datum("bee/1.jpg", 1, "bee")], "ant/7.jpg is a test image"),
    ],
    ids=["out of the folder", "to test images", "label beyond", "another order", "another name", "a test image"],
)
def test_a_pickle_of_another_split_is_an_error_that_names_it(train, words, root):
    path = keep(root, {**CONTENT, "train": train})
    with pytest.raises(UserError, match=words) as error:
        load(root)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)


def test_a_pickle_without_val_is_an_error_where_the_data_set_has_one_of_its_own(root):
    keep(root, {"train": CONTENT["train"]})
    with pytest.raises(UserError, match="delete it to draw anew .it has no val"):
        load(root)
