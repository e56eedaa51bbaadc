"""A frozen CLIP: images and sentences to features, the test transform, the augmentation, learned context.

Shapes: B images, S sentences, d feature width (the model's own), H x W the model's input resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T

from ..utils.errors import UserError

INTERPOLATIONS = {"bicubic": T.InterpolationMode.BICUBIC, "bilinear": T.InterpolationMode.BILINEAR}
CONTEXT_LENGTH = 77  # tokens that OpenAI's CLIP reads of a sentence
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of the model's matrices, and so of its images
RESIZING = (T.Resize, T.CenterCrop, ResizeKeepRatio, CenterCropOrPad)  # the steps that a random crop replaces

Transform = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with its tokenizer and image transforms.

    Attributes:
        name: The model and its weights, for records.
        model: An open_clip model on its device, in evaluation mode; no parameter requires a gradient.
        tokenizer: Takes S sentences, returns their tokens `[S, context length]`.
        preprocess: The model's own test transform, from an image to `[3, H, W]`.
        mean, std: Mean and standard deviation of the normalisation, per channel.
        fingerprint: Plain values that change whenever the features would: `identity.backbone_identity` and the test
            transform.
        precision: What the model computes in: "fp32"; "bf16" or "fp16", with its weights; or "amp" (autocast to fp16).
    """

    name: str
    model: Any  # open_clip's model classes have no type in common that says what they can do
    tokenizer: Tokenizer
    preprocess: T.Compose
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]
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

    def encode_images(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` to unit-norm float32 features `[B, d]` on the CPU."""
        return self._features(self.model.encode_image, [images.to(self.device, DTYPES.get(self.precision))])

    def encode_text(self, sentences: Sequence[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """Sentences to unit-norm float32 features `[S, d]` on the CPU; `batch_size` sentences at a time.

        Without `normalize` the features keep the norm that the text tower gives them.
        """
        batches = [list(sentences[i : i + batch_size]) for i in range(0, len(sentences), batch_size)]
        tokens = [self.tokenizer(batch).to(self.device) for batch in batches]
        return self._features(self.model.encode_text, tokens, normalize)

    def context_tokens(self, sentences: Sequence[str], length: int) -> Tensor:
        """Tokens for `encode_with_context`, shape `[S, 77]`, on the model's device. All sentences begin with the same
        word, repeated `length` times: the placeholders of the context vectors.

        Raises:
            UserError: If the tokenizer does not put the placeholders after a start token, one token each.
        """
        tokens = self.tokenizer(sentences)
        if (tokens[:, 1 : 1 + length] != tokens[0, 1]).any():
            raise UserError(f"the tokenizer of {self.name} is not CLIP's, and its sentences take no learned context")
        return tokens.to(self.device)

    def encode_with_context(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Features of sentences that begin with learned vectors, as in CoOp (Zhou et al., IJCV 2022).

        The vectors `[length, text_width]` take the place of the token embeddings of the placeholders in `tokens`, which
        are from `context_tokens`. Gradients flow to them. The features have float32 and unit norm, are `[S, d]` and
        stay on the model's device.

        Raises:
            UserError: If the text tower is not one of open_clip's own.
        """

        def replace(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
            vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], vectors, embedded[:, 1 + len(context) :]], dim=1)

        hook = self._token_embedding.register_forward_hook(replace)
        try:
            with self._autocast():
                features = self.model.encode_text(tokens)
        finally:
            hook.remove()
        return F.normalize(features.float(), dim=-1)

    @property
    def text_width(self) -> int:
        """Width of the text tower's token embeddings."""
        return self._token_embedding.embedding_dim

    @property
    def _token_embedding(self) -> nn.Embedding:
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
        self, encode: Callable[[Tensor], Tensor], batches: Sequence[Tensor], normalize: bool = True
    ) -> Tensor:
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
            crop = T.RandomResizedCrop(
                self.input_size, scale=tuple(crop_scale), interpolation=INTERPOLATIONS[interpolation]
            )
            steps = [crop] + [step for step in steps if not isinstance(step, RESIZING)]
        if "random_flip" in names:
            steps.insert(0, T.RandomHorizontalFlip())
        return T.Compose(steps)


def count_tokens(sentence: str) -> int:
    """How many of OpenAI's tokens a sentence takes, with its start and end token; CLIP reads `CONTEXT_LENGTH`."""
    return len(_openai_tokenizer().encode(sentence)) + 2


@cache
def _openai_tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()
