"""Images and sentences -> features, encoded once and kept on disk.

Each part of a bank (train, val, test, text) is one file named after its fingerprint, which covers all that
shaped it: backbone, weights, preprocessing, images, augmentation, sentences, code version. So the test
features of a data set are shared by every shot count and seed, and a stale file is never read.

Images are encoded in chunks. A chunk is kept until its part is whole, so a killed run goes on where it was, and
processes of `torchrun` share the chunks out. A chunk holds the same batches whoever encodes it, so the features are the
same, bit for bit, with the same number of threads.
"""

from __future__ import annotations

import logging
import shutil
import time
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

from ..backbones.backbone import Backbone, Transform, describe
from ..datasets import Dataset, Item
from ..prompts.negative import negative_prompts
from ..prompts.positive import PromptGroup, positive_prompts, resolve_source
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_json, read_tensors, write_tensors
from .bank import NORM_TOLERANCE, FeatureBank

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # raise it when the same input would give other features
CHUNK_BATCHES = 16


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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise UserError(f"cannot read the image {item.path} of {dataset.name}: {error}") from error


def encode_task(dataset: Dataset, backbone: Backbone, cfg: CfgNode, seed: int, folder: Path) -> FeatureBank:
    """Encodes a few-shot task, or reads what was encoded before.

    Args:
        dataset: The images that the few-shot protocol selects. Validation images that are the test images are not made
            part of the bank, so nothing can be chosen on them.
        backbone: The frozen CLIP.
        cfg: The whole configuration.
        seed: Of the augmentation.
        folder: Where the parts are kept.

    Raises:
        UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
    """
    augmentation = training_augmentation(backbone, cfg)
    views = cfg.TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS
    val = [] if dataset.val_is_test else dataset.val
    parts = {
        "train": ImageViews(dataset, dataset.train, augmentation, views=views, seed=seed),
        "val": ImageViews(dataset, val, backbone.preprocess),
        "test": ImageViews(dataset, dataset.test, backbone.preprocess),
    }
    features = {
        name: encode_images(backbone, images, cfg, folder, name) for name, images in parts.items() if images.items
    }
    text = encode_prompts(backbone, dataset.name, dataset.classnames, cfg, folder)
    return FeatureBank(
        train_features=features["train"],
        train_labels=_labels(dataset.train),
        val_features=features["val"][0] if val else None,
        val_labels=_labels(val) if val else None,
        test_features=features["test"][0] if dataset.test else None,
        test_labels=_labels(dataset.test) if dataset.test else None,
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
    )


def encode_test(dataset: Dataset, backbone: Backbone, cfg: CfgNode, folder: Path) -> tuple[Tensor, Tensor]:
    """Features `[M, d]` and labels `[M]` of a data set's test images; see `encode_task`."""
    images = ImageViews(dataset, dataset.test, backbone.preprocess)
    return encode_images(backbone, images, cfg, folder, "test")[0], _labels(dataset.test)


def training_augmentation(backbone: Backbone, cfg: CfgNode) -> Transform:
    """The random transform of training images that the configuration asks for."""
    return backbone.training_transform(cfg.INPUT.TRANSFORMS, cfg.INPUT.RRCROP_SCALE, cfg.INPUT.INTERPOLATION)


def encode_images(backbone: Backbone, images: ImageViews, cfg: CfgNode, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, from disk where the fingerprint is known."""
    files = [[*item, *(images.dataset.file_version(item.path) or ())] for item in images.items]
    fingerprint = {"images": files, "dataset": images.dataset.name, "transform": describe(images.transform)}
    fingerprint |= {"views": images.views, "seed": images.seed} | backbone.fingerprint

    def encode(path: Path, key: str) -> dict[str, Tensor]:
        rows = _encode_in_chunks(backbone, images, cfg, path, key, name)
        return {"features": rows.view(images.views, len(images.items), -1)} if rows is not None else {}

    return _cached(folder, name, fingerprint, encode)["features"]


def _encode_in_chunks(
    backbone: Backbone, images: ImageViews, cfg: CfgNode, path: Path, key: str, name: str
) -> Tensor | None:
    """Encodes what no earlier run has, shared out over the processes; the first process gets all rows."""
    positions = torch.arange(len(images)).split(cfg.DATALOADER.TEST.BATCH_SIZE)
    chunks = [positions[i : i + CHUNK_BATCHES] for i in range(0, len(positions), CHUNK_BATCHES)]
    folder = path.with_suffix(".chunks")
    files = [folder / f"{number:05d}.safetensors" for number in range(len(chunks))]
    rows = [_read_part(file, key) for file in files]
    processes.wait()  # all have seen the same
    missing = [number for number, part in enumerate(rows) if part is None]
    mine = missing[processes.rank() :: processes.world_size()]
    counts = [sum(map(len, chunk)) for chunk in chunks]
    done = sum(counts) - sum(counts[number] for number in missing)
    if done:
        logger.info("%s: %d of %d %s images were encoded before; going on", folder, done, len(images), name)

    loader = DataLoader(
        images,
        batch_sampler=[batch.tolist() for number in mine for batch in chunks[number]],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    batches = _without_worker_trace(loader)
    started = time.monotonic()
    with tqdm(total=sum(counts), initial=done, desc=f"encoding {name} images", unit="img", disable=None) as progress:
        for number in mine:
            encoded = []
            for _ in chunks[number]:
                encoded.append(backbone.encode_images(next(batches)[1]))
                progress.update(len(encoded[-1]))
            rows[number] = {"features": torch.cat(encoded)}
            if rows[number]["features"].isnan().any():
                raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
            write_tensors(files[number], rows[number], {"fingerprint": key})
    count, seconds = sum(counts[number] for number in mine), time.monotonic() - started
    logger.info("encoded %d %s images in %.1f s, %.0f images/s", count, name, seconds, count / max(seconds, 1e-9))
    processes.wait()
    if processes.rank():
        return None
    # Read only what another process encoded: a run that knows nothing of this one may have removed the files by now
    parts = [part or read_tensors(file, "the features")[0] for part, file in zip(rows, files)]
    return torch.cat([part["features"] for part in parts])


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], cfg: CfgNode, folder: Path
) -> dict[str, Tensor]:
    """The text nodes: "positive" and "negative", each `[K, d]`, from disk where the fingerprint is known."""
    options = cfg.TRAINER.HEGRAPHADAPTER.PROMPTS
    source = resolve_source(dataset, options.SOURCE, options.DESCRIPTIONS)
    positive = positive_prompts(dataset, classnames, source, options.TEMPLATES, options.DESCRIPTIONS)
    negative = negative_prompts(dataset, classnames, options.NEGATIVE_TEMPLATES)

    def encode(path: Path, key: str) -> dict[str, Tensor]:
        if processes.rank():
            return {}  # one process is enough for sentences
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


def _cached(
    folder: Path, name: str, fingerprint: dict, encode: Callable[[Path, str], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Reads a part of a bank, or computes and keeps it. A damaged file is replaced, and that is said.

    All processes of `torchrun` come here together; the first of them writes. Two runs that do not know of each other
    may compute the same part: each renames a whole file into place.
    """
    key = hash_json(fingerprint | {"code": CODE_VERSION})
    path = folder / f"{name}-{key[:16]}.safetensors"
    tensors = _read_part(path, key)
    if tensors is not None:
        return tensors
    tensors = encode(path, key)
    if processes.rank() == 0:
        write_tensors(path, tensors, {"fingerprint": key})
        shutil.rmtree(path.with_suffix(".chunks"), ignore_errors=True)
    processes.wait()
    return tensors or read_tensors(path, "the features")[0]


def _read_part(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors of a file that was made from what `key` stands for; None if there is none that can be used."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path, "the features")
    except UserError:
        reason = "it is damaged"
    else:
        # blocks that never reached the disk read as zeros: their rows are not unit-norm
        whole = all((t.norm(dim=-1) - 1).abs().le(NORM_TOLERANCE).all() for t in tensors.values())
        if metadata.get("fingerprint") == key and whole:
            return tensors
        reason = "its features are damaged" if metadata.get("fingerprint") == key else "it was made from something else"
    logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    return None


def _labels(items: Sequence[Item]) -> Tensor:
    return torch.tensor([item.label for item in items], dtype=torch.long)
