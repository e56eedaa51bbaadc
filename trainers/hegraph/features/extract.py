"""Images and sentences -> features, encoded once and kept on disk.

Each part of a bank (train, val, test, text) is one file named after its fingerprint, which covers all that
shaped it: backbone, weights, preprocessing, images, augmentation, sentences, code version. So the test
features of a data set are shared by every shot count and seed, and a stale file is never read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from ..backbone import Backbone, Transform, describe
from ..datasets import Dataset, Item, Selection
from ..errors import UserError
from ..files import hash_json, read_tensors, write_tensors
from ..negatives import negative_prompts
from ..prompts import PromptGroup, positive_prompts
from .bank import NORM_TOLERANCE, FeatureBank

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # raise it when the same input would give other features


@dataclass(frozen=True)
class ImageViews:
    """Index-addressed images: position `view * len(items) + i` is a view of item `i`.

    A random transform is seeded by its position, so a view does not depend on the order of reading, on
    the batch size or on the number of workers.
    """

    dataset: Dataset
    items: Sequence[Item]
    transform: Transform
    views: int = 1
    seed: int = 0

    def __len__(self) -> int:
        return self.views * len(self.items)

    def __getitem__(self, position: int) -> tuple[int, Tensor]:
        item = self.items[position % len(self.items)]
        image = open_image(self.dataset, item)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(self.seed * 1_000_003 + position)
            return position, self.transform(image)


def open_image(dataset: Dataset, item: Item) -> Image.Image:
    """Opens an item's image as RGB.

    Raises:
        UserError: If it cannot be read; the message names the file.
    """
    try:
        return dataset.open(item.path).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise UserError(f"cannot read the image {item.path} of {dataset.name}: {error}") from error


def encode_task(
    dataset: Dataset, selection: Selection, backbone: Backbone, cfg: CfgNode, seed: int, folder: Path
) -> FeatureBank:
    """Encodes a few-shot task, or reads what was encoded before.

    Args:
        dataset: Its pools.
        selection: Which of train and val the few-shot protocol selects.
        backbone: The frozen CLIP.
        cfg: The whole configuration.
        seed: Of the augmentation.
        folder: Where the parts are kept.

    Raises:
        UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
    """
    augmentation = training_augmentation(backbone, cfg)
    views = cfg.TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS
    train = [dataset.train[i] for i in selection.train]
    val = [dataset.val[i] for i in selection.val]
    parts = {
        "train": ImageViews(dataset, train, augmentation, views=views, seed=seed),
        "val": ImageViews(dataset, val, backbone.preprocess),
        "test": ImageViews(dataset, dataset.test, backbone.preprocess),
    }
    features = {name: encode_images(backbone, images, cfg, folder, name) for name, images in parts.items()}
    text = encode_prompts(backbone, dataset.name, dataset.classnames, cfg, folder)
    return FeatureBank(
        train_features=features["train"],
        train_labels=_labels(train),
        val_features=features["val"][0] if val else None,
        val_labels=_labels(val) if val else None,
        test_features=features["test"][0],
        test_labels=_labels(dataset.test),
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
    )


def training_augmentation(backbone: Backbone, cfg: CfgNode) -> Transform:
    """The random transform of training images that the configuration asks for."""
    return backbone.training_transform(cfg.INPUT.TRANSFORMS, cfg.INPUT.RRCROP_SCALE, cfg.INPUT.INTERPOLATION)


def encode_images(backbone: Backbone, images: ImageViews, cfg: CfgNode, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, from disk where the fingerprint is known."""
    items = [list(item) for item in images.items]
    fingerprint = {"images": items, "dataset": images.dataset.name, "transform": describe(images.transform)}
    fingerprint |= {"views": images.views, "seed": images.seed}

    def encode() -> dict[str, Tensor]:
        loader = DataLoader(images, cfg.DATALOADER.TEST.BATCH_SIZE, num_workers=cfg.DATALOADER.NUM_WORKERS)
        rows: Tensor | None = None
        with tqdm(total=len(images), desc=f"encoding {name} images", unit="img", disable=None) as progress:
            for positions, batch in _without_worker_trace(loader):
                encoded = backbone.encode_images(batch)
                if rows is None:
                    rows = torch.full((len(images), encoded.shape[1]), torch.nan)
                rows[positions] = encoded
                progress.update(len(positions))
        if rows is None:
            return {"features": torch.empty(images.views, 0, 0)}
        if rows.isnan().any():
            raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
        return {"features": rows.view(images.views, len(images.items), -1)}

    return _cached(folder, name, fingerprint | backbone.fingerprint, encode)["features"]


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], cfg: CfgNode, folder: Path
) -> dict[str, Tensor]:
    """The text nodes: "positive" and "negative", each `[K, d]`, from disk where the fingerprint is known."""
    options = cfg.TRAINER.HEGRAPHADAPTER.PROMPTS
    positive = positive_prompts(dataset, classnames, options.SOURCE, options.TEMPLATES, options.DESCRIPTIONS)
    negative = negative_prompts(dataset, classnames, options.NEGATIVE_TEMPLATES)

    def encode() -> dict[str, Tensor]:
        groups = torch.stack([_group_mean(backbone, group) for group in positive])  # [groups, K, d]
        return {
            "positive": F.normalize(groups.mean(dim=0), dim=-1),
            "negative": _group_mean(backbone, negative),
        }

    return _cached(folder, "text", {"positive": positive, "negative": negative} | backbone.fingerprint, encode)


def _without_worker_trace(loader: DataLoader) -> Iterator:
    """The batches; an error of a worker process loses the traceback that torch puts into its message."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from error


def _group_mean(backbone: Backbone, group: PromptGroup) -> Tensor:
    """The re-normalised mean feature of each class's sentences, shape `[K, d]`."""
    features = backbone.encode_text([sentence for sentences in group for sentence in sentences])
    per_class = features.split([len(sentences) for sentences in group])
    return F.normalize(torch.stack([rows.mean(dim=0) for rows in per_class]), dim=-1)


def _cached(folder: Path, name: str, fingerprint: dict, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Reads a part of a bank, or computes and keeps it. A damaged file is replaced, and that is said.

    Two processes may compute the same part: each renames a whole file into place.
    """
    key = hash_json(fingerprint | {"code": CODE_VERSION})
    path = folder / f"{name}-{key[:16]}.safetensors"
    if path.exists():
        try:
            tensors, metadata = read_tensors(path, "the features")
            found = metadata.get("fingerprint")
            # blocks that never reached the disk read as zeros: their rows are not unit-norm
            whole = all((t.norm(dim=-1) - 1).abs().le(NORM_TOLERANCE).all() for t in tensors.values())
            if found == key and whole:
                return tensors
            reason = "its features are damaged" if found == key else "it was made from something else"
        except UserError:
            reason = "it is damaged"
        logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    tensors = encode()
    write_tensors(path, tensors, {"fingerprint": key})
    return tensors


def _labels(items: Sequence[Item]) -> Tensor:
    return torch.tensor([item.label for item in items], dtype=torch.long)
