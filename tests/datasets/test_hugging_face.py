"""Images in Parquet files and Hugging Face data sets; nothing is fetched."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_images import counts, load
from PIL import Image

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import Dataset
from trainers.hegraph.utils.errors import UserError

# Not "datasets" alone: pytest puts tests/ on the path, where a folder has that name
pytest.importorskip("datasets.config", reason="the package datasets is not installed")
import datasets as hf

ROOT = Path(__file__).parents[2]
NAMES = ["tree", "house", "boat", "cloud"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(shade: int) -> dict:
    content = io.BytesIO()
    Image.new("RGB", (12, 12), (shade, 60, 60)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{shade}.png"}


def table(labels: list, start: int = 0, label: str = "label", named: bool = True):
    kind = hf.ClassLabel(names=NAMES) if named else hf.Value("string")
    rows = {"image": [picture(start + i) for i in range(len(labels))], label: labels, "id": list(range(len(labels)))}
    features = hf.Features({"image": hf.Image(), label: kind, "id": hf.Value("int64")})
    return hf.Dataset.from_dict(rows, features=features)


@pytest.fixture
def parquet(tmp_path) -> Path:
    folder = tmp_path / "pictures" / "data"
    folder.mkdir(parents=True)
    table([1, 0, 1, 2]).to_parquet(folder / "train-00000-of-00001.parquet")
    table([2], 50).to_parquet(folder / "validation-00000-of-00001.parquet")
    table([0, 1], 60).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "pictures"


def check_pictures(dataset: Dataset) -> None:
    assert [tuple(item) for item in dataset.train] == [
        ("train/0", 1, "house"), ("train/1", 0, "tree"), ("train/2", 1, "house"), ("train/3", 2, "boat"),
    ]  # fmt: skip
    assert [tuple(item) for item in dataset.val] == [("val/0", 2, "boat")]
    assert [tuple(item) for item in dataset.test] == [("test/0", 0, "tree"), ("test/1", 1, "house")]
    assert list(dataset.classnames) == ["tree", "house", "boat"]  # in the order of the labels; cloud has no image
    assert dataset.open("train/3").getpixel((2, 2)) == (3, 60, 60)
    assert dataset.open("test/1").getpixel((2, 2)) == (61, 60, 60)
    dataset.check_files()


def test_parquet_files_become_items_named_by_their_rows(parquet):
    check_pictures(load(parquet))


def test_a_name_that_load_dataset_takes_is_a_data_set(parquet):
    check_pictures(load(f"hf:{parquet}"))


def test_one_parquet_file_is_training_data_and_labels_may_be_texts(tmp_path):
    table(["b", "a", "b"], named=False).to_parquet(tmp_path / "all.parquet")
    dataset = load(tmp_path / "all.parquet")
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "b"), (0, "a"), (1, "b")]
    assert (dataset.val, dataset.test) == ([], [])


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train-0.parquet", "VALID-0.parquet", "Test-0.parquet"),
        ("training.parquet", "dev.parquet", "eval-0.parquet"),
        ("trainA.parquet", "data/Validation.parquet", "data/testing.parquet"),
    ],
)
def test_parquet_files_may_begin_with_other_names_of_their_split(tmp_path, train, val, test):
    (tmp_path / "data").mkdir()
    for name, labels in {train: [1, 0, 1], val: [0, 1], test: [1]}.items():
        table(labels).to_parquet(tmp_path / name)
    assert counts(load(tmp_path)) == [3, 2, 1]


def test_parquet_files_whose_names_have_no_split_are_train(tmp_path):
    for number in range(2):
        table([1, 0]).to_parquet(tmp_path / f"part-{number}.parquet")
    assert counts(load(tmp_path)) == [4, 0, 0]


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (["train-0.parquet", "holdout-0.parquet"], "holdout-0.parquet"),
        (["part-0.parquet", "data/test-0.parquet"], "part-0.parquet"),
        (["birds-train.parquet", "birds-test.parquet"], "birds-test.parquet"),
    ],
)
def test_the_split_of_a_parquet_file_is_not_guessed(tmp_path, names, odd):
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{odd} does not begin with its split; let it begin with one of train, "):
        load(tmp_path)


def hub(monkeypatch, **splits: list) -> None:
    """Has `load_dataset` return a data set with these labels."""
    loaded = hf.DatasetDict({name: table(labels) for name, labels in splits.items()})
    monkeypatch.setattr(hf, "load_dataset", lambda name, configuration: loaded)


def test_splits_of_other_names_are_left_out_with_one_warning(monkeypatch, caplog):
    hub(monkeypatch, Train=[1, 0, 1], exam=[0], Dev=[1, 0], holdout=[1])
    assert counts(load("hf:somebody/pictures")) == [3, 2, 0]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("hf:somebody/pictures: left out are the splits exam, holdout; read are Train, Dev, ")


def test_of_two_names_of_a_split_its_own_is_read_and_the_other_is_named(monkeypatch, caplog):
    hub(monkeypatch, train=[1, 0, 1], eval=[0, 1], test=[0])
    assert counts(load("hf:somebody/pictures")) == [3, 0, 1]
    assert "left out are the splits eval; read are train, test" in caplog.text


def test_known_splits_are_read_without_a_warning(parquet, caplog):
    load(f"hf:{parquet}")
    assert not [record for record in caplog.records if record.name.startswith("trainers")]


def test_a_data_set_without_a_known_split_tells_its_splits_and_the_known_ones(monkeypatch):
    hub(monkeypatch, exam=[0], holdout=[1])
    expected = "hf:somebody/pictures has only the splits exam, holdout; rename one to train, and others to some of "
    with pytest.raises(UserError, match=expected):
        load("hf:somebody/pictures")


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    table([1, 0], label="fine_label").to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has no column label; rename one of its columns: image, fine_label, id"):
        load(tmp_path)


def write_columns(path: Path, images: list, labels: list) -> None:
    """Writes a table without the types that only Hugging Face's `datasets` knows."""
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pydict({"image": images, "label": labels}), path)


@pytest.mark.parametrize("labels", [["a", None], ["a", ""], ["a", "  "], [1.0, float("nan")], [1, None]])
def test_a_row_without_a_label_is_named(tmp_path, labels):
    write_columns(tmp_path / "train.parquet", [picture(0), picture(1)], labels)
    with pytest.raises(UserError, match="row 1 of train has no label in the column label; give it one, or leave"):
        load(tmp_path)


@pytest.mark.parametrize("label", [[3], {"name": "ant"}, b"ant"])
def test_a_label_that_is_neither_text_nor_number_is_named(tmp_path, label):
    write_columns(tmp_path / "train.parquet", [picture(0)], [label])
    with pytest.raises(UserError, match="row 0 of train: the label must be a text or a number, got"):
        load(tmp_path)


def test_a_column_of_numbers_holds_no_images(tmp_path):
    write_columns(tmp_path / "train.parquet", [1, 2], ["a", "b"])
    with pytest.raises(UserError, match="the column image holds no images: ") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_named_wherever_it_is_asked_for(tmp_path, image):
    write_columns(tmp_path / "train.parquet", [picture(0), image], ["a", "b"])
    dataset = load(tmp_path)
    for ask in (dataset.open, dataset.file_version):
        with pytest.raises(UserError, match="row 1 of train has no image in the column image; give it one, or leave"):
            ask("train/1")
    with pytest.raises(UserError, match=rf"row 1 of train has no .*; list all: .* check folder --root {tmp_path}$"):
        dataset.file_sizes()


def test_a_name_that_is_not_on_this_machine_is_one_clear_line_when_offline(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "trainers.hegraph", "--dataset-config-file", "folder", "--config-file", "mini"]
    command += ["--root", "hf:somebody/nothing", "--shots", "1", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "error: cannot load hf:somebody/nothing with the package datasets: " in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_parquet_is_one_clear_line(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot load .* with the package datasets") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets: pip install 'datasets>=3'"):
        load(tmp_path)


def test_the_version_of_an_image_changes_with_its_table_and_its_size_does_not(parquet, tmp_path):
    one, again = load(parquet), load(parquet)
    assert one.file_version("train/0") == again.file_version("train/0")
    assert one.file_version("train/0")[0] == len(picture(0)["bytes"])
    assert one.file_sizes() == again.file_sizes()
    table([1, 0, 1, 2], start=9).to_parquet(parquet / "data" / "train-00000-of-00001.parquet")
    assert load(parquet).file_version("train/0") != one.file_version("train/0")


def test_a_run_trains_on_parquet_files(parquet, tmp_path):
    arguments = ["--dataset-config-file", "folder", "--config-file", "mini", "--root", str(parquet), "--shots", "1"]
    options = ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0"]
    options += ["DATALOADER.NUM_WORKERS", "2", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features")]
    assert main([*arguments, "--seed", "1", "--output-dir", str(tmp_path / "out"), *options]) == 0
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert {row[0] for row in split["train"]} <= {f"train/{row}" for row in range(4)}
