"""The frozen CLIP. The only file that knows open_clip.

A model is found first (`_locate`: names, tags, files, the Hugging Face cache), then built, then loaded.
Shapes: B images, d feature width (the model's own), H x W the model's input resolution.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import get_session
from open_clip.factory import load_state_dict
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T

from ..utils.errors import UserError, unknown
from ..utils.files import hash_file
from .torchscript import OPENAI_MARKS, is_torchscript, read_torchscript

logger = logging.getLogger(__name__)

MINI_NAME = "hegraph-mini"
MINI_CONFIG = Path(__file__).parent / "mini" / f"{MINI_NAME}.json"
MINI_WEIGHTS = MINI_CONFIG.with_suffix(".safetensors")

AUTO = "auto"  # of `pretrained`: the weights that come with the model, else OpenAI's
PRECISIONS = ("fp32", "fp16", "amp")
INTERPOLATIONS = {"bicubic": T.InterpolationMode.BICUBIC, "bilinear": T.InterpolationMode.BILINEAR}
RESIZING = (T.Resize, T.CenterCrop, ResizeKeepRatio, CenterCropOrPad)

HUB, FOLDER = "hf-hub:", "local-dir:"  # models that bring their configuration and their weights along
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")  # the last in place of the first
VOCABULARY_NAMES = TOKENIZER_NAMES[::2]
USE_FOLDER = "MODEL.BACKBONE.NAME local-dir:FOLDER"
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")

CONTEXT_LENGTH = 77  # tokens that OpenAI's CLIP reads of a sentence

Transform = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with its tokenizer and image transforms.

    Attributes:
        name: The open_clip model name and its weights, for records.
        model: In evaluation mode, on its device; no parameter requires a gradient.
        tokenizer: Sentences to tokens.
        preprocess: The model's own test transform, image to `[3, H, W]`.
        mean, std: Of the normalisation, per channel.
        fingerprint: Plain values that change whenever features would.
        precision: What it computes in: "fp32", "fp16" (weights, too) or "amp" (autocast).
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    preprocess: T.Compose
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """CLIP's temperature `tau`, 100 for OpenAI's weights."""
        return self.model.logit_scale.exp().item()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes, `(H, W)`."""
        size = self.model.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def image_size(self) -> int:
        """`H`, which is `W` as well except in rare models: `input_size` has both."""
        return self.input_size[0]

    @cached_property
    def width(self) -> int:
        """`d`, by what comes out: open_clip's model classes have no common name for it."""
        return self.encode_text([""]).shape[1]

    def encode_images(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` to unit-norm float32 features `[B, d]` on the CPU."""
        dtype = torch.float16 if self.precision == "fp16" else None
        return self._unit_features(self.model.encode_image, [images.to(device=self.device, dtype=dtype)])

    def encode_text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """Sentences to unit-norm float32 features `[len(sentences), d]` on the CPU."""
        batches = [list(sentences[i : i + batch_size]) for i in range(0, len(sentences), batch_size)]
        return self._unit_features(self.model.encode_text, [self.tokenizer(b).to(self.device) for b in batches])

    def context_tokens(self, sentences: Sequence[str], length: int) -> Tensor:
        """Tokens of sentences that begin with `length` placeholders, for `encode_with_context`.

        Raises:
            UserError: If the tokenizer does not put the placeholders after a start token, one token each.
        """
        tokens = self.tokenizer(sentences)
        if (tokens[:, 1 : 1 + length] != tokens[0, 1]).any():
            raise UserError(f"the tokenizer of {self.name} is not CLIP's, and its sentences take no learned context")
        return tokens.to(self.device)

    def encode_with_context(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Sentences with vectors in place of their placeholders' embeddings, with gradients.

        Args:
            tokens: From `context_tokens`, shape `[S, 77]`.
            context: Shape `[length, text_width]`.

        Returns:
            Unit-norm float32 features on the model's device, shape `[S, d]`.
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
        fast = self.precision == "amp"  # on a GPU; older torch knows no float16 on the CPU, not even switched off
        return torch.autocast(self.device.type, torch.float16) if fast else nullcontext()

    @torch.no_grad()
    def _unit_features(self, encode: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Tensor:
        with self._autocast():
            features = torch.cat([encode(batch) for batch in batches])
        return F.normalize(features.float(), dim=-1).cpu()

    def training_transform(self, names: Sequence[str], crop_scale: Sequence[float], interpolation: str) -> T.Compose:
        """The augmentation of training images, CoOp's by default.

        Args:
            names: Of "random_resized_crop", "random_flip", "normalize" (which always happens). Without a
                crop, the image is resized as for testing.
            crop_scale: The area that a random resized crop keeps, as (least, most) fractions.
            interpolation: "bicubic" or "bilinear".
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


def load_backbone(name: str, pretrained: str = "", device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name: An open_clip model name, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER", or "hegraph-mini".
        pretrained: An open_clip weights tag, or a weights file: `.safetensors`, a PyTorch state dict, or one of
            OpenAI's TorchScript archives. "" for "hf-hub:" and "local-dir:"; for mini, "" takes the weights that it
            ships with. "auto": the weights that come with the model, or else "openai".
        device: Where it runs.
        precision: "fp32", "fp16" or "amp". Only CUDA computes in less than fp32: elsewhere it is fp32, which is said.

    Raises:
        UserError: On an unknown model or tag, an activation that does not fit the weights, or weights that
            cannot be had, are damaged or of another model.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision != "fp32" and torch.device(device).type != "cuda":
        _say_fp32(torch.device(device).type)
        precision = "fp32"
    if pretrained == AUTO:
        pretrained = "" if name == MINI_NAME or name.startswith((HUB, FOLDER)) else "openai"
    if name == MINI_NAME and not pretrained:
        pretrained = str(MINI_WEIGHTS)
    if not name:
        raise UserError("MODEL.BACKBONE.NAME is empty; give --config-file configs/trainers/HeGraphAdapter/NAME.yaml")
    if not pretrained and not name.startswith((HUB, FOLDER)):
        raise UserError(f"MODEL.BACKBONE.PRETRAINED is empty; {name!r} needs an open_clip tag or a weights file")
    source = _locate(name, pretrained)
    model, preprocess, tokenizer = _build(source, precision)
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    fingerprint = {**source.identity, "preprocess": describe(preprocess)}
    return Backbone(
        name=source.title,
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        preprocess=preprocess,
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        fingerprint=fingerprint if precision == "fp32" else {**fingerprint, "precision": precision},
        precision=precision,
    )


def count_tokens(sentence: str) -> int:
    """How many of OpenAI's tokens a sentence takes, its start and its end included; CLIP reads `CONTEXT_LENGTH`."""
    return len(_clip_tokenizer().encode(sentence)) + 2


@cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def describe(transform: Transform) -> str:
    """What a transform does, as text that is the same in every process: a function's `repr` holds its address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def create_model(name: str, pretrained: str | None = None) -> tuple[nn.Module, T.Compose, Tokenizer]:
    """Builds an open_clip model in fp32 on the CPU, its test transform and its tokenizer.

    Args:
        name, pretrained: As of `load_backbone`; None leaves the model at its random initialisation.

    Raises:
        UserError: As `load_backbone`.
    """
    return _build(_locate(name, pretrained), "fp32")


@cache  # once per process
def _say_fp32(device: str) -> None:
    logger.warning("the backbone computes in fp32 on the %s, whatever PREC says: fp16 and amp need CUDA", device)


class _Source(NamedTuple):
    """What to build and load."""

    name: str  # as the user gave it
    title: str  # for records
    model: str  # what open_clip builds: a built-in name or local-dir:FOLDER
    weights: Path | None  # None leaves the random initialisation
    identity: dict[str, str]  # plain values that change whenever the architecture or the weights do
    tag: str = ""  # open_clip's name of the weights


def _locate(name: str, pretrained: str | None) -> _Source:
    """Finds a model and its weights, downloading what only the hub has. Loads nothing yet."""
    if name.startswith((HUB, FOLDER)):
        if pretrained:
            raise UserError(f"{name} brings its weights along: set MODEL.BACKBONE.PRETRAINED to '', not {pretrained!r}")
        return _locate_bundle(name)
    if MINI_NAME not in open_clip.list_models():
        open_clip.add_model_config(MINI_CONFIG)
    if name not in open_clip.list_models():
        raise unknown("backbone", name, open_clip.list_models())
    if not pretrained:
        return _Source(name, name, name, None, {"model": name})
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = open_clip.get_pretrained_cfg(re.sub("-quickgelu$", "", name), pretrained)  # the plain name has all tags
    if tag:
        _check_activation(name, bool(tag.get("quick_gelu")), f"the weights {pretrained!r}")
    if pretrained in tags:
        repository, _, filename = tag["hf_hub"].rpartition("/")
        filenames = (re.sub(r"\.\w+$", ".safetensors", filename), filename) if filename else WEIGHTS_NAMES
        use = "set MODEL.BACKBONE.PRETRAINED to its path here"
        file = _fetch(repository, filenames, f"{name} with the weights {pretrained!r}", " or ".join(filenames), use)
        return _Source(name, f"{name}/{pretrained}", name, file, {"model": name, "weights": pretrained}, pretrained)
    file = Path(pretrained)
    if not file.is_file():
        raise unknown(f"weights of {name}: neither a file nor a tag:", pretrained, tags)
    return _Source(name, f"{name}/{file.stem}", name, file, {"model": name, "weights": hash_file(file)})


def _locate_bundle(name: str) -> _Source:
    """Finds configuration and weights of "hf-hub:ORGANISATION/NAME" or "local-dir:FOLDER"."""
    title = name.partition(":")[2]
    extra: list[Path] = []
    if name.startswith(HUB):
        needed, use = f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]}", f"put them into a folder here: {USE_FOLDER}"
        config, weights = (_fetch(title, files, name, needed, use) for files in ((CONFIG_NAME,), WEIGHTS_NAMES))
    else:
        folder = Path(title)
        config, extra = folder / CONFIG_NAME, [folder / filename for filename in TOKENIZER_NAMES]
        files = [file for file in sorted(folder.glob("*")) if file.suffix in WEIGHTS_SUFFIXES]
        known = [folder / filename for filename in WEIGHTS_NAMES if folder / filename in files]
        if not config.is_file() or not (known or len(files) == 1):
            raise UserError(
                f"{name} must be a folder with {CONFIG_NAME} and {WEIGHTS_NAMES[0]} or one other weights file"
            )
        weights, title = (known or files)[0], folder.resolve().name
    identity = {"model": hash_file(config), "weights": hash_file(weights)}
    identity.update({file.name: hash_file(file) for file in extra if file.is_file()})
    return _Source(name, title, f"{FOLDER}{config.parent}", weights, identity)


def _check_activation(model: str, quick: bool, what: str) -> None:
    """Of this, open_clip at most warns, and the features are then wrong."""
    plain = re.sub("-quickgelu$", "", model)
    right = f"{plain}-quickgelu" if quick else plain
    if bool(open_clip.get_model_config(model).get("quick_gelu")) != quick and right != model:
        use = f"{right!r}, not {model!r}" if right in open_clip.list_models() else 'a configuration with "quick_gelu"'
        raise UserError(f"{what} were trained with{'' if quick else 'out'} QuickGELU: use {use}")


def _cached(repository: str, filenames: Sequence[str]) -> Path | None:
    """The first of the files that the Hugging Face cache has."""
    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        raise UserError(f"{repository!r} is no repository of {constants.ENDPOINT}: {_first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _fetch(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """The first of the files that the Hugging Face cache or, if it has none, the repository has."""
    if path := _cached(repository, filenames):
        return path
    _require_hub(repository, what, needed, use)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # its own, of requests or of httpx, by its version
            reason = error
    raise UserError(f"cannot download {' or '.join(filenames)} of {repository}: {_first_line(reason)}") from reason


def _require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Asks once whether the hub answers; huggingface_hub would ask for a minute."""
    hub = constants.ENDPOINT
    try:
        get_session().head(hub, timeout=5)
    except Exception as error:
        raise UserError(
            f"{what} is not on this machine, and {hub} cannot be reached ({_first_line(error)}): download {needed} "
            f"from {hub}/{repository} elsewhere and {use}; or copy models--{repository.replace('/', '--')} from the "
            f"Hugging Face cache of another machine into {constants.HF_HUB_CACHE}"
        ) from error


def _build(source: _Source, precision: str) -> tuple[nn.Module, T.Compose, Tokenizer]:
    """Builds a model on the CPU and loads its weights."""
    root = logging.getLogger()
    try:
        tokenizer = _tokenizer(source)
        root.addFilter(_not_of_open_clip)  # it says that there are no weights yet
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.model, load_weights=False, precision=precision, pretrained_text=False, **_preprocessing(source)
            )
        finally:
            root.removeFilter(_not_of_open_clip)
        model.logit_scale.data = model.logit_scale.data.float()  # fp16 has three digits, and tau multiplies all
        if source.weights:
            _load(model, source)
        return model, preprocess, tokenizer
    except UserError:
        raise
    except Exception as error:  # on a damaged file, torch.load and safetensors raise whatever its bytes lead to
        weights = f" with weights {str(source.weights)!r}" if source.weights else ""
        raise UserError(f"cannot load {source.name}{weights}: {_reason(error)}") from error


def _not_of_open_clip(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "open_clip"


def _preprocessing(source: _Source) -> dict[str, Any]:
    """What open_clip's list of weights says of the test transform; a folder's own configuration says it otherwise."""
    tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(source.model)
    options = [
        {f"image_{key}": open_clip.get_pretrained_cfg(source.model, tag)[key] for key in PREPROCESSING} for tag in tags
    ]
    if source.weights and any(other != options[0] for other in options):
        said = "images for %s are preprocessed as for %s/%s, but other weights of that model take them otherwise"
        logger.warning(said, source.weights, source.name, tags[0])
    return options[0] if options else {}


def _tokenizer(source: _Source) -> Tokenizer:
    """The model's own. SigLIP and some others have one of transformers, which comes with files."""
    text = open_clip.get_model_config(source.model)["text_cfg"]
    place, what = text.get("hf_tokenizer_name"), f"the tokenizer of {source.name}"
    if not place:
        return open_clip.get_tokenizer(source.model)
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{what} needs the package transformers: pip install transformers sentencepiece")
    files = " and ".join(TOKENIZER_NAMES[:2])
    if source.name.startswith(FOLDER):
        place = source.model[len(FOLDER) :]
        if not any((Path(place) / filename).is_file() for filename in VOCABULARY_NAMES):
            raise UserError(f"{what} is missing: put {files} into {place}")
    elif _cached(place, TOKENIZER_NAMES[1:2]) and (vocabulary := _cached(place, VOCABULARY_NAMES)):
        place = str(vocabulary.parent)  # as a folder: by its name, transformers asks the hub for more
    else:
        use = f"put them with {CONFIG_NAME} and the weights into a folder here: {USE_FOLDER}"
        _require_hub(place, what, files, use)
    length, mode = text.get("context_length", 77), text.get("tokenizer_mode")
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, **text.get("tokenizer_kwargs", {}))


def _load(model: nn.Module, source: _Source) -> None:
    """Loads weights as open_clip does, but OpenAI's archives as well, and no position embeddings of another size."""
    path, own = source.weights, model.state_dict()
    native = is_torchscript(path)
    state = read_torchscript(path) if native else load_state_dict(str(path))
    openai = state.keys() >= OPENAI_MARKS
    state = {key: value for key, value in state.items() if not (openai and key in OPENAI_MARKS)}
    for key in POSITIONS:  # open_clip would stretch them
        if key in state and key in own and state[key].shape != own[key].shape:
            raise ValueError(f"it is of another model: {key} is {list(state[key].shape)}, not {list(own[key].shape)}")
    same = {k: getattr(v, "shape", None) for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    if native or openai or same:
        model.load_state_dict(state)
    else:  # an older or foreign form, which open_clip converts
        del state
        open_clip.load_checkpoint(model, str(path))
    if openai:
        _check_activation(source.model, True, f"{path} is an archive of OpenAI's, whose weights")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _reason(error: Exception) -> str:
    if "Error(s) in loading state_dict" in str(error):
        return "it is of another model: " + re.sub('", .*', '"', str(error).splitlines()[1].strip())
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors, which is not run"
    known = isinstance(error, (OSError, RuntimeError, ValueError, ImportError)) and str(error).strip()
    return _first_line(error) if known else f"the file is damaged ({type(error).__name__})"
