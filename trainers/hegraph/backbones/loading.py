"""Builds a frozen CLIP with open_clip and loads its weights."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torchvision import transforms as T

from ..utils.errors import UserError, first_line
from .clip import Backbone, Tokenizer
from .hub import cached_file, require_hub
from .identity import (
    CONFIG_NAME,
    FOLDER,
    TOKENIZER_NAMES,
    USE_FOLDER,
    backbone_identity,
    describe_transform,
    effective_precision,
    resolve_pretrained,
)
from .sources import Source, check_activation, find_source
from .torchscript import OPENAI_MARKS
from .weights import read_weights

logger = logging.getLogger(__name__)

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what open_clip's tags say of the test transform
VOCABULARY_NAMES = ("tokenizer.json", "spiece.model")  # a tokenizer has one of them
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")


def load_backbone(name: str, pretrained: str = "", device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name: An open_clip model name, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER", or "hegraph-mini".
        pretrained: A weights file (`.safetensors`, a PyTorch state dict, or one of OpenAI's TorchScript archives) or,
            if there is no such file, an open_clip weights tag. "auto" takes the weights that come with the model, or
            else "openai". "hf-hub:" and "local-dir:" bring their weights along and take "" or "auto"; so does mini,
            for the weights that it ships with.
        device: Where it runs.
        precision: "fp32", "fp16" or "amp". Only CUDA computes in less than fp32: elsewhere it is fp32, which is said.

    Raises:
        UserError: On an unknown model or tag, an activation that does not fit the weights, or weights that
            cannot be had, are damaged or of another model.
    """
    identity = backbone_identity(name, pretrained, precision, device)
    precision = effective_precision(precision, device)
    source = find_source(name, resolve_pretrained(name, pretrained))
    model, preprocess, tokenizer = build(source, precision)
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    return Backbone(
        name=source.title,
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        preprocess=preprocess,
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        fingerprint={**identity, "preprocess": describe_transform(preprocess)},
        precision=precision,
    )


def create_model(name: str, pretrained: str | None = None) -> tuple[Any, T.Compose, Tokenizer]:
    """Builds an open_clip model in fp32 on the CPU.

    Args:
        name, pretrained: As of `load_backbone`; None leaves the model at its random initialisation.

    Returns:
        The model, its test transform and its tokenizer.

    Raises:
        UserError: As `load_backbone`.
    """
    return build(find_source(name, None if pretrained is None else resolve_pretrained(name, pretrained)), "fp32")


def build(source: Source, precision: str) -> tuple[Any, T.Compose, Tokenizer]:
    """Builds a model on the CPU and loads its weights; returns and raises as `create_model`."""
    root = logging.getLogger()
    try:
        tokenizer = _tokenizer(source)
        root.addFilter(_not_of_open_clip)  # open_clip warns that there are no weights: they are loaded below
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.model, load_weights=False, precision=precision, pretrained_text=False, **_preprocessing(source)
            )
        finally:
            root.removeFilter(_not_of_open_clip)
        model.logit_scale.data = model.logit_scale.data.float()  # fp16 has three digits, and tau multiplies all logits
        if source.weights:
            _load(model, source.weights, source.model)
        return model, preprocess, tokenizer
    except UserError:
        raise
    except Exception as error:  # on a damaged file, torch and safetensors raise whatever its bytes lead to
        weights = f" with weights {str(source.weights)!r}" if source.weights else ""
        raise UserError(f"cannot load {source.name}{weights}: {_reason(error)}") from error


def _not_of_open_clip(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "open_clip"


def _preprocessing(source: Source) -> dict[str, Any]:
    """What open_clip's list of weights says of the test transform; {} for a bundle, whose own configuration says it.

    A weights file has no entry in that list. It is taken to be preprocessed as the model's first tag is, with a warning
    if the tags of the model differ in that.
    """
    tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(source.model)
    options = [
        {f"image_{key}": open_clip.get_pretrained_cfg(source.model, tag)[key] for key in PREPROCESSING} for tag in tags
    ]
    if source.weights and any(other != options[0] for other in options):
        said = "images for %s are preprocessed as for %s/%s, but other weights of that model take them otherwise"
        logger.warning(said, source.weights, source.name, tags[0])
    return options[0] if options else {}


def _tokenizer(source: Source) -> Tokenizer:
    """The model's own tokenizer. That of SigLIP and some others is one of transformers, which is read from files."""
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
    elif cached_file(place, TOKENIZER_NAMES[1:2]) and (vocabulary := cached_file(place, VOCABULARY_NAMES)):
        place = str(vocabulary.parent)  # given the folder and not the name, transformers asks the hub for nothing more
    else:
        use = f"put them with {CONFIG_NAME} and the weights into a folder here: {USE_FOLDER}"
        require_hub(place, what, files, use)
    length, mode = text.get("context_length", 77), text.get("tokenizer_mode")
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, **text.get("tokenizer_kwargs", {}))


def _load(model: Any, path: Path, model_name: str) -> None:
    """Loads a weights file into a model, as open_clip does but never with position embeddings of another size."""
    state, own = read_weights(path), model.state_dict()
    openai = state.keys() >= OPENAI_MARKS
    if openai:
        state = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    for key in POSITIONS:  # open_clip would stretch them, and the features would be others
        expected = own.get(key, own.get(f"text.{key}"))
        if key in state and expected is not None and state[key].shape != expected.shape:
            raise ValueError(f"it is of another model: {key} is {list(state[key].shape)}, not {list(expected.shape)}")
    fits = {k: getattr(v, "shape", None) for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    if fits or not all(isinstance(value, Tensor) for value in state.values()):
        model.load_state_dict(state)  # of anything but tensors, its error names the weights that are missing
    else:
        _load_converted(model, state)
    if openai:
        check_activation(model_name, True, f"{path} is an archive of OpenAI's, whose weights")


def _load_converted(model: Any, state: dict[str, Tensor]) -> None:
    """Loads weights whose names are those of an older open_clip or of another library, which open_clip converts.

    open_clip does so only while it reads a file itself. It is given a `.safetensors` file, never the user's: of any
    other file it would run the code, if torch is older than 2.6 and the file such that reading tensors alone fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: value.clone().contiguous() for name, value in state.items()}, file)  # no shared memory
        open_clip.load_checkpoint(model, str(file))


def _reason(error: Exception) -> str:
    """Why a model could not be loaded, in one line."""
    if "Error(s) in loading state_dict" in str(error):
        return "it is of another model: " + re.sub('", .*', '"', str(error).splitlines()[1].strip())
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors, which is not run"
    known = isinstance(error, (OSError, RuntimeError, ValueError, ImportError)) and str(error).strip()
    return first_line(error) if known else f"the file is damaged ({type(error).__name__})"
