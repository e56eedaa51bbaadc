"""Write feature banks of the digits and of rendered letters, encoded by mini: `python -m tools.mini.letters FOLDER`.

The letters belong to no class of a model of the digits. They are rendered in Pillow's default font, which was not used
to train mini, cropped and sampled with 8 x 8 pixels as the digits are. "O" and "I", which look like digits, are among
them.
"""

import argparse
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments.image_task import ImageTask
from trainers.hegraph.experiments.opening import load_image_task
from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.features.extract import encode_prompts
from trainers.hegraph.utils.command_line import run_cli

LETTERS = string.ascii_uppercase + string.ascii_lowercase
SIZES = range(10, 34, 4)  # font sizes in pixels
PIXELS = 8


def draw_letter(letter: str, size: int) -> Image.Image:
    """Render a letter as an RGB image of 8 x 8 pixels, white on black."""
    canvas = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(canvas).text((size, size), letter, fill=255, font=ImageFont.load_default(size))
    ink = canvas.crop(canvas.getbbox())
    side = max(ink.size)
    square = Image.new("L", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    small = np.asarray(square.resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype=float)
    return Image.fromarray((small * (255 / max(small.max(), 1))).astype(np.uint8)).convert("RGB")


def letters_bank(task: ImageTask, backbone: Backbone, folder: Path) -> FeatureBank:
    """Create a bank of test images: K = 52 letters with an image of each size."""
    images = [draw_letter(letter, size) for letter in LETTERS for size in SIZES]
    features = backbone.encode_images(torch.stack([backbone.preprocess(image) for image in images]))
    text = encode_prompts(backbone, "Letters", list(LETTERS), task.cfg.encoding, folder)
    return FeatureBank(
        train_features=features.new_zeros(1, 0, features.shape[1]),
        train_labels=torch.zeros(0, dtype=torch.long),
        test_features=features,
        test_labels=torch.arange(len(LETTERS)).repeat_interleave(len(SIZES)),
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(LETTERS),
        dataset="Letters",
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
    )


def write_banks(folder: Path) -> None:
    """Write `digits.safetensors`, with all training images, and `letters.safetensors`."""
    options = ["DATASET.NUM_SHOTS", -1, "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(folder / "features")]
    task = load_image_task(load_cfg("digits", "mini", opts=options), seed=1, device="cpu")
    task.prepare()
    digits = task.bank()
    digits.save(folder / "digits.safetensors")
    letters = letters_bank(task, task.backbone, folder / "features" / "Letters")
    # Any image will do: a bank needs one, and no model is trained on this one
    features, labels = letters.features_to_classify[:1].clone(), torch.zeros(1, dtype=torch.long)
    letters = replace(letters, train_features=features.unsqueeze(0), train_labels=labels)
    letters.save(folder / "letters.safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m tools.mini.letters", description="Write two feature banks.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    args = parser.parse_args(arguments)
    return run_cli(lambda: write_banks(args.folder))


if __name__ == "__main__":
    raise SystemExit(main())
