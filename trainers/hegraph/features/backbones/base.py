"""A frozen encoder: encoding of images and sentences, test transform, augmentation, learned context.

All other packages use a `Backbone`, whichever library its model is from. `Encoder` is the part that each library
supplies.

Shapes: B images, S sentences, d feature width (the model's own), H x W the model's input resolution.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms as T

from ...datasets.decoding import DecodedImage
from ...datasets.images import ImageOrPath
from ...utils.errors import UserError, first_line
from ...utils.reading import Size, validate
from ...utils.text import shown
from ...utils.threads import MAX_THREADS, cores, in_batches
from .transforms import Preprocess, decoding_of

CLIP_SCALE = 100.0  # `tau` of OpenAI's weights, also for encoders without text
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of matrices and input images
# Images in a call from which on more images in it change no bit of a feature, on a CPU (measured: 16). A call has at
# most twice as many, which a ViT-B/16 encodes in ten seconds at 4 images a second
LEAST_ROWS = 20
USUAL_PIXELS = 224 * 224  # of an image, as most models take it
MAX_STEP_FACTOR = 4  # size of a step of small images over `least_rows`
PART_ROWS = 16  # images that a thread encodes together in bf16 (sentences: twice as many), so that they fit its cache
# Steps that a random crop replaces, by name of the class: open_clip and timm have classes of the same name
RESIZING = ("Resize", "CenterCrop", "FloorCenterCrop", "ResizeKeepRatio", "CenterCropOrPad")

Tokenizer = Callable[[Sequence[str]], Tensor]

_ENCODING = Lock()  # one batch at a time


class Encoder(Protocol):
    """Model of a library: an `nn.Module` on its device, in evaluation mode, without gradients.

    open_clip's models are encoders. Modules of other libraries are wrapped. A model without text has only
    `encode_image`, and its backbone has no tokenizer.

    Attributes:
        logit_scale: Natural logarithm of CLIP's `tau`, a scalar.
    """

    logit_scale: Tensor

    def encode_image(self, image: Tensor, /) -> Tensor:
        """Encode normalised images `[B, 3, H, W]` as features `[B, d]` of any norm."""

    def encode_text(self, text: Tensor, /) -> Tensor:
        """Encode tokens `[S, context length]` as features `[S, d]` of any norm."""


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder of images and, for most models, of text, with its tokenizer and image transforms.

    Attributes:
        name: Model and weights, for people and records.
        model: The model, an `Encoder`. Only the export and counts of parameters use it outside this package.
        tokenizer: Function from S sentences to tokens `[S, context length]`; None for a model without text.
        preprocess: Test transform of the model, from a path or a PIL image to `[3, H, W]`.
        mean, std: Mean and standard deviation of the normalisation, for each channel.
        input_size: Height and width of input images, `(H, W)`.
        fingerprint: `identity.backbone_identity` and the test transform as text. Changes whenever the features change.
        precision: "fp32"; "bf16" or "fp16", with converted weights; or "amp" (autocast to fp16).

    Examples:
        >>> from hegraph import load_backbone
        >>> backbone = load_backbone("mini")
        >>> backbone.name, backbone.width, backbone.input_size
        ('hegraph-mini/hegraph-mini', 64, (32, 32))
        >>> backbone.encode_text(["a photo of a cat", "a photo of no cat"]).shape
        torch.Size([2, 64])
    """

    name: str
    model: Any = field(repr=False)  # an `Encoder` and an `nn.Module`, which Python's types cannot express
    tokenizer: Tokenizer | None = field(repr=False)
    preprocess: Preprocess = field(repr=False)
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)
    input_size: tuple[int, int] = field(repr=False)
    fingerprint: dict[str, str] = field(repr=False)
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def has_text(self) -> bool:
        """Whether the model encodes sentences. Without text, `encode_text` raises UserError."""
        return self.tokenizer is not None

    @property
    def logit_scale(self) -> float:
        """CLIP's `tau`, the factor of cosine similarities; `CLIP_SCALE` for a model without text."""
        return self.model.logit_scale.exp().item() if self.has_text else CLIP_SCALE

    @property
    def least_rows(self) -> int:
        """Number of images in a call from which on more images in it change no bit of a feature, on a CPU.

        It grows with the number of threads, so that each one has work.
        """
        part_of_threads = PART_ROWS * torch.get_num_threads()
        return part_of_threads if self.precision == "bf16" else max(LEAST_ROWS, part_of_threads)

    @property
    def step_rows(self) -> int:
        """Number of images of a step (see `features/order.py`), a multiple of `least_rows`.

        A slow model takes seconds for `least_rows` images of usual size. Small images are encoded faster in larger
        steps.
        """
        factor = USUAL_PIXELS // math.prod(self.input_size)
        return self.least_rows * min(max(factor, 1), MAX_STEP_FACTOR)

    def splits(self, rows: int) -> bool:
        """Whether calls with `least_rows` or more images give the features of one call with `rows` images, bit for bit.

        In bf16, the calls have multiples of `least_rows` images.
        """
        if self.device.type != "cpu":
            return False
        return self.precision != "bf16" or rows % self.least_rows == 0  # parts of `encode_in_parts` stay equal

    @cached_property
    def width(self) -> int:
        """Feature width `d`, measured by encoding a sentence or an image, because models have no common attribute."""
        if self.has_text:
            return self.encode_text([""]).shape[1]
        return self.encode_images(torch.zeros(1, 3, *self.input_size)).shape[1]

    @property
    def decode(self) -> str:
        """Decoding of image files: "full", or "auto" for JPEG photos at the scale that the model needs."""
        return decoding_of(self.preprocess)

    def with_decoding(self, decode: str) -> "Backbone":
        """Return this backbone with another decoding of image files, one of `DECODINGS`."""
        if decode == self.decode:
            return self
        return replace(self, preprocess=Preprocess(self.preprocess.transforms, decode))

    def encode_images(self, images: "Tensor | Sequence[ImageOrPath | DecodedImage]", batch_size: int = 64) -> Tensor:
        """Encode images as `HeGraphClassifier` and the command line do; they reduce photos (`with_decoding`).

        Args:
            images: B paths or PIL images, which may have any size, mode and EXIF orientation; or a tensor
                `[B, 3, H, W]` that `preprocess` made.
            batch_size: Number of paths or PIL images in a batch.

        Returns:
            Unit-norm float32 features `[B, d]` on the CPU.

        Raises:
            UserError: If `images` or an image is something else, or an image cannot be read; the message names it.

        Examples:
            >>> from PIL import Image
            >>> from hegraph import load_backbone
            >>> backbone = load_backbone("mini")
            >>> backbone.encode_images([Image.new("L", (40, 30)), Image.new("RGBA", (8, 8))]).shape
            torch.Size([2, 64])
        """
        if isinstance(images, Tensor):
            return self._features(
                lambda part: self.model.encode_image(part.to(self.device, DTYPES.get(self.precision))),
                [images],
                PART_ROWS,
            )
        if not isinstance(images, (list, tuple)):
            raise UserError(
                f"images: expected a list of paths or of PIL images, or a tensor [B, 3, H, W], got {shown(images)}"
            )
        batch_size = validate(Size, batch_size, "batch_size", convert=True)
        batches = in_batches(self.preprocess, images, batch_size, min(cores(), MAX_THREADS))
        encoded = (self.encode_images(torch.stack(pixels)) for _, pixels in batches)
        return torch.cat([torch.zeros(0, self.width), *encoded])

    def encode_text(self, sentences: Sequence[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """Encode S sentences as float32 features `[S, d]` on the CPU, of unit norm if `normalize` is set.

        Raises:
            UserError: If `sentences` is a single string, whose letters would be encoded, or the model has no text.
        """
        tokenize = self.require_text()
        if isinstance(sentences, str):
            raise UserError(f"sentences: expected a list of strings, got {shown(sentences)}")
        if len(sentences) == 0:
            return torch.zeros(0, self.width)
        batches = [list(sentences[i : i + batch_size]) for i in range(0, len(sentences), batch_size)]
        tokens = [tokenize(batch).to(self.device) for batch in batches]
        return self._features(self.model.encode_text, tokens, 2 * PART_ROWS, normalize)

    def require_text(self) -> Tokenizer:
        """Return the tokenizer; UserError if the model has no text."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} encodes images only, so it has no features of class names; "
                "choose a backbone with text, such as ViT-B-16-quickgelu"
            )
        return self.tokenizer

    def context_tokens(self, sentences: Sequence[str], length: int) -> Tensor:
        """Tokens `[S, 77]` for `encode_with_context`, on the model's device.

        All sentences begin with the same word, repeated `length` times, as placeholders of the context vectors.

        Raises:
            UserError: If the tokenizer does not turn each placeholder into one token, after a start token, or the model
                has no text.
        """
        tokens = self.require_text()(sentences)
        if (tokens[:, 1 : 1 + length] != tokens[0, 1]).any():
            raise UserError(
                f"CoOp learns its context with CLIP's tokenizer, and {self.name} has another one; choose another "
                "backbone, such as ViT-B-16"
            )
        return tokens.to(self.device)

    def encode_with_context(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Encode sentences that begin with learned vectors, as in CoOp (Zhou et al., IJCV 2022).

        Args:
            tokens: Tokens from `context_tokens`.
            context: Vectors `[length, width]` that replace the token embeddings of the placeholders.

        Returns:
            Unit-norm float32 features `[S, d]` on the model's device, with gradients to `context`.

        Raises:
            UserError: If the text tower is not from open_clip.
        """

        def with_context(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
            vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], vectors, embedded[:, 1 + len(context) :]], dim=1)

        hook = self.token_embedding.register_forward_hook(with_context)
        try:
            with self._autocast():
                features = self.model.encode_text(tokens)
        finally:
            hook.remove()
        return F.normalize(features.float(), dim=-1)

    @property
    def token_embedding(self) -> nn.Embedding:
        """Token embedding of the text tower; UserError if the tower is not from open_clip."""
        tower = getattr(self.model, "text", self.model)
        if not hasattr(tower, "token_embedding"):
            raise UserError(
                f"CoOp learns its context in a text tower of open_clip, and {self.name} has another one; "
                "choose another backbone, such as ViT-B-16"
            )
        return tower.token_embedding

    def _autocast(self) -> AbstractContextManager:
        # Not autocast(enabled=False): older versions of torch refuse float16 on the CPU even then
        return torch.autocast(self.device.type, torch.float16) if self.precision == "amp" else nullcontext()

    @torch.no_grad()
    def _features(
        self, encode: Callable[[Tensor], Tensor], batches: Sequence[Tensor], part_rows: int, normalize: bool = True
    ) -> Tensor:
        if self.precision == "bf16" and self.device.type == "cpu":
            features = torch.cat([encode_in_parts(encode, batch, part_rows) for batch in batches])
        else:
            with self._autocast():
                features = torch.cat([encode(batch) for batch in batches])
        features = features.float()
        return (F.normalize(features, dim=-1) if normalize else features).cpu()

    def training_transform(self, names: Sequence[str], crop_scale: Sequence[float], interpolation: str) -> Preprocess:
        """Augmentation of training images.

        Args:
            names: Any of "random_resized_crop", "random_flip" and "normalize". Images are always normalised. Without a
                crop they are resized as in the test transform.
            crop_scale: Smallest and largest fraction of the area in a crop.
            interpolation: Name of a torchvision `InterpolationMode` for the crop.
        """
        steps = list(self.preprocess.transforms)
        if "random_resized_crop" in names:
            mode = T.InterpolationMode(interpolation)
            crop = T.RandomResizedCrop(self.input_size, scale=tuple(crop_scale), interpolation=mode)
            steps = [crop] + [step for step in steps if type(step).__name__ not in RESIZING]
        if "random_flip" in names:
            steps.insert(0, T.RandomHorizontalFlip())
        return Preprocess(steps, self.decode)


def encode_in_parts(encode: Callable[[Tensor], Tensor], batch: Tensor, part_rows: int) -> Tensor:
    """Encode a batch in parts of at most `part_rows` rows, each on one of torch's threads.

    Threads that share a layer wait for each other at its end, which is slow if other processes use the cores.
    """
    threads = torch.get_num_threads()
    rounds = math.ceil(len(batch) / (part_rows * threads))
    parts = batch.tensor_split(min(rounds * threads, max(len(batch), 1)))
    if threads == 1 or len(parts) == 1:
        return torch.cat([encode(part) for part in parts])
    with _ENCODING, ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return torch.cat(list(pool.map(torch.no_grad()(encode), parts)))
        finally:
            torch.set_num_threads(threads)  # new threads take the number set last by any thread


def check_encodes(backbone: Backbone, name: str) -> None:
    """Encode one black image; UserError if a model does not accept the size or the number format of images."""
    try:
        backbone.encode_images(torch.zeros(1, 3, *backbone.input_size))
    except Exception as error:  # the type depends on the model
        size = "x".join(map(str, backbone.input_size))
        problem = f"cannot encode {size} images in {backbone.precision} with {name}: {first_line(error).rstrip('.')}"
        other = "" if backbone.precision == "fp32" else ", or try --precision fp32"
        raise UserError(f"{problem}; choose another backbone{other}") from error
