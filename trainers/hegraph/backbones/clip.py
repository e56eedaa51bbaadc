"""A frozen CLIP: images and sentences to features, the test transform, the augmentation, learned context.

Shapes: B images, S sentences, d feature width (the model's own), H x W the model's input resolution.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.transforms.functional import hflip, resized_crop

from ..datasets.images import ImageOrPath, open_any, reason
from ..utils.errors import UserError, shown
from ..utils.threads import MAX_THREADS, cores, in_batches

CONTEXT_LENGTH = 77  # tokens that OpenAI's CLIP reads of a sentence
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of the model's matrices, and so of its images
AT_ONCE = 16  # images or twice as many sentences that a thread encodes at once in bf16: more leave the cache
RESIZING = (T.Resize, T.CenterCrop, ResizeKeepRatio, CenterCropOrPad)  # the steps that a random crop replaces

Transform = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[Sequence[str]], Tensor]

_ONE_BATCH = Lock()  # of all threads that encode
_DRAWING = Lock()  # of all threads that draw from torch's global generator, as torchvision does


class Preprocess(T.Compose):
    """The test transform of a model, from a path or an image of any mode to `[3, H, W]`.

    The image is first made RGB and upright, with white for transparent parts, as everywhere in this package. UserError
    if it cannot be read.
    """

    def __call__(self, image: ImageOrPath) -> Tensor:
        if not isinstance(image, (Image.Image, os.PathLike, str)):
            raise UserError(f"image: expected a path or a PIL image, got {shown(image)}")
        try:
            pixels = open_any(image)
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            raise UserError(f"cannot read {image}: {reason(error)}") from error
        return super().__call__(pixels)

    def __repr__(self) -> str:
        return repr(T.Compose(self.transforms))  # keys of cached features and model folders contain this text


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with its tokenizer and image transforms.

    Attributes:
        name: The model and its weights, for records.
        model: An open_clip model on its device, in evaluation mode; no parameter requires a gradient.
        tokenizer: Takes S sentences, returns their tokens `[S, context length]`.
        preprocess: The model's own test transform, from a path or a PIL image to `[3, H, W]`.
        mean, std: Mean and standard deviation of the normalisation, per channel.
        fingerprint: Plain values that change whenever the features would: `identity.backbone_identity` and the test
            transform.
        precision: What the model computes in: "fp32"; "bf16" or "fp16", with its weights; or "amp" (autocast to fp16).
    """

    name: str
    model: Any = field(repr=False)  # open_clip's model classes have no type in common that says what they can do
    tokenizer: Tokenizer = field(repr=False)
    preprocess: Preprocess = field(repr=False)
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)
    fingerprint: dict[str, str] = field(repr=False)
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """CLIP's `tau`, by which cosines are multiplied; 100 for OpenAI's weights."""
        return self.model.logit_scale.exp().item()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes, `(H, W)`."""
        size = self.model.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @cached_property
    def width(self) -> int:
        """Feature width `d`, measured on a feature: open_clip's model classes have no common name for it."""
        return self.encode_text([""]).shape[1]

    def encode_images(self, images: Tensor | Sequence[ImageOrPath], batch_size: int = 64) -> Tensor:
        """Encode images, in the manner of `HeGraphClassifier` and of the command line.

        Args:
            images: B paths or PIL images, which may have any size, mode and EXIF orientation; or a tensor
                `[B, 3, H, W]` that `preprocess` made.
            batch_size: Number of paths or PIL images that are encoded at once.

        Returns:
            Unit-norm float32 features `[B, d]` on the CPU.

        Raises:
            UserError: If `images` is something else, or if an image cannot be read; the message names it.

        >>> from PIL import Image
        >>> from hegraph import load_backbone
        >>> backbone = load_backbone("hegraph-mini")
        >>> backbone.encode_images([Image.new("L", (40, 30)), Image.new("RGBA", (8, 8))]).shape
        torch.Size([2, 64])
        """
        if isinstance(images, Tensor):
            return self._features(
                lambda part: self.model.encode_image(part.to(self.device, DTYPES.get(self.precision))),
                [images],
                AT_ONCE,
            )
        known = (Image.Image, os.PathLike, str)
        if not isinstance(images, (list, tuple)) or not all(isinstance(image, known) for image in images):
            raise UserError(
                f"images: expected a list of paths or of PIL images, or a tensor [B, 3, H, W], got {shown(images)}"
            )
        batches = in_batches(self.preprocess, images, batch_size, min(cores(), MAX_THREADS))
        encoded = (self.encode_images(torch.stack(pixels)) for _, pixels in batches)
        return torch.cat([torch.zeros(0, self.width), *encoded])

    def encode_text(self, sentences: Sequence[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """Sentences to unit-norm float32 features `[S, d]` on the CPU; `batch_size` sentences at a time.

        Without `normalize` the features keep the norm that the text tower gives them.
        """
        batches = [list(sentences[i : i + batch_size]) for i in range(0, len(sentences), batch_size)]
        tokens = [self.tokenizer(batch).to(self.device) for batch in batches]
        return self._features(self.model.encode_text, tokens, 2 * AT_ONCE, normalize)

    def context_tokens(self, sentences: Sequence[str], length: int) -> Tensor:
        """Tokens for `encode_with_context`, shape `[S, 77]`, on the model's device. All sentences begin with the same
        word, repeated `length` times: the placeholders of the context vectors. UserError if the tokenizer does not put
        them after a start token, one token each.
        """
        tokens = self.tokenizer(sentences)
        if (tokens[:, 1 : 1 + length] != tokens[0, 1]).any():
            raise UserError(f"the tokenizer of {self.name} is not CLIP's, and its sentences take no learned context")
        return tokens.to(self.device)

    def encode_with_context(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Features of sentences that begin with learned vectors, as in CoOp (Zhou et al., IJCV 2022).

        The vectors `[length, width]` take the place of the token embeddings, of that width, of the placeholders in
        `tokens`, which are from `context_tokens`. Gradients flow to them. The features have float32 and unit norm, are
        `[S, d]` and stay on the model's device. UserError if the text tower is not one of open_clip's own.
        """

        def replace(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
            vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], vectors, embedded[:, 1 + len(context) :]], dim=1)

        hook = self.token_embedding.register_forward_hook(replace)
        try:
            with self._autocast():
                features = self.model.encode_text(tokens)
        finally:
            hook.remove()
        return F.normalize(features.float(), dim=-1)

    @property
    def token_embedding(self) -> nn.Embedding:
        """What the text tower makes of tokens; UserError if it is not one of open_clip's own."""
        tower = getattr(self.model, "text", self.model)
        if not hasattr(tower, "token_embedding"):
            raise UserError(
                f"the text tower of {self.name} is not one of open_clip's own, and takes no learned context"
            )
        return tower.token_embedding

    def _autocast(self) -> AbstractContextManager:
        # Not autocast(enabled=False): older versions of torch refuse float16 on the CPU even then
        return torch.autocast(self.device.type, torch.float16) if self.precision == "amp" else nullcontext()

    @torch.no_grad()
    def _features(
        self, encode: Callable[[Tensor], Tensor], batches: Sequence[Tensor], at_once: int, normalize: bool = True
    ) -> Tensor:
        if self.precision == "bf16" and self.device.type == "cpu":
            features = torch.cat([encode_in_parts(encode, batch, at_once) for batch in batches])
        else:
            with self._autocast():
                features = torch.cat([encode(batch) for batch in batches])
        features = features.float()
        return (F.normalize(features, dim=-1) if normalize else features).cpu()

    def training_transform(self, names: Sequence[str], crop_scale: Sequence[float], interpolation: str) -> T.Compose:
        """The augmentation of training images: any of "random_resized_crop", with the least and the largest fraction of
        the area that it keeps, "random_flip" and "normalize". Images are always normalised; without a crop they are
        resized as for testing.
        """
        steps = list(self.preprocess.transforms)
        if "random_resized_crop" in names:
            mode = T.InterpolationMode(interpolation)
            crop = T.RandomResizedCrop(self.input_size, scale=tuple(crop_scale), interpolation=mode)
            steps = [crop] + [step for step in steps if not isinstance(step, RESIZING)]
        if "random_flip" in names:
            steps.insert(0, T.RandomHorizontalFlip())
        return T.Compose(steps)


def in_two_steps(transform: Transform) -> tuple[Sequence[Callable], Callable[[Tensor], Tensor]]:
    """A transform of images in two with the same result: steps from an image to bytes, `[H, W, 3]`, and what makes of a
    batch of these floats, `[B, 3, H, W]`. Images that wait take a quarter of the memory.

    One that does not end as CLIP's do is the first of the two whole, and the second does nothing.
    """
    steps = transform.transforms if isinstance(transform, T.Compose) else [transform]
    if len(steps) < 2 or not (isinstance(steps[-2], T.ToTensor) and isinstance(steps[-1], T.Normalize)):
        return steps, lambda batch: batch
    normalize = T.Normalize(steps[-1].mean, steps[-1].std, inplace=True)

    def finish(batch: Tensor) -> Tensor:
        return normalize(batch.permute(0, 3, 1, 2).contiguous().float().div_(255))

    return [*steps[:-2], np.array, torch.from_numpy], finish


def draw_steps(steps: Sequence[Callable], image: Image.Image, seed: int) -> list[Callable]:
    """The steps of a transform as they are for one image: random ones draw from a generator with this seed."""
    sampled: list[Callable] = []
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for step in steps:
            if isinstance(step, T.RandomResizedCrop):
                box = zip(("top", "left", "height", "width"), step.get_params(image, [*step.scale], [*step.ratio]))
                sampled.append(partial(resized_crop, **dict(box), size=step.size, interpolation=step.interpolation))
            elif not isinstance(step, T.RandomHorizontalFlip):
                sampled.append(step)
            elif torch.rand(1) < step.p:
                sampled.append(hflip)
    return sampled


def encode_in_parts(encode: Callable[[Tensor], Tensor], batch: Tensor, at_once: int) -> Tensor:
    """What `encode` gives for a batch, by as many threads as torch has: each computes alone on parts of the batch.

    So no thread waits for another at every layer, as all do that share one, while other processes take their cores. A
    part is at most `at_once` rows of the batch.
    """
    threads = torch.get_num_threads()
    parts = batch.tensor_split(min(-(-len(batch) // (at_once * threads)) * threads, max(len(batch), 1)))
    if threads == 1 or len(parts) == 1:
        return torch.cat([encode(part) for part in parts])
    with _ONE_BATCH, ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return torch.cat(list(pool.map(torch.no_grad()(encode), parts)))
        finally:
            torch.set_num_threads(threads)  # a thread begins with the number that was set last, by any


def count_tokens(sentence: str) -> int:
    """How many of OpenAI's tokens a sentence takes, with its start and end token; CLIP reads `CONTEXT_LENGTH`."""
    return len(_openai_tokenizer().encode(sentence)) + 2


_openai_tokenizer = cache(SimpleTokenizer)  # which is made once
