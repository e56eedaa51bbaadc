"""Finds a model among open_clip's models, its tags, files and bundles, builds it, and loads its weights.

What a downloaded or foreign file says shapes a model, and never chooses code: its keys reach transformers by a list,
and of weights files (`.safetensors`, PyTorch state dicts and OpenAI's archives) the tensors alone are read. OpenAI's
archives are TorchScript files, whose code `torch.jit.load` would run.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import re
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torchvision import transforms as T

from ..utils.devices import choose_device
from ..utils.errors import UserError, first_line, unknown
from ..utils.reading import read_tensors, read_torch, reading, validate
from . import identity
from .clip import Backbone, Preprocess, Tokenizer
from .precision import to_bfloat16

logger = logging.getLogger(__name__)

Built = tuple[Any, T.Compose, Tokenizer]  # a model, its test transform and its tokenizer
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what open_clip's tags say of the test transform
VOCABULARY_NAMES = ("tokenizer.json", "spiece.model")  # a tokenizer has one of them
TOKENIZER_KEYS = ("clean", "language", "strip_sep_token")  # of `tokenizer_kwargs`: the others may ask for code
WHAT = "weights of a model"
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
# Integers beside the weights, by which OpenAI's archives are told from others
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
STORAGES = {"HalfStorage", "FloatStorage", "DoubleStorage", "IntStorage", "LongStorage", "BoolStorage"}


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
        name: An open_clip model name, "hf-hub:ORGANISATION/NAME", "local-dir:FOLDER", or "mini".
        pretrained: A weights file (`.safetensors`, a PyTorch state dict, or one of OpenAI's TorchScript archives) or,
            if there is no such file, an open_clip weights tag. "" and "auto" take the weights that come with the model,
            as with "hf-hub:", "local-dir:" and mini, or else "openai".
        device: Where it runs.
        precision: One of `identity.PRECISIONS`; "auto" takes "bf16" where the device multiplies that faster.

    Raises:
        UserError: On an unknown model, tag, device or precision, an activation that does not fit the weights, or
            weights that cannot be had, are damaged or of another model.
    """
    device = choose_device(device, "device")
    name = identity.canonical_name(validate(str, name, "name"))
    source = find_source(name, validate(str, pretrained, "pretrained"))
    known_by = identity.backbone_identity(name, pretrained, precision, device)
    precision = identity.resolve_precision(precision, name, device)
    model, preprocess, tokenizer = build(source, "fp16" if precision == "fp16" else "fp32")
    model = model.to(device).eval().requires_grad_(False)
    if precision == "bf16":
        to_bfloat16(model)
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    return Backbone(
        name=source.title,
        model=model,
        tokenizer=tokenizer,
        preprocess=Preprocess(preprocess.transforms),
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        fingerprint={**known_by, "preprocess": identity.describe_transform(preprocess)},
        precision=precision,
    )


def create_model(name: str, pretrained: str | None = None) -> Built:
    """An open_clip model in float32 on the CPU, its test transform and its tokenizer; arguments and errors as of
    `load_backbone`, but None leaves the model at its random initialisation.
    """
    return build(find_source(name, pretrained))


def find_source(name: str, pretrained: str | None) -> Source:
    """Finds a model and its weights, and downloads them if only the hub has them; otherwise as `create_model`."""
    if name and not identity.is_bundle(name):
        if identity.MINI_NAME not in open_clip.list_models():
            open_clip.add_model_config(identity.MINI_CONFIG)
        if name not in open_clip.list_models():
            raise unknown("backbone", name, open_clip.list_models())
    if pretrained is None:
        return Source(name, name, name, None)
    pretrained = identity.resolve_pretrained(name, pretrained)
    if identity.is_bundle(name):
        bundle = identity.find_bundle(name)
        return Source(name, bundle.title, f"{identity.FOLDER}{bundle.config.parent}", bundle.weights)
    if file := identity.weights_file(pretrained):
        return Source(name, f"{name}/{file.stem}", name, file)
    known = _tag_config(name, pretrained)
    if known:
        check_activation(name, bool(known.get("quick_gelu")), f"the weights {pretrained!r}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise unknown(f"weights of {name}: neither a file nor a tag:", pretrained, tags)
    repository, _, filename = known["hf_hub"].rpartition("/")
    filenames = (re.sub(r"\.\w+$", ".safetensors", filename), filename) if filename else identity.WEIGHTS_NAMES
    title, needed = f"{name}/{pretrained}", filename or filenames[0]
    file = identity.fetch_file(repository, filenames, title, needed, identity.USE_WEIGHTS)
    return Source(name, title, name, file, pretrained)


def hub_repository(name: str, pretrained: str) -> str | None:
    """The repository of the hub that holds weights, as `identity.resolve_pretrained` gives them; None if not known."""
    if name.startswith(identity.HUB):
        return name[len(identity.HUB) :]
    if identity.is_bundle(name) or identity.weights_file(pretrained):
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
    disabled = logging.root.manager.disable
    try:
        tokenizer, preprocessing = _tokenizer(source), _preprocessing(source)
        logging.disable(logging.WARNING)  # open_clip warns that there are no weights: they are loaded below
        model, _, preprocess = open_clip.create_model_and_transforms(
            source.model, load_weights=False, precision=precision, pretrained_text=False, **preprocessing
        )
        model.logit_scale.data = model.logit_scale.data.float()  # fp16 has three digits, and tau multiplies all logits
        if source.weights and load_weights(model, source.weights):
            check_activation(source.model, True, f"{source.weights} is an archive of OpenAI's, whose weights")
        return model, preprocess, tokenizer
    except UserError:
        raise
    except Exception as error:  # on files that do not fit, open_clip and torch raise whatever they lead to
        said = first_line(error)
        if "Error(s) in loading state_dict" in said:
            said = "it is of another model: " + re.sub('", .*', '"', str(error).splitlines()[1].strip())
        weights = f" with weights {str(source.weights)!r}" if source.weights else ""
        raise UserError(f"cannot load {source.name}{weights}: {said}") from error
    finally:
        logging.disable(disabled)


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    """What open_clip says of a tag; {} if it does not know it for this model."""
    # Tags of models with QuickGELU are listed under the plain name as well, and some are listed there alone
    return open_clip.get_pretrained_cfg(re.sub("-quickgelu$", "", name), tag)


def _preprocessing(source: Source) -> dict[str, Any]:
    """What open_clip's list of weights says of the test transform; {} for a bundle, whose own configuration says it. A
    file is taken to be preprocessed as the model's first tag is, with a warning if the tags of the model differ.
    """
    tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(source.model)
    configs = [open_clip.get_pretrained_cfg(source.model, tag) for tag in tags]
    options = [{f"image_{key}": config[key] for key in PREPROCESSING} for config in configs]
    if source.weights and any(other != options[0] for other in options):
        said = "images for %s are preprocessed as for %s/%s, but other weights of that model take them otherwise"
        logger.warning(said, source.weights, source.name, tags[0])
    return options[0] if options else {}


def _tokenizer(source: Source) -> Tokenizer:
    """The model's own tokenizer. That of SigLIP and some others is one of transformers, which is read from files."""
    text = open_clip.get_model_config(source.model)["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if refused := sorted(options.keys() - set(TOKENIZER_KEYS)):
        file = f"{source.model[len(identity.FOLDER) :]}/{identity.CONFIG_NAME}"
        allowed = ", ".join(TOKENIZER_KEYS)
        raise UserError(f"{file}: text_cfg.tokenizer_kwargs holds {', '.join(refused)}, and may hold only {allowed}")
    if text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        # transformers asks at the terminal whether the code of a repository may run, and refuses if there is no time to
        setattr(importlib.import_module("transformers.dynamic_module_utils"), "TIME_OUT_REMOTE_CODE", 0)  # noqa: B010
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(source.model)
    place, mode = _tokenizer_files(source, text["hf_tokenizer_name"]), text.get("tokenizer_mode")
    length = text.get("context_length", 77)
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, trust_remote_code=False, **options)


def _tokenizer_files(source: Source, repository: str) -> str:
    """The folder of a tokenizer's files or, where they have to be downloaded, its repository."""
    what, files = f"the tokenizer of {source.name}", "tokenizer.json and tokenizer_config.json"
    if source.name.startswith(identity.FOLDER):
        place = source.model[len(identity.FOLDER) :]
        if not any((Path(place) / filename).is_file() for filename in VOCABULARY_NAMES):
            raise UserError(f"{what} is missing: put {files} into {place}")
        return place
    vocabulary = identity.cached_file(repository, VOCABULARY_NAMES)
    if vocabulary and identity.cached_file(repository, ["tokenizer_config.json"]):
        return str(vocabulary.parent)  # given the folder and not the name, transformers asks the hub for nothing more
    use = f"put them beside {identity.CONFIG_NAME} and the weights, {identity.USE_FOLDER}"
    identity.require_hub(repository, what, files, use)
    return repository


# Weights files


def load_weights(model: Any, path: Path) -> bool:
    """Loads a weights file into a model, as open_clip does but never with position embeddings of another size.

    Returns whether the weights are those of one of OpenAI's archives. Raises as `read_weights`, and ValueError or
    RuntimeError if they are of another model.
    """
    state, own = read_weights(path), model.state_dict()
    openai = state.keys() >= OPENAI_MARKS
    state = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    for key in POSITIONS:  # open_clip would stretch them, and the features would be others
        expected = own.get(key, own.get(f"text.{key}"))
        if key in state and expected is not None and state[key].shape != expected.shape:
            raise ValueError(f"it is of another model: {key} is {list(state[key].shape)}, not {list(expected.shape)}")
    fits = {k: getattr(v, "shape", None) for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    if fits or not all(isinstance(value, Tensor) for value in state.values()):
        model.load_state_dict(state)  # of anything but tensors, its error names the weights that are missing
        return openai
    # The names are those of an older open_clip or of another library, which open_clip converts as it reads a file. That
    # is a `.safetensors` file, never the user's: of any other, it would run the code under some versions of torch
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: value.clone().contiguous() for name, value in state.items()}, file)  # no shared memory
        open_clip.load_checkpoint(model, str(file))
    return openai


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by their names; also those of a training checkpoint, under "state_dict" or with names that
    begin with "module.", and with OpenAI's marks those of an archive. UserError if it is damaged or holds none.
    """
    with reading(path, WHAT):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/constants.pkl") for name in names):  # of TorchScript
                    [data] = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
                    return _ArchiveReader(archive, data).load().tensors()
    content = read_tensors(path, WHAT)[0] if path.suffix == ".safetensors" else read_torch(path, WHAT)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


class _Module(dict):
    """Stands for every class in an archive: it holds the attributes, and none of the code."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.update(attributes)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors of this module and the modules inside it, by their names with `prefix` before them."""
        found: dict[str, Tensor] = {}
        for name, value in self.items():
            if isinstance(value, _Module):
                found.update(value.tensors(f"{prefix}{name}."))
            elif isinstance(value, Tensor) and name != "attn_mask":  # the mask is no weight, and in no state dict
                found[prefix + name] = value
            elif not prefix and name in OPENAI_MARKS:
                found[name] = torch.as_tensor(value)
        return found


class _ArchiveReader(pickle.Unpickler):
    """Unpickles modules, tensors and lists, and refuses everything else."""

    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(archive.open(data))
        self.archive, self.storages = archive, data[: -len(".pkl")]

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: storage.as_strided(shape, stride, offset)
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # called with a list and the type of its elements
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return getattr(torch, name.removesuffix("Storage").lower())  # torch.half, ...
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, storage: tuple) -> Tensor:
        _, dtype, key, _, _ = storage
        return torch.frombuffer(bytearray(self.archive.read(f"{self.storages}/{key}")), dtype=dtype)
