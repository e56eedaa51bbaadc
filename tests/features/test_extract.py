"""Reading images, encoding images and prompts in batches and chunks, cached features, and `features extract`."""

import hashlib
import itertools
import json
import logging
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph import Backbone, FeatureBank, UserError, load_bank, load_cfg, load_dataset
from trainers.hegraph.__main__ import main as train
from trainers.hegraph.commands.features import main
from trainers.hegraph.datasets import decoding
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.datasets.images import to_rgb
from trainers.hegraph.datasets.splits import Item, sample_few_shot
from trainers.hegraph.features import cache, extract, images as reading
from trainers.hegraph.features.images import ImageReader, ImageViews
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.utils.reading import read_json, read_metadata

NODE = "TRAINER.HEGRAPHADAPTER"
VIEWS = 3


def make_options(*opts) -> EncodingOptions:
    return load_cfg(opts=[f"{NODE}.FEATURES.VIEWS", VIEWS, *opts]).encoding


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The digits with only twelve test images."""
    dataset = load_dataset("Digits")
    return replace(dataset, test=dataset.test[:12])


def selected(dataset: Dataset, shots: int, seed: int) -> Dataset:
    labels = [[item.label for item in items] for items in (dataset.train, dataset.val)]
    return dataset.select(sample_few_shot(*labels, shots, random.Random(seed)))


@pytest.fixture
def encode(digits, mini, tmp_path) -> Callable[..., FeatureBank]:
    """Function from shots and seed to the bank of a task, with cached features."""

    def bank(shots: int, seed: int, **changes) -> FeatureBank:
        task = replace(selected(digits, shots, seed), **changes)
        return extract.encode_task(task, mini, make_options(), seed, tmp_path)

    return bank


@pytest.fixture
def images(digits, mini) -> ImageViews:
    return ImageViews(
        digits, digits.train[:4], extract.training_augmentation(mini, make_options()), views=VIEWS, seed=1
    )


# Reading


def read(images: ImageViews, *positions: int) -> list[torch.Tensor]:
    return list(torch.cat(list(images.batches(positions, 5))))


def test_pixels_equal_those_of_the_transform(tmp_path, mini):
    paths = []
    for width, height in ((8, 8), (40, 24), (24, 40), (32, 32), (33, 32)):
        paths.append(tmp_path / f"{width}x{height}.png")
        open_digit("digits/0003").resize((width, height)).save(paths[-1])
    unusual = type(mini.preprocess)([*mini.preprocess.transforms, lambda pixels: pixels + 1])
    for transform in (mini.preprocess, unusual):
        [(_, pixels, _)] = ImageReader(transform).batches(paths, len(paths))
        assert torch.equal(pixels, torch.stack([transform(to_rgb(Image.open(path))) for path in paths]))


@pytest.mark.parametrize("transforms", [("random_resized_crop", "random_flip"), ("random_flip",), ()])
def test_view_equals_seeded_torchvision_transform(images, mini, transforms):
    transform = mini.training_transform(transforms, (0.08, 1.0), "bilinear")
    found = read(replace(images, transform=transform), *range(12))
    for position, pixels in enumerate(found):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 + position)
            assert torch.equal(pixels, transform(images.dataset.read(images.items[position % 4].path)))


def test_views_are_reproducible_and_distinct(images):
    state = torch.get_rng_state()
    first = read(images, *range(12))
    assert torch.equal(torch.get_rng_state(), state) and len(images) == VIEWS * 4 == len(first)
    assert all(map(torch.equal, first, read(images, *reversed(range(12)))[::-1]))
    assert torch.equal(*read(replace(images, views=9), 7), first[7])  # more views keep the first ones
    assert not torch.equal(first[0], first[4]) and not torch.equal(first[4], first[8])
    assert not torch.equal(first[0], *read(replace(images, seed=2), 0))


def test_unreadable_image_is_refused(images, tmp_path):
    items = [images.items[0], Item(str(tmp_path / "1.png"), 0, "zero")]
    with pytest.raises(UserError, match=r"^cannot read the image .*1\.png of Digits: .*$"):
        read(replace(images, items=items), 0, 1)


def test_any_exception_of_pillow_becomes_a_line(mini, monkeypatch):
    def broken(image: Image.Image) -> Image.Image:
        raise SyntaxError("broken PNG\nmore")

    monkeypatch.setattr(decoding, "open_any", broken)
    [(_, pixels, problems)] = ImageReader(mini.preprocess).batches([Image.new("L", (9, 9))], 1)
    assert len(pixels) == 0 and problems == ["broken PNG"]


@pytest.mark.parametrize(("num_cores", "threads", "expected"), [(1, 0, 1), (8, 0, 8), (64, 0, 16), (2, 3, 3)])
def test_number_of_threads(mini, monkeypatch, num_cores, threads, expected):
    monkeypatch.setattr(reading, "cores", lambda: num_cores)
    assert ImageReader(mini.preprocess, threads).threads == expected


# Encoding


def test_features_do_not_depend_on_batch_size(images, mini, tmp_path, encoded):
    features = extract.encode_images(mini, images, make_options(), tmp_path / "a", "train")
    assert features.shape[:2] == (VIEWS, 4)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(VIEWS, 4))
    options = make_options("DATALOADER.TEST.BATCH_SIZE", 5, "DATALOADER.NUM_WORKERS", 1)
    found = extract.encode_images(mini, images, options, tmp_path / "b", "train")
    torch.testing.assert_close(found, features, rtol=0, atol=1e-5)
    assert encoded == [12, 5, 5, 2]
    extract.encode_images(mini, images, options, tmp_path / "a", "train")  # the file is shared
    assert len(encoded) == 4
    alone = mini.encode_images(next(images.batches([2 * 4 + 3], 1)))[0]
    torch.testing.assert_close(features[2, 3], alone, rtol=0, atol=1e-5)


def test_encoded_task_is_cached(digits, encode, mini, tmp_path, encoded):
    bank = encode(1, 1)
    assert bank.train_features.shape[:2] == (VIEWS, 10)
    for split, items in selected(digits, 1, 1).splits.items():
        assert getattr(bank, f"{split}_labels").tolist() == [item.label for item in items]
    assert (bank.dataset, bank.backbone, list(bank.classnames)) == ("Digits", mini.name, list(digits.classnames))
    assert bank.logit_scale == pytest.approx(mini.logit_scale)
    text = extract.encode_prompts(mini, "Digits", digits.classnames, make_options(), tmp_path)
    for name, nodes in (("text_positive", "positive"), ("text_negative", "negative"), ("text_norms", "norms")):
        assert torch.equal(getattr(bank, name), text[nodes])
    encoded.clear()
    again = encode(1, 1)
    for name, value in bank.__dict__.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, getattr(again, name))
    assert encoded == []
    test_image = mini.preprocess(digits.read(digits.test[7].path)).unsqueeze(0)
    torch.testing.assert_close(bank.test_features[7], mini.encode_images(test_image)[0], rtol=0, atol=1e-5)
    assert encode(1, 1, train=[]).train_features.shape == (1, 0, mini.width)
    for val in ([], digits.test):  # no selection on test images
        assert encode(1, 1, val=val).val_features is None
    encode(2, 2)  # whose test features are the same
    assert [len(list(tmp_path.glob(f"{part}-*"))) for part in ("train", "test", "text")] == [2, 1, 1]


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_nan_and_zero_features_are_refused(images, mini, tmp_path, monkeypatch, value):
    for name in ("encode_images", "encode_text"):
        monkeypatch.setattr(Backbone, name, lambda self, batch, **more: torch.full((len(batch), 4), value))
    with pytest.raises(UserError, match="gives NaN or zero features for train images of Digits"):
        extract.encode_images(mini, images, make_options(), tmp_path, "train")
    with pytest.raises(UserError, match="gives NaN or zero features for the prompts of Digits"):
        extract.encode_prompts(mini, "Digits", ["zero", "one"], make_options(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_features_without_a_folder_are_equal(images, mini, tmp_path):
    in_memory = extract.encode_images(mini, images, make_options(), None, "train")
    assert torch.equal(in_memory, extract.encode_images(mini, images, make_options(), tmp_path / "a", "train"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_task_without_a_folder_writes_nothing(digits, mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank = extract.encode_task(selected(digits, 1, 1), mini, make_options(), 1)
    assert bank.train_features.shape[:2] == (VIEWS, 10) and not list(tmp_path.iterdir())


# Cached features


def test_each_input_has_its_own_file(images, mini, tmp_path):
    other = replace(mini, fingerprint=mini.fingerprint | {"weights": "others"})
    inputs = [
        (mini, images), (other, images), (mini, replace(images, seed=2)),
        (mini, replace(images, views=VIEWS + 1)), (mini, replace(images, items=images.items[::-1])),
        (mini, replace(images, transform=mini.preprocess)),
        (mini, replace(images, dataset=replace(images.dataset, name="Other"))),
    ]  # fmt: skip
    for encoder, views in inputs:
        extract.encode_images(encoder, views, make_options(), tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == len(inputs)


def test_cache_format_is_stable(tmp_path):
    features = F.normalize(torch.arange(6.0).view(1, 2, 3), dim=-1)
    checksum = hashlib.sha256(b"'features':torch.float32[1, 2, 3]" + features.numpy().tobytes()).hexdigest()
    save_file({"features": features}, tmp_path / "part", {"fingerprint": "key", "checksum": checksum})
    assert cache.is_valid(tmp_path / "part", "key") and not cache.is_valid(tmp_path / "part", "other")


@pytest.mark.parametrize("part", ["test", "text"])
@pytest.mark.parametrize("change", [
    torch.Tensor.double, torch.Tensor.half, torch.zeros_like, lambda t: t / 0, lambda t: -9 * t,
])  # fmt: skip
def test_unusable_cached_features_are_encoded_again(encode, encoded, tmp_path, caplog, part, change):
    expected = encode(1, 1)
    [path] = tmp_path.glob(f"{part}-*")
    key = read_metadata(safe_open(path, "pt"))["fingerprint"]
    cache.write_features(path, {name: change(tensor) for name, tensor in load_file(path).items()}, key)
    encoded.clear()
    found = encode(1, 1)
    assert torch.equal(found.test_features, expected.test_features)
    assert torch.equal(found.text_positive, expected.text_positive)
    assert encoded and f"{path} is damaged or of another version" in caplog.text


@pytest.mark.parametrize(
    ("norm", "usable"), [(9.0, True), (0.0, False), (-0.5, False), (math.inf, False), (math.nan, False)]
)
def test_stored_norms_are_positive_and_finite(norm, usable):
    text = F.normalize(torch.arange(6.0).view(1, 2, 3), dim=-1)
    assert cache.is_usable({"positive": text, cache.NORMS: torch.tensor([1.0, norm])}) == usable


def test_damaged_part_is_replaced_with_a_warning(images, mini, tmp_path, caplog, rewrite):
    def encode() -> torch.Tensor:
        return extract.encode_images(mini, images, make_options(), tmp_path, "train")

    expected = encode()
    [path] = tmp_path.glob("train-*.safetensors")
    rewrite(path, lambda tensors, metadata: tensors["features"].view(torch.int32)[0, 0, 0].bitwise_xor_(1))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encode(), expected) and torch.equal(encode(), expected)
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{path} is damaged or of another version")


# Text features


def test_text_features_average_groups_first(mini, tmp_path):
    described = {"one": ["a stroke.", "a thin line.", "a bar."], "two": ["a swan."]}
    (tmp_path / "cupl.json").write_text(json.dumps(described))
    templates, negative = ["a photo of a {}.", "the digit {}."], ["no {}.", "anything but {}."]
    keys = {"SOURCE": "both", "DESCRIPTIONS": str(tmp_path / "cupl.json")}
    keys |= {"TEMPLATES": templates, "NEGATIVE_TEMPLATES": negative}
    options = make_options(
        *itertools.chain.from_iterable((f"{NODE}.PROMPTS.{key}", value) for key, value in keys.items())
    )
    text = extract.encode_prompts(mini, "Digits", ["one", "two"], options, tmp_path / "parts")

    def mean(sentences: list[str], normalize: bool = True) -> torch.Tensor:
        return mini.encode_text(sentences, normalize=normalize).mean(dim=0)

    for k, name in enumerate(described):
        groups = [[t.format(name) for t in templates], described[name]]
        expected = F.normalize(sum(F.normalize(mean(group), dim=-1) for group in groups), dim=-1)
        torch.testing.assert_close(text["positive"][k], expected, rtol=0, atol=1e-5)
        expected = F.normalize(mean([t.format(name) for t in negative]), dim=-1)
        torch.testing.assert_close(text["negative"][k], expected, rtol=0, atol=1e-5)
        norm = (sum(mean(group, normalize=False) for group in groups) / 2).norm()
        torch.testing.assert_close(text["norms"][k], norm, rtol=1e-5, atol=0)
        assert abs(norm - 1) > 0.1  # or the test would show nothing


# The command


@pytest.fixture
def pictures(tmp_path):
    """Three classes of images of one colour each: of each four for training, two for validation, three for testing."""
    shades = itertools.count(100, 5)
    counts = {"train": 4, "val": 2, "test": 3}
    for (split, count), name in itertools.product(counts.items(), ("red", "green", "blue")):
        folder = tmp_path / "pictures" / split / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (next(shades), 60, 60)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def make_bank(tmp_path, pictures):
    def command(*opts: str) -> int:
        arguments = ["extract", "--out", str(tmp_path / "bank.safetensors"), "--root", str(pictures)]
        arguments += ["--dataset-config-file", "folder", "--config-file", "mini"]
        return main([*arguments, f"{NODE}.FEATURES.DIR", str(tmp_path / "features"), *opts])

    return command


def test_model_from_extracted_bank_classifies_images(make_bank, tmp_path, capsys, pictures):
    assert make_bank(f"{NODE}.FEATURES.VIEWS", "2") == 0
    assert "12 train, 6 val, 9 test images, 3 classes" in capsys.readouterr().out
    bank = load_bank(tmp_path / "bank.safetensors")
    assert (bank.train_features.shape[:2], bank.train_labels.tolist()) == ((2, 12), [0] * 4 + [1] * 4 + [2] * 4)
    assert list(bank.classnames) == ["blue", "green", "red"]
    assert (bank.dataset, bank.backbone) == ("ImageFolder", "hegraph-mini/hegraph-mini")
    flags = ["--shots", "2", "--seed", "1", "--config-file", "mini", "OPTIM.MAX_EPOCH", "2", f"{NODE}.MIN_STEPS", "0"]
    assert train(["--features", str(tmp_path / "bank.safetensors"), "--output-dir", str(tmp_path / "out"), *flags]) == 0
    assert read_json(tmp_path / "out" / "result.json")["num_train"] == 6
    model = ImageModel.load(tmp_path / "out")
    assert model.model.backbone.fingerprint == model.backbone.fingerprint == bank.encoder.fingerprint
    predicted = load_file(tmp_path / "out" / "predictions.safetensors")["predicted"]
    files = sorted((pictures / "test").rglob("*.png"))
    assert torch.equal(model.probabilities(files).argmax(dim=1), predicted)


def test_extract_shares_features_with_runs(make_bank, tmp_path, pictures, caplog):
    assert make_bank() == 0
    first = (tmp_path / "bank.safetensors").read_bytes()
    (tmp_path / "bank.safetensors").unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert make_bank() == 0
        arguments = ["--root", str(pictures), "--dataset-config-file", "folder", "--config-file", "mini"]
        arguments += ["--shots", "-1", "--output-dir", str(tmp_path / "out"), "--no-train", "--seed", "1"]
        assert train([*arguments, f"{NODE}.FEATURES.DIR", str(tmp_path / "features")]) == 0
    assert "encoded" not in caplog.text and (tmp_path / "bank.safetensors").read_bytes() == first


def test_reading_cached_features_renews_their_time(images, mini, tmp_path):
    extract.encode_images(mini, images, make_options(), tmp_path, "train")
    [path] = tmp_path.glob("train-*")
    os.utime(path, (0, 0))
    extract.encode_images(mini, images, make_options(), tmp_path, "train")
    assert path.stat().st_mtime > 10**9
