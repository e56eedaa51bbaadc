"""Images are read in order by threads, to the bit as their transform makes them, and a view is the same whenever."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import Dataset, Item, load_dataset
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.datasets.images import to_rgb
from trainers.hegraph.features import images as reading
from trainers.hegraph.features.extract import training_augmentation
from trainers.hegraph.features.images import ImageViews, Reader
from trainers.hegraph.utils.errors import UserError

VIEWS = 3


@pytest.fixture
def images(backbone) -> ImageViews:
    digits = load_dataset("Digits")
    return ImageViews(digits, digits.train[:4], training_augmentation(backbone, load_cfg().encoding), VIEWS, seed=1)


def read(images: ImageViews, *positions: int) -> list[torch.Tensor]:
    return list(torch.cat(list(images.batches(positions, 5))))


def test_pixels_are_those_of_the_transform_to_the_bit_however_it_ends(tmp_path, backbone):
    paths = []
    for width, height in ((8, 8), (40, 24), (24, 40), (32, 32), (33, 32)):
        paths.append(tmp_path / f"{width}x{height}.png")
        open_digit("digits/0003").resize((width, height)).save(paths[-1])
    unusual = type(backbone.preprocess)([*backbone.preprocess.transforms, lambda pixels: pixels + 1])
    for transform in (backbone.preprocess, unusual):
        [(_, pixels, _)] = Reader(transform).batches(paths, len(paths))
        assert torch.equal(pixels, torch.stack([transform(to_rgb(Image.open(path))) for path in paths]))


@pytest.mark.parametrize("transforms", [("random_resized_crop", "random_flip"), ("random_flip",), ()])
def test_a_view_is_what_torchvision_draws_with_its_seed(images, backbone, transforms):
    transform = backbone.training_transform(transforms, (0.08, 1.0), "bilinear")
    found = read(replace(images, transform=transform), *range(12))
    for position, pixels in enumerate(found):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 + position)
            assert torch.equal(pixels, transform(images.dataset.read(images.items[position % 4].path)))


def test_a_view_is_the_same_whenever_it_is_read_and_unlike_others(images):
    state = torch.get_rng_state()
    first = read(images, *range(12))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(images) == VIEWS * 4 == len(first)
    assert all(map(torch.equal, first, read(images, *reversed(range(12)))[::-1]))
    assert torch.equal(*read(replace(images, views=9), 7), first[7])  # more views keep the first ones
    assert not torch.equal(first[0], first[4]) and not torch.equal(first[4], first[8])
    assert not torch.equal(first[0], *read(replace(images, seed=2), 0))


@pytest.mark.parametrize("content", [None, b"<html>404</html>", b""])
def test_an_unreadable_image_is_named_in_one_line(backbone, tmp_path, content):
    items = [Item(f"{i}.png", 0, "red") for i in range(2)]
    Image.new("RGB", (40, 40), "red").save(tmp_path / "0.png")
    if content is not None:
        (tmp_path / "1.png").write_bytes(content)
    reds = Dataset("Reds", ["red"], items, [], items, lambda path: Image.open(tmp_path / path))
    with pytest.raises(UserError, match=r"^cannot read the image 1\.png of Reds: .*$"):
        read(ImageViews(reds, items, backbone.preprocess), 0, 1)


def test_whatever_pillow_raises_is_a_problem_of_one_line(backbone, monkeypatch):
    def broken(image: Image.Image) -> Image.Image:
        raise SyntaxError("broken PNG\nmore")

    monkeypatch.setattr(reading, "to_rgb", broken)
    [(_, pixels, problems)] = Reader(backbone.preprocess).batches([Image.new("L", (9, 9))], 1)
    assert len(pixels) == 0 and problems == ["broken PNG"]


@pytest.mark.parametrize(("there", "asked", "expected"), [(1, 0, 1), (8, 0, 8), (64, 0, 16), (2, 3, 3)])
def test_every_core_reads_or_as_many_as_are_asked_for(backbone, monkeypatch, there, asked, expected):
    monkeypatch.setattr(reading, "cores", lambda: there)
    assert Reader(backbone.preprocess, asked).threads == expected
