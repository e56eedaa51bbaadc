"""Images in Parquet files and Hugging Face data sets; nothing is fetched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from own_images import counts, load, picture, refused, rows_of, write

from trainers.hegraph.utils.errors import UserError

# Not "datasets" alone: pytest puts tests/ on the path, where a folder has that name
pytest.importorskip("datasets.config", reason="the package datasets is not installed")
import datasets as hf

NAMES = ["tree", "house", "boat", "cloud"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stored(shade: int) -> dict:
    return {"bytes": picture(shade), "path": f"{shade}.png"}


def table(labels: list, start: int = 0, label: str = "label"):
    kind = hf.ClassLabel(names=NAMES)
    rows = {"image": [stored(start + i) for i in range(len(labels))], label: labels, "id": list(range(len(labels)))}
    features = hf.Features({"image": hf.Image(), label: kind, "id": hf.Value("int64")})
    return hf.Dataset.from_dict(rows, features=features)


def write_columns(path: Path, images: list, labels: list) -> None:
    """Writes a table without the types that only Hugging Face's `datasets` knows."""
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pydict({"image": images, "label": labels}), path)


@pytest.fixture
def parquet(tmp_path) -> Path:
    folder = tmp_path / "pictures" / "data"
    folder.mkdir(parents=True)
    table([1, 0, 1, 2]).to_parquet(folder / "train-00000-of-00001.parquet")
    table([2], 50).to_parquet(folder / "validation-00000-of-00001.parquet")
    table([0, 1], 60).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "pictures"


def test_parquet_files_become_items_named_by_their_rows(parquet, caplog):
    dataset = load(f"hf:{parquet}")
    assert rows_of(dataset) == {
        "train": [("train/0", 1, "house"), ("train/1", 0, "tree"), ("train/2", 1, "house"), ("train/3", 2, "boat")],
        "val": [("val/0", 2, "boat")],
        "test": [("test/0", 0, "tree"), ("test/1", 1, "house")],
    }
    assert list(dataset.classnames) == ["tree", "house", "boat"]  # in the order of the labels; cloud has no image
    assert dataset.open("train/3").getpixel((2, 2)) == (3, 60, 60)
    assert dataset.open("test/1").getpixel((2, 2)) == (61, 60, 60)
    again = load(f"hf:{parquet}")
    assert rows_of(load(parquet)) == rows_of(dataset)
    assert dataset.file_version("train/0") == again.file_version("train/0")
    assert (dataset.file_version("train/0")[0], dataset.file_sizes()) == (len(picture(0)), again.file_sizes())
    table([1, 0, 1, 2], start=9).to_parquet(parquet / "data" / "train-00000-of-00001.parquet")
    assert load(f"hf:{parquet}").file_version("train/0") != dataset.file_version("train/0")
    assert not [record for record in caplog.records if record.name.startswith("trainers")]
    os.mkfifo(parquet / "data" / "train-1.parquet")
    refused(parquet, r"train-1\.parquet: it is no regular file")


@pytest.mark.parametrize(
    ("splits", "expected", "said"),
    [
        ({"Train": [1, 0, 1], "exam": [0], "Dev": [1, 0]}, [3, 2, 0], "exam; read are Train, Dev, "),
        ({"exam": [0], "holdout": [1]}, None, "exam, holdout; read are none, "),
    ],
)
def test_splits_that_are_not_read_are_left_out_with_one_warning(monkeypatch, caplog, splits, expected, said):
    loaded = hf.DatasetDict({name: table(labels) for name, labels in splits.items()})
    monkeypatch.setattr(hf, "load_dataset", lambda *names: loaded if names == ("somebody/pictures", "small") else {})
    if expected is None:
        refused("hf:somebody/pictures#small", "hf:somebody/pictures#small has no training image")
    else:
        assert counts(load("hf:somebody/pictures#small")) == expected
    [message] = caplog.messages
    assert message.startswith(f"hf:somebody/pictures#small: left out are the splits {said}")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ([stored(0), stored(1)], ["a", "  "], "train/1 has no label"),
        ([stored(0), stored(1)], [[3], [4]], r"train/0: the label must be a text or a number, got \[3\]"),
    ],
)
def test_rows_without_labels_or_images_are_named(tmp_path, images, labels, words):
    write_columns(tmp_path / "train.parquet", images, labels)
    refused(tmp_path, f"{tmp_path}: {words}")


def test_a_row_may_name_a_file_or_hold_no_image_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "1.png").write_bytes(picture(7))
    rows = [{"bytes": None, "path": str(tmp_path / name)} for name in ("pipe", "1.png")]
    write_columns(tmp_path / "all.parquet", [*rows, None, {"bytes": None, "path": None}], list("bacd"))
    dataset = load(tmp_path / "all.parquet")
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "b"), (0, "a"), (2, "c"), (3, "d")]
    assert dataset.open("train/1").getpixel((0, 0)) == (7, 60, 60)
    assert dataset.file_version("train/1")[0] == len(picture(7))
    with pytest.raises(UserError, match="cannot read the image train/0 of ImageFolder: is no regular file"):
        dataset.read("train/0")
    for row in (2, 3):
        for ask in (dataset.read, dataset.file_version):
            with pytest.raises(UserError, match=f"row {row} of train has no .*; list all: .* check folder --root"):
                ask(f"train/{row}")


def test_what_cannot_be_loaded_is_one_clear_line(tmp_path, monkeypatch):
    clear = "^cannot load {} with the package datasets as columns image and label: [^\n]*{}[^\n]*$"
    refused("hf:somebody/nothing", clear.format("hf:somebody/nothing", "somebody/nothing"))
    write(tmp_path / "train.parquet", "nothing of the kind")
    refused(tmp_path, clear.format(tmp_path, ""))
    table([1, 0], label="fine_label").to_parquet(tmp_path / "train.parquet")
    refused(tmp_path, clear.format(tmp_path, "fine_label"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, "needs the package datasets: pip install 'datasets>=3'")
