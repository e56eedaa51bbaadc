"""The command `label`, which selects images to label and finds wrong labels."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..estimator.labels import LEAST_AGREEMENT, SUSPICIOUS
from ..features.backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..features.backbones.identity import AUTO, DEFAULT_BACKBONE
from ..models.predict.files import (
    FORMATS,
    REPLACED,
    PredictionRow,
    aligned_lines,
    check_inputs,
    chosen_format,
    count_images,
    csv_line,
    image_paths,
    utf8,
)
from ..utils.command_line import Parser, announce, command, run_cli, whole
from ..utils.files import OutputFile, check_output
from ..utils.option import NODE

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Config
    from ..estimator.labels.issues import LabelIssue

    Labelled = tuple[Tensor, Tensor, Tensor, float, list[str]]  # features, labels, text, CLIP's `tau`, class names

logger = logging.getLogger(__name__)

COLUMNS = ("path", "label", "suggested", "score")
CHECK = """\
A model that was fitted without an image checks the label of this image. Each row has an image with a suspicious label,
the most probable other class, and a score: the approximate log odds of the other classes.
"""
SUGGEST = "The rows have the columns of `predict`. The image to label first is in the first row."


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("label", "Select images to label, or find wrong labels.")
    parser.examples = ("suggest output/model unlabelled -n 10", "check --root photos")
    suggest = parser.add_command("suggest", "select the images to label next", epilog=SUGGEST)
    suggest.examples = ("output/model unlabelled -n 10", "output/model unlabelled --out next.csv")
    suggest.failure = "an image could not be read"
    add = suggest.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("inputs", nargs="+", metavar="INPUT", help="images, folders, .txt files of paths, or - for paths on stdin")
    add("-n", "--number", type=whole, default=20, metavar="N", help="number of images to select")
    add("--top", type=whole, default=3, metavar="N", help="number of classes to list for an image, the likeliest first")
    add_encoder_arguments(suggest)
    suggest.set_defaults(run=suggest_command)
    check = parser.add_command("check", "find labels that are likely wrong", epilog=CHECK)
    check.examples = ("--root photos", "--features bank.safetensors --above 3 --out wrong.csv")
    check.failure = "a label is suspicious"
    add = check.add_mutually_exclusive_group(required=True).add_argument
    add("--root", metavar="DIR", help="folder of class folders with images, or a CSV file")
    add("--features", type=Path, metavar="BANK", help="feature bank instead of images")
    add = check.add_argument
    add("--config-file", default=DEFAULT_BACKBONE.config, metavar="NAME", help="YAML file or name of the method")
    add("--dataset-config-file", default="folder", metavar="NAME", help="YAML file or name of the data set")
    add("opts", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    above = f"list labels with a higher score; {SUSPICIOUS:g} means odds of about {math.exp(SUSPICIOUS):.0f} to 1"
    add("--above", type=float, default=SUSPICIOUS, metavar="SCORE", help=f"{above} against the label")
    check.set_defaults(run=check_command)
    # `check` never replaces a CSV file, because it may hold the labels
    rows = (suggest, OutputFile(*REPLACED), AUTO), (check, OutputFile(), "value of the key PREC")
    for subparser, out, precision in rows:
        add = subparser.add_argument
        add("--format", choices=tuple(FORMATS), help="format of the rows (default: the ending of --out, or table)")
        add("--out", type=out, metavar="FILE", help="file to write or to replace (default: standard output)")
        add_device_arguments(subparser, precision)
    return parser.parse_args(arguments)


def suggest_command(args: argparse.Namespace) -> int:
    """Write the images to label next; returns the number of images that could not be read."""
    check_inputs(args.inputs)
    announce(f"loading the model {args.model}")
    import torch  # slow to import

    from ..estimator.labels.suggest import suggest
    from ..models.images import ImageModel
    from ..models.predict.prediction import default_batch_size, encoded_batches, open_model, rows_of, write_rows
    from ..utils.devices import choose_device
    from ..utils.progress import Progress

    saved = open_model(args)
    device = choose_device(args.device, "--device")
    model = ImageModel.load(saved, device, args.backbone, args.pretrained, args.precision)
    paths = []
    unreadable = []
    features = [torch.zeros(0, saved.classifier.width)]
    images = image_paths(args.inputs, out=args.out)
    batch_size = default_batch_size(model.backbone.input_size)
    progress = Progress(count_images(args.inputs), "encoding images")
    with encoded_batches(model, images, progress.total, batch_size, progress.show) as encoded:
        with progress:
            for batch, problems, batch_features in encoded:
                for path, problem in zip(map(str, batch), problems):
                    if problem:
                        unreadable.append(PredictionRow(path, error=problem))
                    else:
                        paths.append(path)
                features.append(batch_features.cpu())
        pool = torch.cat(features)
        order = suggest(saved, pool, args.number) if len(pool) else []
        selected = [paths[index] for index in order]
        rows = rows_of(saved, selected, saved.classifier.logits(pool[order]), args.top)
        return write_rows([[*rows, *unreadable]], args.out, chosen_format(args), selected_from=len(paths))


def check_command(args: argparse.Namespace) -> int:
    """Write the images with suspicious labels; returns their number."""
    from ..config_files import DATA_SET, METHOD, find_config_file, load_cfg
    from ..estimator.labels.issues import find_label_issues
    from ..models.predict.prediction import open_output  # torch is slow to import

    data_file = "" if args.features else args.dataset_config_file
    flags = {"DATASET.ROOT": args.root or ""}
    if args.precision:
        flags[f"{NODE}.PREC"] = args.precision
    cfg = load_cfg(data_file, args.config_file, flags, [*args.opts, "DATASET.NUM_SHOTS", "-1"])
    if args.out is not None:
        files = ((DATA_SET, data_file), (METHOD, args.config_file))
        config_files = [find_config_file(kind, file) for kind, file in files if file]
        inputs = {key: value for key, value in cfg.values.items() if key != "OUTPUT_DIR"}
        check_output(args.out, [config_files, inputs])
    labelled, groups, paths = labelled_images(cfg, args)
    ranked = find_label_issues(*labelled, trusts_text=cfg.model.trust_text, groups=groups)
    issues = [issue for issue in ranked if issue.score > args.above]
    with open_output(args.out) as write:
        for line in issue_lines(issues, paths, chosen_format(args)):
            write(line)
    agreeing = sum(issue.score <= 0 for issue in ranked)
    if agreeing < LEAST_AGREEMENT * len(paths):
        recognised = f"the model recognises only {agreeing} of {len(paths)} images as they are labelled"
        advice = f"{command('backbones --root FOLDER')} compares image encoders"
        logger.warning("%s, so its scores say little about the labels; %s", recognised, advice)
    else:
        logger.info("%d of %d labels are suspicious", len(issues), len(paths))
    return len(issues)


def labelled_images(cfg: Config, args: argparse.Namespace) -> tuple[Labelled, Tensor | None, list[str]]:
    """Read the labelled images, each encoded once with the test transform.

    Returns:
        The first arguments of `find_label_issues`, the groups of the images, and their paths.

    Raises:
        UserError: If --out is one of the images, or an image cannot be read.
    """
    from ..datasets.loading import OWN, load_own_images
    from ..experiments.bank_task import BankTask  # torch is slow to import
    from ..experiments.checks import images_only_sentence
    from ..experiments.image_task import ImageTask
    from ..experiments.opening import load_image_task
    from ..features.extract import group_numbers, labels_of
    from ..utils.devices import choose_device

    seed = max(cfg.run.seed, 0)
    device = choose_device(args.device, "--device")
    if args.features:
        task = BankTask(args.features, cfg, seed)
        task.check_single_label("label check")
        bank = task.bank()
        labelled = (bank.cache_keys(), bank.train_labels, bank.known_text, bank.logit_scale, list(bank.classnames))
        return labelled, bank.train_groups, [f"{args.features}#train/{row}" for row, _, _ in task.split["train"]]
    if cfg.data.name == OWN and cfg.data.classes == "all":  # class folders are not split
        pattern = cfg.data.group_pattern
        own = load_own_images(args.root, split_folders=False, group_pattern=pattern)
        images = ImageTask(own, cfg, seed, device)
    else:
        images = load_image_task(cfg, seed, device)
    images.check_single_label("label check")
    if images.images_only:
        logger.info("%s", images_only_sentence(images.images_only))
    train = images.dataset.train
    root = Path(args.root)
    folder = root.parent if root.is_file() else root
    paths = [str(folder / item.path) for item in train]
    if args.out is not None:
        check_output(args.out, paths)
    features = images.encode(images.dataset, train, "train")
    labels = labels_of(images.dataset, train)
    text, _ = images.text_features()
    groups = group_numbers(images.dataset, {"train": train}).get("train_groups")
    return (features, labels, text, images.backbone.logit_scale, list(images.classnames)), groups, paths


def issue_lines(issues: Sequence[LabelIssue], paths: Sequence[str], row_format: str) -> Iterator[str]:
    """Lines with path, label, suggested class and score of each image, as "table", "csv" or "jsonl"."""
    rows = [(utf8(paths[i.index]), utf8(i.label), utf8(i.suggested), round(i.score, 4)) for i in issues]
    if row_format == "table":
        yield from aligned_lines(COLUMNS, [[(*names, f"{score:.2f}") for *names, score in rows]])
    elif row_format == "csv":
        yield from (csv_line(*row) for row in (COLUMNS, *rows))
    else:
        yield from (json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=False) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 for a suspicious label or an unreadable image."""

    def run() -> int:
        args = parse_arguments(arguments)
        return int(args.run(args) > 0)

    return run_cli(run)
