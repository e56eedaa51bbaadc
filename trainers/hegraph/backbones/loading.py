"""Finds a model among open_clip's models, its tags, files and bundles, builds it, and loads its weights.

What a downloaded or foreign file says shapes a model, and never chooses code: its keys reach transformers by a list.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip.tokenizer import HFTokenizer
from torchvision import transforms as T

from ..utils.devices import choose_device
from ..utils.errors import UserError, first_line, unknown
from ..utils.schema import check
from .clip import Backbone, Tokenizer
from .identity import (
    CONFIG_NAME,
    FOLDER,
    HUB,
    MINI_CONFIG,
    MINI_NAME,
    TOKENIZER_NAMES,
    USE_FOLDER,
    WEIGHTS_NAMES,
    backbone_identity,
    cached_file,
    describe_transform,
    fetch_file,
    find_bundle,
    is_bundle,
    require_hub,
    resolve_precision,
    resolve_pretrained,
    weights_file,
)
from .precision import to_bfloat16
from .weights import load_weights

logger = logging.getLogger(__name__)

Built = tuple[Any, T.Compose, Tokenizer]  # a model, its test transform and its tokenizer
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what open_clip's tags say of the test transform
VOCABULARY_NAMES = ("tokenizer.json", "spiece.model")  # a tokenizer has one of them
TOKENIZER_KEYS = ("clean", "language", "strip_sep_token")  # of `tokenizer_kwargs`: the others may ask for code


class Source(NamedTuple):
    """What to build and what to load into it."""

    name: str  # as the user named the model
    title: str  # with its weights, for records
    model: str  # what open_clip builds: one of its names, or "local-dir:FOLDER"
    weights: Path | None  # None leaves the random initialisation
    tag: str = ""  # open_clip's name of the weights; "" if they are a file of the user's


def load_backbone(name: str, pretrained: str = "", device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name: An open_clip model name, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER", or "hegraph-mini".
        pretrained: A weights file (`.safetensors`, a PyTorch state dict, or one of OpenAI's TorchScript archives) or,
            if there is no such file, an open_clip weights tag. "auto" takes the weights that come with the model, or
            else "openai". "hf-hub:" and "local-dir:" bring their weights along and take "" or "auto"; so does mini.
        device: Where it runs.
        precision: One of `identity.PRECISIONS`; "auto" takes "bf16" where the device multiplies that faster.

    Raises:
        UserError: On an unknown model, tag, device or precision, an activation that does not fit the weights, or
            weights that cannot be had, are damaged or of another model.
    """
    device = choose_device(device, "device")
    source = find_source(check(str, name, "name"), check(str, pretrained, "pretrained"))
    identity = backbone_identity(name, pretrained, precision, device)
    precision = resolve_precision(precision, name, device)
    model, preprocess, tokenizer = build(source, "fp16" if precision == "fp16" else "fp32")
    model = model.to(device).eval().requires_grad_(False)
    if precision == "bf16":
        to_bfloat16(model)
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    return Backbone(
        name=source.title,
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        fingerprint={**identity, "preprocess": describe_transform(preprocess)},
        precision=precision,
    )


def create_model(name: str, pretrained: str | None = None) -> Built:
    """An open_clip model in float32 on the CPU, its test transform and its tokenizer; arguments and errors as of
    `load_backbone`, but None leaves the model at its random initialisation.
    """
    return build(find_source(name, pretrained))


def find_source(name: str, pretrained: str | None) -> Source:
    """Finds a model and its weights, and downloads them if only the hub has them; otherwise as `create_model`."""
    if name and not is_bundle(name):
        if MINI_NAME not in open_clip.list_models():
            open_clip.add_model_config(MINI_CONFIG)
        if name not in open_clip.list_models():
            raise unknown("backbone", name, open_clip.list_models())
    if pretrained is None:
        return Source(name, name, name, None)
    pretrained = resolve_pretrained(name, pretrained)
    if is_bundle(name):
        bundle = find_bundle(name)
        return Source(name, bundle.title, f"{FOLDER}{bundle.config.parent}", bundle.weights)
    if file := weights_file(pretrained):
        return Source(name, f"{name}/{file.stem}", name, file)
    known = _tag_config(name, pretrained)
    if known:
        check_activation(name, bool(known.get("quick_gelu")), f"the weights {pretrained!r}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise unknown(f"weights of {name}: neither a file nor a tag:", pretrained, tags)
    repository, _, filename = known["hf_hub"].rpartition("/")
    filenames = (re.sub(r"\.\w+$", ".safetensors", filename), filename) if filename else WEIGHTS_NAMES
    what, use = f"{name} with the weights {pretrained!r}", "give its path in place of the tag"
    file = fetch_file(repository, filenames, what, " or ".join(filenames), use)
    return Source(name, f"{name}/{pretrained}", name, file, pretrained)


def hub_repository(name: str, pretrained: str) -> str | None:
    """The repository of the hub that holds weights, as `identity.resolve_pretrained` gives them; None if not known."""
    if name.startswith(HUB):
        return name[len(HUB) :]
    if is_bundle(name) or weights_file(pretrained):
        return None
    return _tag_config(name, pretrained).get("hf_hub", "").rpartition("/")[0] or None


def check_activation(model: str, quick: bool, what: str) -> None:
    """Refuses weights, called `what`, that were trained `quick`, with QuickGELU, where `Source.model` is without it, or
    the other way round: open_clip warns at most, and the features would be wrong. UserError names what fits.
    """
    plain = re.sub("-quickgelu$", "", model)
    right = f"{plain}-quickgelu" if quick else plain
    if bool(open_clip.get_model_config(model).get("quick_gelu")) != quick and right != model:
        use = f"{right!r}, not {model!r}" if right in open_clip.list_models() else 'a configuration with "quick_gelu"'
        raise UserError(f"{what} were trained with{'' if quick else 'out'} QuickGELU: use {use}")


def build(source: Source, precision: str = "fp32") -> Built:
    """Builds a model on the CPU, in "fp32" or "fp16", and loads its weights; returns and raises as `create_model`."""
    root = logging.getLogger()
    root.addFilter(_not_of_open_clip)  # open_clip warns that there are no weights: they are loaded below
    try:
        tokenizer = _tokenizer(source)
        model, _, preprocess = open_clip.create_model_and_transforms(
            source.model, load_weights=False, precision=precision, pretrained_text=False, **_preprocessing(source)
        )
        model.logit_scale.data = model.logit_scale.data.float()  # fp16 has three digits, and tau multiplies all logits
        if source.weights and load_weights(model, source.weights):
            check_activation(source.model, True, f"{source.weights} is an archive of OpenAI's, whose weights")
        return model, preprocess, tokenizer
    except UserError:
        raise
    except Exception as error:  # on a damaged file, torch and safetensors raise whatever its bytes lead to
        weights = f" with weights {str(source.weights)!r}" if source.weights else ""
        raise UserError(f"cannot load {source.name}{weights}: {_reason(error)}") from error
    finally:
        root.removeFilter(_not_of_open_clip)


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    """What open_clip says of a tag; {} if it does not know it for this model."""
    # Tags of models with QuickGELU are listed under the plain name as well, and some are listed there alone
    return open_clip.get_pretrained_cfg(re.sub("-quickgelu$", "", name), tag)


def _not_of_open_clip(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "open_clip"


def _preprocessing(source: Source) -> dict[str, Any]:
    """What open_clip's list of weights says of the test transform; {} for a bundle, whose own configuration says it. A
    file is taken to be preprocessed as the model's first tag is, with a warning if the tags of the model differ.
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
    options = text.get("tokenizer_kwargs") or {}
    if refused := sorted(options.keys() - set(TOKENIZER_KEYS)):
        file = f"{source.model[len(FOLDER) :]}/{CONFIG_NAME}"
        allowed = ", ".join(TOKENIZER_KEYS)
        raise UserError(f"{file}: text_cfg.tokenizer_kwargs holds {', '.join(refused)}, and may hold only {allowed}")
    if text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        if importlib.util.find_spec("transformers") is None:
            raise UserError(f"{source.name} needs the package transformers: pip install transformers sentencepiece")
        # transformers asks at the terminal whether the code of a repository may run, and refuses if there is no time to
        setattr(importlib.import_module("transformers.dynamic_module_utils"), "TIME_OUT_REMOTE_CODE", 0)  # noqa: B010
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(source.model)
    place, mode = _tokenizer_files(source, text["hf_tokenizer_name"]), text.get("tokenizer_mode")
    length = text.get("context_length", 77)
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, trust_remote_code=False, **options)


def _tokenizer_files(source: Source, repository: str) -> str:
    """The folder of a tokenizer's files or, where they have to be downloaded, its repository."""
    what, files = f"the tokenizer of {source.name}", " and ".join(TOKENIZER_NAMES[:2])
    if source.name.startswith(FOLDER):
        place = source.model[len(FOLDER) :]
        if not any((Path(place) / filename).is_file() for filename in VOCABULARY_NAMES):
            raise UserError(f"{what} is missing: put {files} into {place}")
        return place
    if cached_file(repository, TOKENIZER_NAMES[1:2]) and (vocabulary := cached_file(repository, VOCABULARY_NAMES)):
        return str(vocabulary.parent)  # given the folder and not the name, transformers asks the hub for nothing more
    use = f"put them with {CONFIG_NAME} and the weights into a folder here: {USE_FOLDER}"
    require_hub(repository, what, files, use)
    return repository


def _reason(error: Exception) -> str:
    """Why a model could not be loaded, in one line."""
    if "Error(s) in loading state_dict" in str(error):
        return "it is of another model: " + re.sub('", .*', '"', str(error).splitlines()[1].strip())
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors, which is not run"
    known = isinstance(error, (OSError, RuntimeError, ValueError, ImportError)) and str(error).strip()
    return first_line(error) if known else f"the file is damaged ({type(error).__name__})"
