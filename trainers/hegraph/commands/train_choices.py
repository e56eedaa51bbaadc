"""What the command `train` chooses for its user: data set, backbone and output folder, each with a sentence."""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from ..features.backbones.identity import DEFAULT_BACKBONE, MINI_NAME, canonical_name, method_config
from ..utils.command_line import command
from ..utils.errors import UserError, unknown
from ..utils.files import absolute

ROOT, BACKBONE, OUTPUT = "DATASET.ROOT", "MODEL.BACKBONE.NAME", "OUTPUT_DIR"
GROUP_PATTERN = "DATASET.GROUP_PATTERN"
OWN_CONFIGS = ("folder", "multilabel")  # configurations of own images
BANK_SUFFIX = ".safetensors"
LISTS = ("labels", "metadata")  # stems of tables that are named after their folder
MAX_NAMES = 5  # classes listed in a sentence


class ChosenData(NamedTuple):
    """Data set of a training.

    Attributes:
        name: Name of the output folder.
        config: Configuration of the data set; "" for a feature bank.
        root: Folder, file or address of own images; "" for other data sets.
        sentence: Description for the user.
    """

    name: str
    config: str
    root: str
    sentence: str


def fill_in(args: argparse.Namespace) -> list[str]:
    """Choose what the arguments of `train` leave open, and return a sentence on each choice.

    Raises:
        UserError: If DATA is unknown or contains no images in a known layout, or another argument names images too.
    """
    sentences = []
    values = vars(args)
    name = args.dataset_config_file and Path(args.dataset_config_file).stem
    data = args.data or ("" if has_data(args) else values[ROOT])
    if not data and not has_data(args):
        raise missing_data([], "")
    if data:
        if args.dataset_config_file or args.features:
            other = "--features" if args.features else "--dataset-config-file"
            raise UserError(f"{data} and {other} both name the images; leave one of them out")
        pattern = dict(zip(args.opts[::2], args.opts[1::2])).get(GROUP_PATTERN, "")
        chosen = choose_data(data, "" if data == values[ROOT] else values[ROOT], pattern)
        name = chosen.name
        args.dataset_config_file = chosen.config
        args.features = None if chosen.config else Path(data)
        values[ROOT] = chosen.root or values[ROOT]
        sentences.append(chosen.sentence)
    if args.features:
        name = args.features.stem
    else:
        sentences += choose_backbone(args)
    if name and not names_output(args):
        values[OUTPUT] = str(Path("output", f"{name}-test" if args.eval_only else name))
    if values[OUTPUT]:
        sentences.append(f"The results go to the folder {values[OUTPUT]}.")
    return sentences


def names_output(args: argparse.Namespace) -> bool:
    """Whether flags or keys name the output folder."""
    return bool(vars(args)[OUTPUT]) or OUTPUT in args.opts[::2]


def has_data(args: argparse.Namespace) -> bool:
    """Whether flags, keys or the configuration of the method name a data set or a feature bank."""
    if args.dataset_config_file or args.features or "DATASET.NAME" in args.opts[::2]:
        return True
    from ..config_files import load_cfg  # slow to import

    return bool(args.config_file and load_cfg("", args.config_file).data.name)


def choose_data(data: str, root: str | None, group_pattern: str = "") -> ChosenData:
    """Find out whether DATA is a feature bank, own images, or the name of a data set, in this order.

    Args:
        data: Path, address or name.
        root: Folder of the data sets; with it, DATA is a name.
        group_pattern: DATASET.GROUP_PATTERN of own images.

    Raises:
        UserError: If DATA is none of them, own images cannot be read, or a data set needs its folder.
    """
    is_address = "://" in data or data.startswith("hf:") or ".tar" in data
    if not root and data.endswith(BANK_SUFFIX) and os.path.isfile(absolute(data)):
        return ChosenData("", "", "", f"{data} is a feature bank: its features are used, and no image is encoded.")
    if not root and (is_address or os.path.exists(absolute(data))):
        return own_images(data, group_pattern)
    from ..config_files import DATA_SET, FOLDERS  # slow to import
    from ..datasets.registry import canonical_name, find_entry

    shipped = sorted(file.stem for file in FOLDERS[DATA_SET].glob("*.yaml") if file.stem not in OWN_CONFIGS)
    names = {canonical_name(stem): stem for stem in shipped}
    entry = find_entry(data)
    if entry is None or entry.name not in names:
        raise unknown("data set", data, shipped) if root else no_such_data(data, shipped)
    config = names[entry.name]
    if entry.folder and not root:
        download = command(f"datasets download {config} --root data")
        problem = f"{data} is a published data set: add --root DIR, the folder that contains {entry.folder}"
        raise UserError(f"{problem}; to download it to data: {download}")
    place = f"in {root}" if entry.folder else "that comes with this program"
    return ChosenData(config, config, "", f"{entry.name} is a data set {place}.")


def no_such_data(data: str, names: Sequence[str]) -> UserError:
    """Return the error for DATA that is neither a file nor a folder nor one of the names of data sets."""
    near = get_close_matches(data.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    expected = "expected a folder with a folder of images for each class, a CSV file, or a data set such as digits"
    return UserError(f"there is no file, folder or data set {data!r}{hint}; {expected}", "unknown")


def own_images(data: str, group_pattern: str) -> ChosenData:
    """Read the list of own images, without opening an image, and describe it."""
    from ..datasets.base import abbreviate
    from ..datasets.loading import load_own_images

    dataset = load_own_images(data, group_pattern=group_pattern)
    classes = f"{len(dataset.classnames)} classes ({abbreviate(dataset.classnames, MAX_NAMES)})"
    counts = [f"{len(dataset.train)} for training"]
    if dataset.val and not dataset.val_is_test:
        counts.append(f"{len(dataset.val)} for validation (val)")
    if dataset.test:
        counts.append(f"{len(dataset.test)} for the test")
    listed = f"{', '.join(counts[:-1])} and {counts[-1]}" if len(counts) > 1 else counts[0]
    config = OWN_CONFIGS[dataset.multilabel]
    sentence = f"{data} is {kind_of(data)} with images of {classes}: {listed}."
    return ChosenData(output_name(data), config, data, sentence)


def kind_of(data: str) -> str:
    """Kind of own images, for a sentence."""
    path = absolute(data)
    if os.path.isdir(path):
        return "a folder"
    if os.path.isfile(path):
        return {".csv": "a CSV file", ".parquet": "a Parquet file"}.get(path.suffix.lower(), "a file")
    return "a data set of Hugging Face" if data.startswith("hf:") else "a list of tar shards"


def output_name(data: str) -> str:
    """Name of the output folder for own images: the name of the folder or file, without other characters."""
    path = absolute(data.partition("#")[0])
    if os.path.isfile(path):
        name = path.parent.name if path.stem.lower() in LISTS else path.stem
    else:
        name = re.split(r"[:/\\]", data.partition("#")[0].rstrip("/\\"))[-1] if not os.path.isdir(path) else path.name
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "images"


def choose_backbone(args: argparse.Namespace) -> list[str]:
    """Choose the configuration of the method for the backbone, unless `--config-file` names it.

    A configuration may be named as a backbone, such as vit_b32, because it contains the whole name.
    """
    from ..config_files import FOLDERS, METHOD  # slow to import

    values = vars(args)
    name = values[BACKBONE] or ""
    if args.config_file:
        return []
    if canonical_name(name) == MINI_NAME:
        values[BACKBONE] = None
        args.config_file = method_config(name)
        return ["The image encoder is mini, which needs no download and knows only digits and letters."]
    if (FOLDERS[METHOD] / f"{name}.yaml").is_file():
        values[BACKBONE] = None
        args.config_file = name
    else:
        args.config_file = method_config(name)
    if name:
        return [f"The image encoder is {name}."]
    if BACKBONE in args.opts[::2]:
        return []
    another = "--backbone NAME chooses another one, and --backbone mini a small one for digits and letters"
    return [f"The image encoder is CLIP's {DEFAULT_BACKBONE.model}, the default; {another}."]


def missing_data(arguments: Sequence[str], root: str) -> UserError:
    """Return the error for flags that name no data set, with the command to type.

    Args:
        arguments: Arguments of the command line.
        root: Value of `--root`.
    """
    if not root:
        return UserError(f"no data: name a folder of images or a data set, as in: {command('train photos')}")
    words = iter(arguments)
    others = []
    for word in words:
        if word == "--root":
            next(words, "")
        elif not word.startswith("--root="):
            others.append(word)
    line = command(f"train {shlex.join([root, *others])}")
    return UserError(f"no data set is named; to train on your own images in {root}: {line}")
