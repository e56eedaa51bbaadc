"""Load models in the format of transformers (Hugging Face), with or without text.

A name is "transformers:ORGANISATION/NAME", a repository of the Hub, or "transformers:FOLDER". Files never choose code
that runs: the class of the model is one of `CLASSES` and the class of its image processor one of `PROCESSORS`, weights
are read from `.safetensors` files only, and the code of a repository is never loaded.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T
from transformers.utils import logging as transformers_logging

from ...utils.errors import UserError, first_line
from ...utils.reading import read_json
from . import bundles, identity
from .base import DTYPES, Backbone, Tokenizer, check_encodes
from .transformers_classes import CLASSES, ModelClass
from .transforms import FloorCenterCrop, Preprocess, channels

logger = logging.getLogger(__name__)

PROCESSORS = (  # each resizes, crops, rescales and normalises, as `transform_steps` does
    "BitImageProcessor", "ChineseCLIPImageProcessor", "CLIPImageProcessor", "DINOv3ViTImageProcessor",
    "SiglipImageProcessor", "ViTImageProcessor",
)  # fmt: skip
RESCALING = 1 / 255


class TransformersEncoder(nn.Module):
    """Model of transformers as an `Encoder`.

    Args:
        network: The model.
        model_class: Its class.
        padding: Token that pads sentences and is masked; None for a model that reads the padding.
    """

    logit_scale: Tensor

    def __init__(self, network: Any, model_class: ModelClass, padding: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.model_class = model_class
        self.padding = padding
        if model_class.has_text:
            # A copy in float32, because half precision is too coarse for the factor of all logits
            self.register_buffer("logit_scale", network.logit_scale.detach().float().clone().squeeze())

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode normalised images `[B, 3, H, W]` as features `[B, d]` of any norm."""
        if self.model_class.has_text:
            return pooled(self.network.get_image_features(pixel_values=image))
        outputs = self.network(pixel_values=image)
        return pooled(outputs) if self.model_class.pooled else outputs.last_hidden_state[:, 0]

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode tokens `[S, context length]` as features `[S, d]` of any norm."""
        mask = None if self.padding is None else (text != self.padding).long()
        return pooled(self.network.get_text_features(input_ids=text, attention_mask=mask))


def pooled(outputs: Any) -> Tensor:
    """Features in the outputs of a model; older versions of transformers return them alone."""
    return outputs if isinstance(outputs, Tensor) else outputs.pooler_output


def load(name: str, pretrained: str, device: str, precision: str) -> Backbone:
    """Load a model of transformers; arguments and errors as in `load_backbone`, with a resolved precision."""
    identity.resolve_pretrained(name, pretrained)
    bundle = bundles.find_bundle(name)
    config = read_json(bundle.config)
    model_class = class_of(config, name)
    folder = bundle.config.parent
    fingerprint = identity.backbone_identity(name, pretrained, precision, device)
    with _silent_transformers():
        steps, size = transform_steps(read_processor(folder, name), name)
        network = build(folder, model_class, name)
        tokenizer, padding = None, None
        if model_class.has_text:
            tokenizer, padding = read_tokenizer(folder, network.config, model_class, name)
    encoder = TransformersEncoder(network, model_class, padding).to(device).eval().requires_grad_(False)
    network.to(DTYPES.get(precision, torch.float32))
    if model_class in (CLASSES["dinov2"], CLASSES["dinov2_with_registers"]):
        fix_positions(network, size)
    fingerprint["preprocess"] = identity.describe_transform(T.Compose(steps))
    backbone = Backbone(
        name=bundle.title,
        model=encoder,
        tokenizer=tokenizer,
        preprocess=Preprocess(steps),
        mean=tuple(steps[-1].mean),
        std=tuple(steps[-1].std),
        input_size=size,
        fingerprint=fingerprint,
        precision=precision,
    )
    check_encodes(backbone, name)
    return backbone


def class_of(config: Any, name: str) -> ModelClass:
    """Class of a model, from its configuration.

    Raises:
        UserError: If the class is not one of `CLASSES`, or the weights are quantised or in a file of another name.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CLASSES:
        fixed = "; NaFlex models have no fixed resolution" if kind == "siglip2" else ""
        listed = ", ".join(f"{model_type} ({listed.name})" for model_type, listed in CLASSES.items())
        raise UserError(f"{name} has the model_type {kind!r}{fixed}; expected one of {listed}")
    if config.get("quantization_config"):
        raise UserError(f"{name} has quantised weights; expected weights in float32, bfloat16 or float16")
    if config.get("transformers_weights"):  # transformers would read them, and the identity is that of others
        file = config["transformers_weights"]
        raise UserError(f"{name} names its weights {file}; rename the file to {bundles.SAFETENSORS} and remove the key")
    return CLASSES[kind]


def build(folder: Path, model_class: ModelClass, name: str) -> Any:
    """Build a model in float32 on the CPU, and load its weights.

    Raises:
        UserError: If weights are missing, damaged or belong to another model.
    """
    kind = getattr(transformers, model_class.name)
    options = {} if model_class.pooled else {"add_pooling_layer": False}
    # Without this argument, the configuration of the model may name a repository of compiled attention
    attention = "sdpa" if kind._supports_sdpa else "eager"
    try:
        network, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, because the message of transformers names no weights
            **options,
        )
    except Exception as error:  # transformers and torch raise any type on files of other models
        raise UserError(f"cannot load {name}: {first_line(error)}") from error
    if mismatched := sorted(report["mismatched_keys"]):
        key, found, expected = mismatched[0]
        shapes = f"{key} is {list(found)}, and {bundles.JSON_CONFIG_NAME} expects {list(expected)}"
        raise UserError(f"the weights of {name} are of another model: {shapes}")
    if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random
        raise UserError(f"the weights of {name} lack {missing[0]} and {len(missing) - 1} others of {model_class.name}")
    return network


def fix_positions(network: Any, size: tuple[int, int]) -> None:
    """Resize the position embeddings of a DINOv2 once, for images of one size `(H, W)`.

    The model would resize them for each batch, which has no form in ONNX if it has registers.
    """
    embeddings = network.embeddings
    height, width = size
    patch_height, patch_width = embeddings.patch_embeddings.patch_size
    patches = (height // patch_height) * (width // patch_width)
    tokens = torch.empty(1, 1 + patches, network.config.hidden_size, device=network.device)
    positions = embeddings.interpolate_pos_encoding(tokens, height, width)
    embeddings.interpolate_pos_encoding = lambda *_: positions


# --- images


def read_processor(folder: Path, name: str) -> Any:
    """Image processor of a model.

    Raises:
        UserError: If its class is not one of `PROCESSORS`, or its configuration is damaged.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises any type on files of other models
        raise UserError(f"cannot read the image processor of {name}: {first_line(error)}") from error
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if kind not in PROCESSORS:
        raise UserError(f"{name} has the image processor {kind}; expected one of {', '.join(PROCESSORS)}")
    return processor


def transform_steps(processor: Any, name: str) -> tuple[list[Any], tuple[int, int]]:
    """Steps of the test transform that does the same as an image processor, and the size `(H, W)` of its results.

    Raises:
        UserError: If the processor does something else, or images of different sizes would keep them.
    """
    steps: list[Any] = []
    size = None
    if processor.do_resize:
        sides = dict(processor.size)
        edges = {key for key, value in sides.items() if value is not None}
        mode = interpolation_of(processor, name)
        if edges == {"height", "width"}:
            size = (sides["height"], sides["width"])
            steps.append(T.Resize(size, mode))
        elif edges == {"shortest_edge"}:
            steps.append(T.Resize(sides["shortest_edge"], mode))
        else:
            raise UserError(f"the image processor of {name} resizes to {sides}; expected one edge, or two")
    if getattr(processor, "do_center_crop", False):
        size = (processor.crop_size["height"], processor.crop_size["width"])
        steps.append(FloorCenterCrop(size))
    if size is None:
        raise UserError(f"the image processor of {name} gives images of different sizes; expected one size")
    if not processor.do_rescale or abs(processor.rescale_factor - RESCALING) > 1e-6:
        raise UserError(f"the image processor of {name} does not rescale bytes by 1/255, which is expected")
    padded = getattr(processor, "pad_size", None) if getattr(processor, "do_pad", False) else None
    if padded and (padded["height"], padded["width"]) != size:
        raise UserError(f"the image processor of {name} pads images to {dict(padded)}, which is not supported")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean = tuple(channels(mean, f"image_mean of {name}"))
    std = tuple(channels(std, f"image_std of {name}"))
    return [*steps, T.ToTensor(), T.Normalize(mean, std)], size


def interpolation_of(processor: Any, name: str) -> T.InterpolationMode:
    """Interpolation of an image processor; UserError if it is unknown."""
    try:
        return T.InterpolationMode[Image.Resampling(processor.resample).name]
    except ValueError as error:
        listed = ", ".join(f"{mode.value} ({mode.name.lower()})" for mode in Image.Resampling)
        raise UserError(f"resample of {name}: expected one of {listed}, got {processor.resample!r}") from error


# --- text


class SentenceTokenizer:
    """Tokenizer of a model, from S sentences to tokens `[S, length]`.

    Args:
        tokenizer: Tokenizer of transformers.
        length: Context length; longer sentences are cut.
        model_class: Class of the model, for the padding and the case of letters.
    """

    def __init__(self, tokenizer: Any, length: int, model_class: ModelClass) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.model_class = model_class

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Tokens `[S, length]`; the length of the longest sentence with padding "longest"."""
        if self.model_class.lower_case:
            sentences = [sentence.lower() for sentence in sentences]
        padding = self.model_class.padding
        encoded = self.tokenizer(
            list(sentences), padding=padding, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return encoded["input_ids"]


def read_tokenizer(folder: Path, config: Any, model_class: ModelClass, name: str) -> tuple[Tokenizer, int | None]:
    """Tokenizer of a model, and the token that pads sentences and is masked, if any.

    Raises:
        UserError: If its files are missing or damaged.
    """
    if not any((folder / filename).is_file() for filename in bundles.VOCABULARY_NAMES):
        raise UserError(
            f"the tokenizer of {name} is missing: put tokenizer.json and tokenizer_config.json into {folder}"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises any type on files of other models
        raise UserError(f"cannot read the tokenizer of {name}: {first_line(error)}") from error
    positions = config.text_config.max_position_embeddings
    if model_class.padding == "max_length":
        return SentenceTokenizer(tokenizer, positions, model_class), None
    padding = tokenizer.pad_token_id
    if model_class is CLASSES["altclip"]:
        positions -= padding + 1  # XLM-RoBERTa's positions begin after the number of the padding
    length = min(tokenizer.model_max_length, positions)
    return SentenceTokenizer(tokenizer, length, model_class), padding


# --- files


def local_weights(name: str, pretrained: str) -> Path | None:
    """Weights file of a model on this machine, as in `loading.local_weights`."""
    return bundles.local_bundle_weights(name)


def hub_repository(name: str, pretrained: str) -> str | None:
    """Repository of weights on the Hub, as in `loading.hub_repository`."""
    return bundles.repository_of(name)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Context without progress bars and warnings of transformers."""
    verbosity = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()
