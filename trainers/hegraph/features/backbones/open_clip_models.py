"""Load models of open_clip, with weights from tags or files, and bundles.

Files never choose code that runs. Only listed keys of a tokenizer's configuration reach transformers, and only tensors
are read from weights files (`weights_files.py`).
"""

import importlib
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torchvision import transforms as T

from ...utils.errors import UserError, unknown
from ...utils.reading import read_json
from . import bundles, hub, identity
from .base import Backbone, Tokenizer
from .clip_cache import find_cached_by_clip
from .extras import require_extra
from .precision import to_bfloat16
from .random_weights import WithoutRandomWeights
from .transforms import Preprocess
from .weights_files import OPENAI_MARKS, describe_failure, read_weights

logger = logging.getLogger(__name__)

Built = tuple[Any, T.Compose, Tokenizer]  # a model, its test transform and its tokenizer
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # keys of open_clip's tags for the test transform
VOCABULARY_NAMES = ("tokenizer.json", "spiece.model")  # a tokenizer has one of them
TOKENIZER_KEYS = ("clean", "language", "strip_sep_token")  # allowed `tokenizer_kwargs`; other keys may load code
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")


class Source(NamedTuple):
    """Architecture and weights of a model.

    Attributes:
        name: Name that the user specified.
        title: Model and weights, for records.
        model: Name that open_clip builds, or "local-dir:FOLDER".
        weights: Weights file; None keeps the random initialisation.
        tag: Tag of the weights in open_clip; "" for a file of the user.
    """

    name: str
    title: str
    model: str
    weights: Path | None
    tag: str = ""


def load(name: str, pretrained: str, device: str, precision: str) -> Backbone:
    """Load a model of open_clip; arguments and errors as in `load_backbone`, with a resolved precision."""
    source = find_source(name, pretrained)
    fingerprint = identity.backbone_identity(name, pretrained, precision, device)
    model, preprocess, tokenizer = build(source, "fp16" if precision == "fp16" else "fp32")
    model = model.to(device).eval().requires_grad_(False)
    if precision == "bf16":
        to_bfloat16(model)
    fingerprint["preprocess"] = identity.describe_transform(preprocess)
    return as_backbone(source.title, (model, preprocess, tokenizer), fingerprint, precision)


def as_backbone(name: str, built: Built, fingerprint: dict[str, str], precision: str = "fp32") -> Backbone:
    """Return a built model as a backbone; attributes as in `Backbone`."""
    model, preprocess, tokenizer = built
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    size = model.visual.image_size
    return Backbone(
        name=name,
        model=model,
        tokenizer=tokenizer,
        preprocess=Preprocess(preprocess.transforms),
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        input_size=(size, size) if isinstance(size, int) else tuple(size),
        fingerprint=fingerprint,
        precision=precision,
    )


def create_model(name: str, pretrained: str | None = None) -> Built:
    """Create an open_clip model in float32 on the CPU, its test transform and its tokenizer.

    Arguments as in `loading.load_backbone`. None as `pretrained` keeps the random initialisation.

    Raises:
        UserError: If the model or the tag is unknown, the activation does not match the weights, or the weights cannot
            be downloaded, are damaged or belong to another model.
    """
    return build(find_source(name, pretrained))


def find_source(name: str, pretrained: str | None) -> Source:
    """Find a model and its weights, which are downloaded if necessary; arguments as in `create_model`.

    Raises:
        UserError: If the model or the tag is unknown, the activation does not match the weights, or the weights are
            missing or cannot be downloaded.
    """
    if name and not bundles.is_bundle(name):
        if identity.MINI_NAME not in open_clip.list_models():
            open_clip.add_model_config(identity.MINI_CONFIG)
        if name not in open_clip.list_models():
            ours = f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu"  # for a name of OpenAI's `clip`
            if ours in open_clip.list_models():
                raise UserError(f"unknown backbone {name!r}: OpenAI's model of this name is {ours!r} here")
            if "/" in name:
                prefixes = f"{', '.join(bundles.PREFIXES[:-1])} or {bundles.PREFIXES[-1]}"
                raise UserError(
                    f"unknown backbone {name!r}: expected {prefixes} before a repository or a folder, such as "
                    f"{bundles.TRANSFORMERS}{name}"
                )
            raise unknown("backbone", name, open_clip.list_models())
    if pretrained is None:
        return Source(name, name, name, None)
    pretrained = identity.resolve_pretrained(name, pretrained)
    if bundles.is_bundle(name):
        bundle = bundles.find_bundle(name)
        return Source(name, bundle.title, f"{bundles.FOLDER}{bundle.config.parent}", bundle.weights)
    if file := identity.weights_file(pretrained):
        return Source(name, f"{name}/{file.stem}", name, file)
    config = _tag_config(name, pretrained)
    if config:
        check_activation(name, bool(config.get("quick_gelu")), f"the weights {pretrained!r}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise unknown(f"weights of {name}: neither a file nor a tag:", pretrained, tags)
    repository, filenames = _hub_files(config)
    title = f"{name}/{pretrained}"
    file = hub.cached_file(repository, filenames) or find_cached_by_clip(config.get("url") or "")
    if file is None:
        needed = config["hf_hub"].rpartition("/")[2] or filenames[0]
        file = hub.fetch_file(repository, filenames, title, needed, bundles.USE_WEIGHTS)
    return Source(name, title, name, file, pretrained)


def _hub_files(config: dict[str, Any]) -> tuple[str, Sequence[str]]:
    """Repository of a tag on the Hub and the names of its weights file, the preferred one first."""
    repository, _, filename = config["hf_hub"].rpartition("/")
    if not filename:
        return repository, bundles.WEIGHTS_NAMES
    return repository, (re.sub(r"\.\w+$", ".safetensors", filename), filename)


def local_weights(name: str, pretrained: str) -> Path | None:
    """Weights file of a model on this machine, as in `loading.local_weights`."""
    pretrained = identity.resolve_pretrained(name, pretrained)
    if bundles.is_bundle(name):
        return bundles.local_bundle_weights(name)
    config = _tag_config(name, pretrained)
    file = identity.weights_file(pretrained)
    if file is not None or not config:
        return file
    return hub.cached_file(*_hub_files(config)) or find_cached_by_clip(config.get("url") or "")


def hub_repository(name: str, pretrained: str) -> str | None:
    """Repository of weights on the Hub, as in `loading.hub_repository`."""
    if bundles.is_bundle(name):
        return bundles.repository_of(name)
    if identity.weights_file(pretrained):
        return None
    return _tag_config(name, pretrained).get("hf_hub", "").rpartition("/")[0] or None


def uses_transformers(name: str) -> bool:
    """Whether the tokenizer or the text tower of a model is one of transformers, without loading the model.

    Raises:
        UserError: If the configuration of a bundle is missing, damaged or cannot be downloaded.
    """
    if bundles.is_bundle(name):
        path = bundles.find_open_clip_config(name)
        content = read_json(path)
        model = content.get("model_cfg") if isinstance(content, dict) else None
        if not isinstance(model, dict):
            raise UserError(f'expected a model of open_clip in {path}, with the key "model_cfg"')
    else:
        model = open_clip.get_model_config(name) or {}
    return has_parts_of_transformers(model.get("text_cfg") or {})


def has_parts_of_transformers(text: Mapping[str, Any]) -> bool:
    """Whether open_clip's configuration of a text tower names a tokenizer or a model of transformers."""
    return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))


def check_activation(model: str, quick: bool, what: str) -> None:
    """Reject weights whose activation is not the model's, which would give wrong features; open_clip at most warns.

    Args:
        model: Name of the model in open_clip, `Source.model`.
        quick: Whether the weights were trained with QuickGELU.
        what: Description of the weights for the message.

    Raises:
        UserError: If the activations differ; the message names the model that matches.
    """
    plain = re.sub("-quickgelu$", "", model)
    right = f"{plain}-quickgelu" if quick else plain
    if bool(open_clip.get_model_config(model).get("quick_gelu")) != quick and right != model:
        use = f"{right!r}, not {model!r}" if right in open_clip.list_models() else 'a configuration with "quick_gelu"'
        raise UserError(f"{what} were trained with{'' if quick else 'out'} QuickGELU: use {use}")


@contextmanager
def _silent_open_clip() -> Iterator[None]:
    """Context without the messages of open_clip, such as warnings of missing weights that are loaded afterwards.

    open_clip 3 logs to the root logger, and open_clip 4 to loggers of its own. The first message to the root logger
    would also give it a handler if it has none, and `logging.basicConfig` of the program would then have no effect.
    Messages of other packages and threads stay.
    """
    folder = str(Path(open_clip.__file__).parent)
    handler = logging.NullHandler()

    def is_foreign(record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(folder)

    logging.root.addHandler(handler)
    handlers = [*logging.root.handlers]
    for each in handlers:
        each.addFilter(is_foreign)
    try:
        yield
    finally:
        for each in handlers:
            each.removeFilter(is_foreign)
        logging.root.removeHandler(handler)


@_silent_open_clip()
def build(source: Source, precision: str = "fp32") -> Built:
    """Build a model on the CPU, in "fp32" or "fp16", and load its weights.

    Returns:
        The model, its test transform and its tokenizer.

    Raises:
        UserError: If the model cannot be built, or the weights are damaged or belong to another model.
    """
    try:
        tokenizer = _tokenizer(source)
        preprocessing = _preprocessing(source)
        with WithoutRandomWeights() if source.weights else nullcontext():  # all weights are loaded, or none
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.model, load_weights=False, precision=precision, pretrained_text=False, **preprocessing
            )
        model.logit_scale.data = model.logit_scale.data.float()  # fp16 is too coarse for the factor of all logits
        if source.weights and load_weights(model, source.weights):
            check_activation(source.model, True, f"{source.weights} is an archive of OpenAI, whose weights")
        return model, preprocess, tokenizer
    except UserError:
        raise
    except Exception as error:  # open_clip and torch raise any type on files of other models
        reason = describe_failure(error)
        weights = f" with weights {str(source.weights)!r}" if source.weights else ""
        raise UserError(f"cannot load {source.name}{weights}: {reason}") from error


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    """Configuration of a tag in open_clip; {} if the model has no such tag."""
    # All tags of models with QuickGELU are also listed under the plain name, some only there
    return open_clip.get_pretrained_cfg(re.sub("-quickgelu$", "", name), tag)


def _preprocessing(source: Source) -> dict[str, Any]:
    """Options of the test transform from open_clip's list of weights; {} for a bundle, which has its own.

    A file takes the options of the model's first tag, with a warning if the tags of the model differ.
    """
    tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(source.model)
    configs = [open_clip.get_pretrained_cfg(source.model, tag) for tag in tags]
    options = []
    for config in configs:
        options.append({f"image_{key}": config[key] for key in PREPROCESSING})
    if source.weights and any(other != options[0] for other in options):
        text = "images for %s are preprocessed as for %s/%s, but other weights of that model differ in preprocessing"
        logger.warning(text, source.weights, source.name, tags[0])
    return options[0] if options else {}


def _tokenizer(source: Source) -> Tokenizer:
    """Tokenizer of a model. SigLIP and some other models have one of transformers, which is read from files."""
    text = open_clip.get_model_config(source.model)["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if refused := sorted(options.keys() - set(TOKENIZER_KEYS)):
        file = f"{source.model[len(bundles.FOLDER) :]}/{bundles.CONFIG_NAME}"
        allowed = ", ".join(TOKENIZER_KEYS)
        raise UserError(f"{file}: text_cfg.tokenizer_kwargs has {', '.join(refused)}, and only {allowed} are allowed")
    if has_parts_of_transformers(text):
        require_extra("transformers", source.name)
        # transformers asks at the terminal before it runs code of a repository, and refuses at a timeout of 0
        setattr(importlib.import_module("transformers.dynamic_module_utils"), "TIME_OUT_REMOTE_CODE", 0)  # noqa: B010
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(source.model)
    place = _tokenizer_files(source, text["hf_tokenizer_name"])
    mode = text.get("tokenizer_mode")
    length = text.get("context_length", 77)
    return HFTokenizer(place, context_length=length, tokenizer_mode=mode, trust_remote_code=False, **options)


def _tokenizer_files(source: Source, repository: str) -> str:
    """Return the folder of a tokenizer's files, or its repository on the Hub if they have to be downloaded.

    Raises:
        UserError: If a local model lacks the files, or they are not cached and the Hub cannot be reached.
    """
    what = f"the tokenizer of {source.name}"
    files = "tokenizer.json and tokenizer_config.json"
    if source.name.startswith(bundles.FOLDER):
        place = source.model[len(bundles.FOLDER) :]
        if not any((Path(place) / filename).is_file() for filename in VOCABULARY_NAMES):
            raise UserError(f"{what} is missing: put {files} into {place}")
        return place
    vocabulary = hub.cached_file(repository, VOCABULARY_NAMES)
    if vocabulary and hub.cached_file(repository, ["tokenizer_config.json"]):
        return str(vocabulary.parent)  # with a folder, transformers sends no request to the Hub
    use = f"put them beside {bundles.CONFIG_NAME} and the weights, {bundles.USE_FOLDER}"
    hub.require_hub(repository, what, files, use)
    return repository


# Weights files


def load_weights(model: Any, path: Path) -> bool:
    """Load a weights file into a model as open_clip does, but reject position embeddings of another size.

    Returns:
        Whether the weights are from an archive of OpenAI.

    Raises:
        UserError: If the file is damaged or has no weights.
        ValueError, RuntimeError: If the weights belong to another model.
    """
    state = read_weights(path)
    own = model.state_dict()
    openai = state.keys() >= OPENAI_MARKS
    state = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    for key in POSITIONS:  # open_clip would resize them, which changes the features
        expected = own.get(key, own.get(f"text.{key}"))
        if key in state and expected is not None and state[key].shape != expected.shape:
            raise ValueError(f"it is of another model: {key} is {list(state[key].shape)}, not {list(expected.shape)}")
    fits = {k: getattr(v, "shape", None) for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    if fits or not all(isinstance(value, Tensor) for value in state.values()):
        if fits and path.suffix == ".safetensors":  # read into memory of torch, which the model can keep
            own_types = {name: value.to(own[name].dtype) for name, value in state.items()}
            model.load_state_dict(own_types, assign=True)
        else:
            model.load_state_dict(state)  # its error names missing weights, also if values are no tensors
        return openai
    # open_clip converts names of older versions and other libraries while it reads a file. It reads a temporary
    # `.safetensors` file, because some versions of torch run code in other files.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: value.clone().contiguous() for name, value in state.items()}, file)  # no shared memory
        open_clip.load_checkpoint(model, str(file))
    return openai
