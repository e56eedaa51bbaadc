"""The command `backbones`, which compares backbones on labelled images, or lists published ones."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..features.backbones.arguments import add_device_arguments
from ..features.backbones.identity import MINI_ALIAS, MINI_NAME, default_weights, method_config
from ..features.backbones.known_models import HEADER as LIST_HEADER, NOT_TRIED, known_models
from ..models.predict.files import aligned_lines
from ..utils.command_line import Parser, command, echo, run_cli
from ..utils.option import NODE

if TYPE_CHECKING:
    from ..config import Config
    from ..estimator.model_selection.backbones import BackboneResult, Encoded
    from ..estimator.model_selection.candidates import Candidate

HEADER = ("backbone", "zero-shot", "held-out", "95 % interval", "speed", "weights", "parameters", "licence")
# Configurations of your own images
OWN_IMAGES = "folder"
OWN_IMAGES_MULTILABEL = "multilabel"
EPILOG = """\
Every image is classified by the training-free variant that was fitted without it: to all other images or, with groups
or up to 4 images per class, to the other folds of four. This needs no validation images, and test images are not used.
The recommended backbone is the fastest one whose accuracy is not significantly below the best one (95 % paired interval
over images). Near-duplicate images make all accuracies too high, unless DATASET.GROUP_PATTERN names their groups.
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    summary = "Compare backbones on held-out labelled images, and recommend one; or list published ones."
    parser = Parser("backbones", summary, epilog=EPILOG)
    parser.examples = ("--root photos --candidates mini ViT-B-32-quickgelu:openai", "--list pathology")
    parser.failure = "a backbone could not be compared"
    add = parser.add_argument
    listing = "print a table of published backbones with all WORDs in field, name, library or source, and stop"
    add("--list", nargs="*", metavar="WORD", dest="words", help=listing)
    add("--root", default="", metavar="DIR", help="folder of the data sets, or your own folder or CSV file")
    add("--dataset-config-file", default=OWN_IMAGES, metavar="NAME", help="YAML file or name of the data set")
    add("--shots", type=int, metavar="N", help="number of labelled images per class; -1: all (default: 16)")
    add("--seed", type=int, metavar="N", help="random seed of the few-shot sample (default: 1)")
    add("--candidates", nargs="+", default=(), metavar="NAME:TAG", help="backbones to compare (default: a list of six)")
    add("--max-size", type=size, metavar="SIZE", help="size of the largest weights to compare, such as 500MB")
    add("--offline", action="store_true", help="skip backbones whose weights are not on this machine")
    add("opts", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    add_device_arguments(parser, f"the value of {NODE}.PREC")
    args = parser.parse_args(arguments)
    if args.words is not None:
        return args
    from ..config import split_at_key  # slow to import

    args.candidates, pairs = split_at_key(args.candidates)
    if pairs and not args.candidates:
        parser.error(f"argument --candidates: expected at least one backbone before the key {pairs[0]}")
    args.opts[:0] = pairs
    return args


def list_command(words: Sequence[str]) -> int:
    """Print the published backbones that contain some words; returns the exit code."""
    for line in aligned_lines(LIST_HEADER, [known_models(words)]):
        echo(line)
    how = "--backbone NAME, and MODEL.BACKBONE.PRETRAINED WEIGHTS unless they are included"
    echo(f"\n{NOT_TRIED}\nUse one with {how}; docs/reference/backbones.md explains the names.\n")
    return 0


def size(text: str) -> float:
    """Read a size such as "500MB" or "1.5 GB", in megabytes, as an argument type."""
    from pydantic import ByteSize, TypeAdapter  # slow to import

    try:
        megabytes = TypeAdapter(ByteSize).validate_python(text) / 1e6
    except ValueError:
        megabytes = 0.0
    if megabytes < 1 or not text.strip()[-1].isalpha():  # pydantic reads a number without a unit as bytes
        expected = "expected a number with a unit, 1 MB or more, such as 500MB"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r:.80}")
    return megabytes


def compare_command(args: argparse.Namespace) -> int:
    """Print the comparison; returns the exit code, 1 if a backbone could not be compared."""
    from ..config_files import load_cfg
    from ..datasets.base import check_classes
    from ..estimator.model_selection.backbones import (
        TIMED_IMAGES,
        Encoded,
        advice,
        compare_candidates,
        reason_against,
        recommend,
    )
    from ..estimator.model_selection.candidates import read_candidates
    from ..experiments.image_task import ImageTask  # torch is slow to import
    from ..experiments.opening import load_dataset
    from ..utils.devices import choose_device

    def configure(candidate: Candidate) -> Config:
        return load_cfg(args.dataset_config_file, method_config(candidate.name), keys_of(args, candidate), args.opts)

    device = choose_device(args.device, "--device")
    candidates = read_candidates(args.candidates, args.max_size)
    cfg = configure(candidates[0])  # the data set is the same for all candidates
    seed = max(cfg.run.seed, 0)
    dataset = replace(load_dataset(cfg, seed), val=[], test=[])
    check_classes(len({label for item in dataset.train for label in item.labels}))
    if dataset.multilabel and args.dataset_config_file == OWN_IMAGES:
        args.dataset_config_file = OWN_IMAGES_MULTILABEL  # for the training command

    def encode(candidate: Candidate) -> Encoded:
        task = ImageTask(dataset, configure(candidate), seed, device)
        bank = task.bank()
        sample = [dataset.open(item.path) for item in dataset.train[:TIMED_IMAGES]]
        return Encoded(task.backbone, bank.cache_keys(), bank.train_labels, bank.known_text, sample, bank.train_groups)

    results = compare_candidates(candidates, encode, args.offline)
    for line in table_lines(results):
        echo(line)
    if sentence := single_images_sentence(results):
        echo(f"\n{sentence}\n")
    recommended, difference = recommend(results)
    training = training_command(args, recommended.candidate)
    doubt = reason_against(results)
    if doubt:
        echo(f"\nNo backbone is recommended: {doubt}. To train with {recommended.candidate}:\n    {training}\n")
    else:
        echo(f"\n{advice(results, recommended, difference)}. Train with\n    {training}\n")
    return int(any(result.error for result in results))


def single_images_sentence(results: Sequence[BackboneResult]) -> str:
    """Sentence about classes with one image, which no other image of the class helps to classify; "" without them."""
    usable = [result for result in results if not result.error]
    count = max((result.single_image_classes for result in usable), default=0)
    if not count:
        return ""
    with_text = [result for result in usable if result.has_text]
    by_text = "by the text of its class"
    without = "without any other image or text of its class"
    how = f"{by_text} or, with a backbone without text, {without}"
    if len(with_text) in (0, len(usable)):
        how = by_text if with_text else without
    return f"{count} of the classes have one image, which is classified {how}."


def keys_of(args: argparse.Namespace, candidate: Candidate) -> dict[str, Any]:
    """Configuration keys of a comparison with a candidate."""
    keys = {
        "DATASET.ROOT": args.root,
        "DATASET.NUM_SHOTS": args.shots,
        "SEED": args.seed,
        f"{NODE}.PREC": args.precision,
    }
    backbone = {"MODEL.BACKBONE.NAME": candidate.name, "MODEL.BACKBONE.PRETRAINED": candidate.tag}
    return {key: value for key, value in keys.items() if value not in (None, "")} | backbone


def training_command(args: argparse.Namespace, candidate: Candidate) -> str:
    """Command line that trains with a candidate on the same images."""
    is_mini = candidate.name == MINI_NAME
    is_own = args.dataset_config_file in (OWN_IMAGES, OWN_IMAGES_MULTILABEL)
    is_file = os.path.isfile(args.dataset_config_file)
    words = ["train"]
    if is_own:
        words.append(args.root)
    elif not is_file:
        words.append(args.dataset_config_file)
    flags = {
        "--dataset-config-file": args.dataset_config_file if is_file else "",
        "--root": "" if is_own else args.root,
        "--shots": args.shots,
        "--seed": args.seed,
        "--backbone": MINI_ALIAS if is_mini else candidate.name,
        "--output-dir": f"output/{candidate.name.rpartition('/')[2]}",
    }
    for flag, value in flags.items():
        if value not in (None, ""):
            words += [flag, str(value)]
    if candidate.tag != default_weights(candidate.name):
        words += ["MODEL.BACKBONE.PRETRAINED", candidate.tag]
    words += args.opts
    if args.precision:
        words += [f"{NODE}.PREC", args.precision]
    return command(shlex.join(words))


def table_lines(results: Sequence[BackboneResult]) -> Iterator[str]:
    """Lines of an aligned table, the best backbone first; a row of a failed candidate has its error."""
    rows = []
    for result in results:
        if result.error:
            rows.append([str(result.candidate), *[""] * (len(HEADER) - 2), f"error: {result.error}"])
            continue
        low, high = result.interval()
        megabytes = "" if result.megabytes is None else f"{result.megabytes:.0f} MB"
        zero_shot = f"{result.zero_shot:.2f}" if result.has_text else ""
        rows.append([
            str(result.candidate), zero_shot, f"{result.accuracy:.2f}", f"{low:.1f} to {high:.1f}",
            f"{result.images_per_second:.1f} images/s", megabytes, f"{result.parameters / 1e6:.1f} M",
            result.candidate.licence or "unknown",
        ])  # fmt: skip
    return aligned_lines(HEADER, [rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def work() -> int:
        args = parse_arguments(arguments)
        return compare_command(args) if args.words is None else list_command(args.words)

    return run_cli(work)
