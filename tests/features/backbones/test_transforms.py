"""Scale at which a transform needs a photo, and crops of reduced photos."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms.functional import hflip

from trainers.hegraph.datasets.decoding import FULL, REDUCED, DecodedImage, LazyImage
from trainers.hegraph.features.backbones.transforms import Crop, Preprocess, apply, decoded_for, sample_steps

BICUBIC = T.InterpolationMode.BICUBIC


def clip_steps(side: int) -> list:
    return [T.Resize(side, BICUBIC), T.CenterCrop(side), np.array, torch.from_numpy]


def photo(width: int, height: int) -> bytes:
    """Smooth colours, like a photo, in the bytes of a JPEG file."""
    noise = np.random.default_rng(width).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def factor(width: int, height: int, steps: list) -> int:
    return decoded_for(steps, LazyImage.read(photo(width, height), REDUCED)).factor


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first.float() - second.float()).abs().mean().item()


@pytest.mark.parametrize("side", [32, 224, 336])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 480)])
def test_small_photos_do_not_change(side, size):
    content = photo(*size)
    full, reduced = (Preprocess(clip_steps(side), decode) for decode in (FULL, REDUCED))
    assert torch.equal(reduced(reduced.decoded(content)), full(full.decoded(content)))


@pytest.mark.parametrize(("width", "height", "side", "expected"), [
    (1200, 895, 224, 1), (1200, 896, 224, 2), (4000, 3000, 224, 4), (4000, 3583, 224, 4), (4000, 3584, 224, 8),
    (4000, 3000, 448, 2), (4000, 3000, 32, 4), (1600, 799, 32, 1), (1600, 800, 32, 2),
])  # fmt: skip
def test_reduced_photo_has_twice_the_sides_of_the_input(width, height, side, expected):
    assert factor(width, height, clip_steps(side)) == expected


def test_squashed_photo_has_twice_the_sides_of_the_input():
    assert factor(4000, 1000, [T.Resize((224, 224))]) == 2
    assert factor(4000, 1000, [T.Resize((64, 1024))]) == 1


@pytest.mark.parametrize("first", [T.CenterCrop(900), T.Resize(224, max_size=300), lambda image: image])
def test_unknown_steps_need_the_full_size(first):
    assert factor(4000, 3000, [first, *clip_steps(224)]) == 1


@pytest.mark.parametrize(("height", "width", "expected"), [
    (3000, 4000, 4), (1792, 2000, 4), (1791, 2000, 2), (896, 896, 2), (895, 2000, 1), (300, 300, 1),
])  # fmt: skip
def test_crop_decides_the_scale_by_its_own_size(height, width, expected):
    crop = Crop(0, 0, height, width, (224, 224), BICUBIC)
    assert factor(4000, 3000, [hflip, crop]) == expected


@pytest.mark.parametrize("size", [(1501, 1203), (2003, 1505), (1205, 2001), (3001, 2003), (4032, 3024)])
def test_reduced_photo_gives_nearly_equal_pixels(size):
    content = photo(*size)
    full, reduced = (Preprocess(clip_steps(224), decode) for decode in (FULL, REDUCED))
    assert reduced.decoded(content).factor > 1
    assert difference(reduced(reduced.decoded(content)), full(full.decoded(content))) < 0.6


def test_resized_side_follows_from_the_full_size():
    # 224 * 2999 / 1335 = 503.2, but 224 * 1500 / 668 = 502.99 for the reduced photo, whose sides are rounded up
    steps = [T.Resize(224, BICUBIC)]
    decoded = decoded_for(steps, LazyImage.read(photo(2999, 1335), REDUCED))
    assert decoded.factor == 2 and decoded.pixels.size == (1500, 668)
    assert apply(steps, decoded).size == (math.floor(224 * 2999 / 1335), 224) == (503, 224)


@pytest.mark.parametrize("seed", range(6))
def test_view_of_a_reduced_photo_shows_the_same_part(seed):
    content = photo(2000, 1500)
    random = [T.RandomHorizontalFlip(), T.RandomResizedCrop(64, (0.08, 1.0), interpolation=BICUBIC)]
    steps = [*sample_steps(random, (2000, 1500), seed), np.array, torch.from_numpy]
    whole = LazyImage.read(content, FULL).decoded(1)
    reduced = decoded_for(steps, LazyImage.read(content, REDUCED))
    assert reduced.factor > 1
    expected = apply(steps, whole)
    assert difference(apply(steps, reduced), expected) < 1
    pixels = reduced.pixels
    moved = apply([*sample_steps(random, pixels.size, seed), np.array, torch.from_numpy], DecodedImage.whole(pixels))
    assert difference(moved, expected) > 5  # sampled on the reduced photo, the view shows another part


def test_view_does_not_depend_on_other_views_of_the_photo():
    content = photo(2000, 1500)
    crops = [Crop(100, 200, side, side, (64, 64), BICUBIC) for side in (1400, 400, 200, 90)]
    shared = LazyImage.read(content, REDUCED)
    for crop in crops:
        steps = [crop, np.array, torch.from_numpy]
        alone = LazyImage.read(content, REDUCED)
        assert torch.equal(apply(steps, decoded_for(steps, shared)), apply(steps, decoded_for(steps, alone)))
