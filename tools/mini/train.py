"""Contrastive training of mini on rendered glyphs, on the CPU.

Shapes: B images of a batch, N captions.
"""

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from open_clip import CLIP
from torch import nn
from tqdm import tqdm

from . import captions
from .glyphs import GlyphMasks, load_masks
from .objective import encode_captions, negative_loss, positive_loss
from .render import Rendering, render

MAX_LOGIT_SCALE = math.log(100)  # as in the CLIP paper
# Mean and standard deviation of each channel, from OpenAI, the default of open_clip
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Tokenizer = Callable[[Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of the training. The defaults are those of the shipped weights."""

    steps: int = 1000
    seed: int = 1
    batch_size: int = 192
    negative_captions: int = 64  # per batch
    negative_weight: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    average_decay: float = 0.99  # of the exponential moving average of the weights


@dataclass
class TokenCache:
    """Cache of the tokens of captions, since the BPE tokenizer is slow."""

    tokenizer: Tokenizer
    known: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Tokenize N captions, shape `[N, context length]`."""
        for text in texts:
            if text not in self.known:
                self.known[text] = self.tokenizer([text])[0]
        return torch.stack([self.known[text] for text in texts])

    def used_tokens(self) -> torch.Tensor:
        """Ids of all tokens in the cache, without the padding (0), on which no feature depends."""
        tokens = torch.stack(list(self.known.values())).unique()
        return tokens[tokens != 0]


@dataclass
class BatchSource:
    """Source of batches of rendered glyphs with captions, which depend on the seed alone."""

    glyphs: GlyphMasks
    settings: Settings

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.rng = random.Random(self.settings.seed)
        names = len(self.glyphs.glyphs)
        self.masks_of = [(self.glyphs.labels == label).nonzero().squeeze(1) for label in range(names)]

    def labels(self, count: int) -> torch.Tensor:
        """Sample labels `[count]` uniformly."""
        return torch.randint(len(self.masks_of), (count,), generator=self.generator)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Create a batch: normalised images `[B, 3, 32, 32]`, labels `[B]` and a caption of each image."""
        labels = self.labels(self.settings.batch_size)
        draws = torch.rand(len(labels), generator=self.generator)
        chosen = torch.stack([self.masks_of[x][int(r * len(self.masks_of[x]))] for x, r in zip(labels, draws)])
        rendering = render(self.glyphs.masks[chosen], self.glyphs.bold[chosen], self.generator)
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
        images = ((rendering.images - mean) / std).contiguous(memory_format=torch.channels_last)
        return images, labels, self._captions(labels, chosen, rendering)

    def _captions(self, labels: torch.Tensor, chosen: torch.Tensor, rendering: Rendering) -> list[str]:
        holds = {
            "thick": rendering.thick,
            "thin": ~rendering.thick,
            "leaning": rendering.leaning | self.glyphs.slanted[chosen],
            "bold": self.glyphs.bold[chosen],
            "serif": self.glyphs.serif[chosen],
            "coarse": rendering.coarse,
            "inverted": rendering.inverted,
            "coloured": rendering.coloured,
            "plain": ~rendering.inverted & ~rendering.coloured,
        }
        texts = []
        for row, label in enumerate(labels.tolist()):
            glyph = self.glyphs.glyphs[label]
            true = [attribute for attribute in captions.ATTRIBUTES if holds[attribute][row]]
            texts.append(captions.positive_caption(glyph.name, glyph.is_digit, true, self.rng))
        return texts

    def negatives(self, labels: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """Labels `[N]` of some images of the batch, and a negative caption for each of them."""
        absent = labels[: self.settings.negative_captions]
        glyphs = [self.glyphs.glyphs[label] for label in absent.tolist()]
        return absent, [captions.negative_caption(g.name, g.is_digit, self.rng) for g in glyphs]


def learning_rate(step: int, settings: Settings) -> float:
    """The learning rate of a step: a linear warm-up, then a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices alone: norms, biases and the logit scale have none."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, step: int, settings: Settings) -> None:
    """Moves the averaged weights and batch norm statistics towards the model's.

    The average moves faster in the first steps, so that it soon forgets the random initialisation.
    """
    decay = min(settings.average_decay, (1 + step) / (10 + step))
    current = model.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)


def train(
    model: CLIP, tokenizer: Tokenizer, settings: Settings, watch: Callable[[int, nn.Module], None] | None = None
) -> dict[str, torch.Tensor]:
    """Train a model in place.

    Args:
        model: Model with initial weights.
        tokenizer: Function from captions to tokens.
        settings: Hyperparameters.
        watch: Function that is called after each step with its number and the averaged model.

    Returns:
        Averaged weights in half precision.
    """
    source = BatchSource(load_masks(), settings)
    tokens = TokenCache(tokenizer)
    optimizer = make_optimizer(model, settings)
    average = copy.deepcopy(model)
    model.train().to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    bar = tqdm(range(settings.steps), desc="mini", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = batch_loss(model, source, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        move_average(average, model, step, settings)
        if watch is not None:
            watch(step, average)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.0f}")
    return shipped_weights(average, tokens.used_tokens())


def batch_loss(model: CLIP, source: BatchSource, tokens: TokenCache) -> torch.Tensor:
    """Compute the loss of a new batch, a scalar."""
    images, labels, texts = source.batch()
    absent, negative_texts = source.negatives(labels)
    image_features = model.encode_image(images, normalize=True)
    text_features = encode_captions(model, tokens([*texts, *negative_texts]))
    positive_features, negative_features = text_features.split([len(texts), len(negative_texts)])
    scale = model.logit_scale.exp()
    positive = positive_loss(scale * image_features @ positive_features.t(), labels)
    negative = negative_loss(scale * negative_features @ image_features.t(), absent, labels)
    return positive + source.settings.negative_weight * negative


def shipped_weights(model: nn.Module, used_tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """State dict in half precision, with zeros as the embeddings of tokens that no caption has."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    table = torch.zeros_like(state["token_embedding.weight"])
    table[used_tokens] = state["token_embedding.weight"][used_tokens]
    state["token_embedding.weight"] = table
    return {name: v.half().contiguous() if v.is_floating_point() else v for name, v in state.items()}
