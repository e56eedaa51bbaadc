"""Encoding images and sentences: the same whatever the batches, kept on disk, never read when stale or damaged."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Dataset, Item, Selection, load_dataset, select_few_shot
from trainers.hegraph.features.extract import ImageViews, encode_images, encode_task, training_augmentation
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.features.text import encode_prompts
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SENTENCES = "TRAINER.HEGRAPHADAPTER.PROMPTS"
VIEWS = 3


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("hegraph-mini")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The real digits with only twelve of the test images."""
    dataset = load_dataset("Digits")
    return replace(dataset, test=dataset.test[:12])


@pytest.fixture(scope="module")
def selection(digits) -> Selection:
    labels = [[item.label for item in items] for items in (digits.train, digits.val)]
    return select_few_shot(*labels, shots=1, rng=random.Random(1))


def make_options(*opts) -> EncodingOptions:
    return load_cfg(opts=["TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", VIEWS, *opts]).encoding


@pytest.fixture
def broken(monkeypatch):
    """After this, encoding anything fails the test."""

    def fail(*_):
        raise AssertionError("encoded anew")

    def apply() -> None:
        monkeypatch.setattr(Backbone, "encode_images", fail)
        monkeypatch.setattr(Backbone, "encode_text", fail)

    return apply


@pytest.fixture
def images(digits, backbone) -> ImageViews:
    return ImageViews(digits, digits.train[:4], training_augmentation(backbone, make_options()), views=VIEWS, seed=1)


def part(folder: Path, name: str = "train") -> Path:
    [path] = folder.glob(f"{name}-*.safetensors")
    return path


def tensors(bank) -> dict[str, torch.Tensor]:
    return {name: value for name, value in bank.__dict__.items() if isinstance(value, torch.Tensor)}


# Views


def test_a_view_is_the_same_whenever_it_is_read(images):
    first = [images[i][1] for i in range(len(images))]
    again = [images[i][1] for i in reversed(range(len(images)))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_views_of_one_image_differ(images):
    assert len(images) == VIEWS * 4
    assert not torch.equal(images[0][1], images[4][1])
    assert not torch.equal(images[4][1], images[8][1])
    assert not torch.equal(images[0][1], replace(images, seed=2)[0][1])


def test_more_views_keep_the_first_ones(images):
    assert torch.equal(replace(images, views=9)[7][1], images[7][1])


def test_a_view_leaves_the_global_generator_alone(images):
    torch.manual_seed(5)
    images[0]
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


# Encoding


def test_features_are_unit_norm_and_in_the_order_of_the_items(images, backbone, tmp_path):
    features = encode_images(backbone, images, make_options(), tmp_path, "train")
    assert features.shape[:2] == (VIEWS, 4)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(VIEWS, 4))
    alone = backbone.encode_images(images[2 * 4 + 3][1].unsqueeze(0))[0]
    torch.testing.assert_close(features[2, 3], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "opts",
    [("DATALOADER.TEST.BATCH_SIZE", 5), ("DATALOADER.TEST.BATCH_SIZE", 5, "DATALOADER.NUM_WORKERS", 2)],
    ids=["another batch size", "two workers"],
)
def test_encoding_does_not_depend_on_the_loading(images, backbone, tmp_path, opts):
    expected = encode_images(backbone, images, make_options(), tmp_path / "a", "train")
    found = encode_images(backbone, images, make_options(*opts), tmp_path / "b", "train")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_loading_options_share_one_file(images, backbone, tmp_path, broken):
    encode_images(backbone, images, make_options(), tmp_path, "train")
    broken()
    encode_images(backbone, images, make_options("DATALOADER.TEST.BATCH_SIZE", 5), tmp_path, "train")


def test_a_task_holds_what_was_selected(digits, selection, backbone, tmp_path):
    bank = encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path)
    assert bank.train_features.shape[:2] == (VIEWS, 10)
    assert bank.train_labels.tolist() == [digits.train[i].label for i in selection.train]
    assert bank.val_labels.tolist() == [digits.val[i].label for i in selection.val]
    assert bank.test_labels.tolist() == [item.label for item in digits.test]
    test_image = backbone.preprocess(digits.read(digits.test[7].path)).unsqueeze(0)
    torch.testing.assert_close(bank.test_features[7], backbone.encode_images(test_image)[0], rtol=0, atol=1e-5)
    assert (bank.dataset, bank.backbone) == ("Digits", backbone.name)
    assert bank.logit_scale == pytest.approx(backbone.logit_scale)
    assert list(bank.classnames) == list(digits.classnames)


def test_a_task_without_val_has_none(digits, selection, backbone, tmp_path):
    bank = encode_task(replace(digits.select(selection), val=[]), backbone, make_options(), 1, tmp_path)
    assert bank.val_features is None


# The cache


def test_a_cached_task_is_read_and_not_encoded_anew(digits, selection, backbone, tmp_path, broken):
    first = tensors(encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path))
    assert sorted(f.name.split("-")[0] for f in tmp_path.iterdir()) == ["test", "text", "train", "val"]
    broken()
    again = tensors(encode_task(digits.select(selection), backbone, make_options(), 1, tmp_path))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_test_features_are_shared_by_seeds_and_shots(digits, backbone, tmp_path):
    for seed, shots in ((1, 1), (2, 2)):
        labels = [[item.label for item in items] for items in (digits.train, digits.val)]
        selected = digits.select(select_few_shot(*labels, shots, random.Random(seed)))
        encode_task(selected, backbone, make_options(), seed, tmp_path)
    counts = {name: len(list(tmp_path.glob(f"{name}-*"))) for name in ("train", "test", "text")}
    assert counts == {"train": 2, "test": 1, "text": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda images, _: replace(images, seed=2),
        lambda images, _: replace(images, views=VIEWS + 1),
        lambda images, _: replace(images, items=images.items[::-1]),
        lambda images, backbone: replace(images, transform=backbone.preprocess),
        lambda images, _: replace(images, dataset=replace(images.dataset, name="Other")),
        None,
    ],
    ids=["seed", "views", "order", "transform", "data set", "backbone"],
)
def test_another_input_gets_another_file(images, backbone, tmp_path, change):
    encode_images(backbone, images, make_options(), tmp_path, "train")
    other = images if change is None else change(images, backbone)
    if change is None:
        backbone = replace(backbone, fingerprint=backbone.fingerprint | {"weights": "others"})
    encode_images(backbone, other, make_options(), tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == 2


def test_other_sentences_get_another_file(backbone, tmp_path):
    for opts in ((), (f"{SENTENCES}.TEMPLATES", "['an {}.']"), (f"{SENTENCES}.NEGATIVE_TEMPLATES", "['no {}.']")):
        encode_prompts(backbone, "Digits", ["one", "two"], make_options(*opts), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:-400] + b"\xff" * 400, lambda _: b""])
def test_a_damaged_part_is_encoded_anew_said_so_and_replaced(images, backbone, tmp_path, caplog, broken, damage):
    expected = encode_images(backbone, images, make_options(), tmp_path, "train")
    path = part(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        found = encode_images(backbone, images, make_options(), tmp_path, "train")
    assert torch.equal(found, expected)
    [warning] = [record.getMessage() for record in caplog.records]
    assert f"{path} cannot be used" in warning and "encoding anew" in warning
    broken()
    assert torch.equal(encode_images(backbone, images, make_options(), tmp_path, "train"), expected)


def test_an_interrupted_encoding_leaves_no_part(images, backbone, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Backbone, "encode_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode_images(backbone, images, make_options(), tmp_path, "train")
    assert not list(tmp_path.rglob("*"))


ENCODE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from trainers.hegraph.backbones.loading import load_backbone

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import load_dataset
from trainers.hegraph.features.extract import encode_images
from trainers.hegraph.features.extract import ImageViews
digits, backbone = load_dataset("Digits"), load_backbone("hegraph-mini")
images = ImageViews(digits, digits.train[:200], backbone.preprocess)
print("ready", flush=True)
sys.stdin.readline()
encode_images(backbone, images, load_cfg().encoding, Path(sys.argv[1]), "train")
"""


@pytest.mark.slow
def test_two_processes_at_once_leave_one_whole_part(digits, backbone, tmp_path, broken):
    command = [sys.executable, "-c", ENCODE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both have loaded everything: now they encode side by side
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
    assert len(list(tmp_path.iterdir())) == 1
    broken()
    images = ImageViews(digits, digits.train[:200], backbone.preprocess)
    assert encode_images(backbone, images, make_options(), tmp_path, "train").isfinite().all()


# Unreadable images


@pytest.fixture
def folder_of_images(tmp_path) -> Dataset:
    """Four PNG files; a test spoils one."""
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    items = [Item(f"{i}.png", 0, "red") for i in range(4)]
    return Dataset("Reds", ["red"], items, [], items, lambda path: Image.open(tmp_path / path))


@pytest.mark.parametrize(("workers", "content"), [(0, None), (0, b"<html>404</html>"), (2, b"")])
def test_an_unreadable_image_is_named_in_one_line(folder_of_images, backbone, tmp_path, workers, content):
    (tmp_path / "2.png").unlink()
    if content is not None:
        (tmp_path / "2.png").write_bytes(content)
    images = ImageViews(folder_of_images, folder_of_images.train, backbone.preprocess)
    with pytest.raises(UserError) as caught:
        encode_images(backbone, images, make_options("DATALOADER.NUM_WORKERS", workers), tmp_path / "parts", "train")
    message = str(caught.value)
    assert message.startswith("cannot read the image 2.png of Reds: ")
    assert "\n" not in message
    assert not (tmp_path / "parts").exists()


# Text nodes


def test_a_text_node_is_the_mean_of_its_groups_each_averaged_first(backbone, tmp_path):
    names = ["one", "two"]
    described = {"one": ["a stroke.", "a thin line.", "a bar."], "two": ["a swan."]}
    (tmp_path / "cupl.json").write_text(json.dumps(described))
    templates, negative = ["a photo of a {}.", "the digit {}."], ["no {}.", "anything but {}."]
    options = make_options(
        f"{SENTENCES}.SOURCE", "both", f"{SENTENCES}.DESCRIPTIONS", str(tmp_path / "cupl.json"),
        f"{SENTENCES}.TEMPLATES", templates, f"{SENTENCES}.NEGATIVE_TEMPLATES", negative,
    )  # fmt: skip
    text = encode_prompts(backbone, "Digits", names, options, tmp_path / "parts")

    def mean(sentences: list[str]) -> torch.Tensor:
        return F.normalize(backbone.encode_text(sentences).mean(dim=0), dim=-1)

    for k, name in enumerate(names):
        groups = torch.stack([mean([t.format(name) for t in templates]), mean(described[name])])
        expected = F.normalize(groups.mean(dim=0), dim=-1)
        torch.testing.assert_close(text["positive"][k], expected, rtol=0, atol=1e-5)
        expected = mean([t.format(name) for t in negative])
        torch.testing.assert_close(text["negative"][k], expected, rtol=0, atol=1e-5)


def test_the_order_of_classes_is_the_order_of_nodes(backbone, tmp_path):
    one = encode_prompts(backbone, "Digits", ["one", "two", "six"], make_options(), tmp_path)
    other = encode_prompts(backbone, "Digits", ["six", "one", "two"], make_options(), tmp_path)
    for name in ("positive", "negative"):
        torch.testing.assert_close(one[name], other[name][[1, 2, 0]], rtol=0, atol=1e-5)
