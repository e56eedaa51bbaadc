"""Twenty photos as the models' own processors see them, compared in levels of 255.

No processor turns images upright by EXIF or blends them with white, so they receive the upright RGB image, and our
transform the file.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from trainers.hegraph.features.backbones import timm_models
from trainers.hegraph.features.backbones.transforms import Preprocess

data = pytest.importorskip("skimage.data", reason="scikit-image, which contains photos, is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("transformers.models")

ORIENTATION = 0x0112
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"size": {"height": 224, "width": 224}}
# Processors with the settings of published models
PROCESSORS = {
    "CLIP": ("CLIPImageProcessor", {}),
    "AltCLIP": ("CLIPImageProcessor", {"crop_size": 224, "size": {"shortest_edge": 224}}),
    "SigLIP": ("SiglipImageProcessor", {}),
    "ChineseCLIP": ("ChineseCLIPImageProcessor", {**SQUARE, "do_center_crop": False}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": 224, **IMAGENET}),
    "DINOv3": ("DINOv3ViTImageProcessor", {}),
    "ViT": ("ViTImageProcessor", {}),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Eight EXIF orientations, and grey, paletted, transparent, small, wide and tall photos."""
    folder = tmp_path_factory.mktemp("photos")
    astronaut, cat, cup, rocket = (
        Image.fromarray(load()) for load in (data.astronaut, data.chelsea, data.coffee, data.rocket)
    )
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[ORIENTATION] = orientation
        astronaut.crop((0, 0, 511, 400 + orientation)).save(folder / f"exif{orientation}.jpg", exif=tags)
    faded = cat.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(cat.size))
    hole = cup.convert("RGBA")
    hole.paste((0, 0, 0, 0), (50, 60, 300, 200))
    palette = cat.quantize(64)
    variants = {
        "camera": Image.fromarray(data.camera()), "coins": Image.fromarray(data.coins()),
        "moon": Image.fromarray(data.moon()), "page": Image.fromarray(data.page()), "faded": faded, "hole": hole,
        "grey_faded": faded.convert("LA"), "palette": palette, "small": cat.resize((100, 77)),
        "wide": rocket.crop((0, 100, 640, 161)), "tall": rocket.crop((300, 0, 401, 427)), "cup": cup,
    }  # fmt: skip
    for name, image in variants.items():
        image.save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def upright_rgb(path: Path) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def levels(difference: Tensor, std: tuple[float, ...]) -> Tensor:
    """Absolute difference of normalised pixels `[3, H, W]` in levels of 255."""
    return (difference * torch.tensor(std)[:, None, None] * 255).abs()


def differences(processor: Any, photos: list[Path]) -> Tensor:
    """Differences of our transform and a processor of transformers, of all pixels of all photos."""
    from trainers.hegraph.features.backbones.transformers_models import transform_steps

    steps, _ = transform_steps(processor, "model")
    ours = Preprocess(steps)
    found = []
    for path in photos:
        theirs = processor(upright_rgb(path), return_tensors="pt")["pixel_values"][0]
        found.append(levels(ours(path) - theirs, steps[-1].std).flatten())
    assert len(found) == 20
    return torch.cat(found)


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_equal_those_of_the_pillow_processor(name, photos):
    kind, settings = PROCESSORS[name]
    if not hasattr(transformers, f"{kind}Pil"):
        pytest.skip(f"transformers has no {kind} of Pillow")
    processor = getattr(transformers, f"{kind}Pil")(**settings)
    assert differences(processor, photos).max() <= 1


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_equal_those_of_the_torchvision_processor(name, photos):
    kind, settings = PROCESSORS[name]
    found = differences(getattr(transformers, kind)(**settings), photos)
    # Pillow and torchvision round the weights of rows and columns differently, so few pixels differ by two levels
    assert (found > 1.001).float().mean() < 1e-5
    assert found.max() < 2.001


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224.augreg_in21k", "convnext_tiny.dinov3_lvd1689m", "resnet50.a1_in1k"]
)
def test_images_equal_those_of_timm(name, photos):
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model(name))
    theirs = create_transform(**config, is_training=False)
    ours = Preprocess(timm_models.transform_steps(config, "model"))
    for path in photos:
        assert levels(ours(path) - theirs(upright_rgb(path)), config["std"]).max() <= 1
