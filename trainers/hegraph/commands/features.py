"""Command `features`: feature banks from data sets (`extract`) and from Tip-Adapter caches (`import-tip`).

`list` and `prune` show and delete the cached features of earlier runs.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..features.backbones.identity import AUTO, PRECISIONS
from ..utils.command_line import Parser, echo, number, refuse_several_processes, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile, atomic_path
from ..utils.option import NODE
from ..utils.text import printable

if TYPE_CHECKING:
    from ..features.cache import CachedPart

SECONDS_OF_DAY = 86400
CLASSNAMES = "class names in label order: a JSON list, or a text file with one name per line"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; UserError if the output file exists."""
    parser = Parser("features", "Encode a data set as a feature bank, or convert a Tip-Adapter cache.")
    parser.examples = (
        "extract --dataset-config-file digits --config-file mini --out digits.safetensors",
        "import-tip caches/dtd --classnames dtd.txt --out dtd.safetensors",
    )
    tip = parser.add_command("import-tip", "convert a Tip-Adapter cache folder to a feature bank")
    tip.examples = (
        "caches/dtd --classnames dtd.txt --out dtd.safetensors",
        "caches/dtd --classnames dtd.json --config-file vit_b16 --out dtd.safetensors",
    )
    add = tip.add_argument
    add("folder", type=Path, metavar="DIR", help="folder with keys_<S>shots.pt and values_<S>shots.pt")
    add("--classnames", type=Path, required=True, metavar="FILE", help=CLASSNAMES)
    add("--shots", type=int, metavar="S", help="S of keys_<S>shots.pt (default: the only such file)")
    add("--dataset-config-file", default="", metavar="NAME", help="YAML file or name of the data set, for its prompts")
    method = "YAML file or name of the method, to encode the text (default: read text_positive.pt, text_negative.pt)"
    add("--config-file", default="", metavar="NAME", help=method)
    tip.set_defaults(run=import_tip_command)
    extract = parser.add_command("extract", "encode all images of a data set")
    extract.examples = (
        "--dataset-config-file digits --config-file mini --out digits.safetensors",
        "--dataset-config-file folder --root photos --config-file vit_b16 --out photos.safetensors",
    )
    add = extract.add_argument
    add("--dataset-config-file", required=True, metavar="NAME", help="YAML file or name of the data set")
    add("--config-file", required=True, metavar="NAME", help="YAML file or name of the method, for its backbone")
    add("--root", default="", metavar="DIR", help="folder of the data sets, or of your own images")
    add("--precision", choices=PRECISIONS, help=f"number format of the encoder (default: the value of {NODE}.PREC)")
    extract.set_defaults(run=extract_command)
    add_cache_commands(parser)
    for each in (tip, extract):
        each.add_argument("--out", type=OutputFile(), required=True, metavar="BANK", help="new .safetensors file")
        each.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    args = parser.parse_args(arguments)
    if "out" in args and args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out or delete it")
    return args


def add_cache_commands(parser: Parser) -> None:
    """Add the commands `list` and `prune` of cached features."""
    listing = parser.add_command("list", "list cached features, with their sizes and days since the last use")
    listing.examples = ("", "output/sweep/features")
    listing.set_defaults(run=list_command)
    prune = parser.add_command("prune", "delete cached features; without --yes, list what would be deleted")
    prune.examples = ("--unused 30", "output/sweep/features --not-used-below output/sweep --larger 100 --yes")
    prune.set_defaults(run=prune_command)
    for each in (listing, prune):
        each.add_argument(
            "folder", nargs="?", type=Path, default=Path("output/features"), metavar="DIR", help="folder of features"
        )
    days = "days since the last use, from which on features are deleted (default: 0)"
    prune.add_argument("--unused", type=number(float, 0), default=0.0, metavar="DAYS", help=days)
    size = "size in MB, from which on features are deleted (default: 0)"
    prune.add_argument("--larger", type=number(float, 0), default=0.0, metavar="MB", help=size)
    runs = "keep the features of each data set and backbone that the record of a run below this folder names together"
    prune.add_argument("--not-used-below", type=Path, metavar="DIR", help=runs)
    prune.add_argument("--yes", action="store_true", help="delete the features")


def list_command(args: argparse.Namespace) -> None:
    """Print the cached features below a folder; UserError if there is no such folder."""
    from ..features.cache import cached_parts  # imports torch

    parts = cached_parts(args.folder)
    echo(table_of_parts(args.folder, parts))
    echo(f"{len(parts)} files, {sum(part.size for part in parts) / 1e6:.1f} MB\n")


def prune_command(args: argparse.Namespace) -> None:
    """Print the cached features that the arguments select, and delete them with `--yes`.

    Raises:
        UserError: If there is no such folder, no record below the folder of `--not-used-below`, or a file cannot be
            deleted.
    """
    from ..features.cache import cached_parts, delete_part

    latest = time.time() - args.unused * SECONDS_OF_DAY
    used = set() if args.not_used_below is None else used_folders(args.not_used_below)
    selected = []
    for part in cached_parts(args.folder):
        old = part.last_used <= latest
        large = part.size >= args.larger * 1e6
        folder = part.path.parent.resolve()
        if old and large and not any(folder.parts[-len(each.parts) :] == each.parts for each in used):
            selected.append(part)
    echo(table_of_parts(args.folder, selected))
    for part in selected if args.yes else ():
        delete_part(part)
    action = "deleted" if args.yes else "to delete"
    confirm = "; add --yes to delete them" if selected and not args.yes else ""
    echo(f"{action}: {len(selected)} files, {sum(part.size for part in selected) / 1e6:.1f} MB{confirm}\n")


def used_folders(runs: Path) -> set[PurePath]:
    """Return the folders, relative to `FEATURES.DIR`, in which the finished runs below a folder have their features.

    A run has them in `<data set>/<backbone>`, for its own data set and each of its targets.

    Raises:
        UserError: If there is no record below the folder, or a record is damaged.
    """
    from ..datasets.registry import canonical_name
    from ..results.records import find_records

    folders = set()
    for record in find_records([runs]):
        for name in (record["dataset"], *(record.get("targets") or {})):
            dataset = name.partition(":")[0]  # a target may be NAME:base or NAME:new
            folders.add(PurePath(canonical_name(dataset), record["backbone"]))
            folders.add(PurePath(dataset, record["backbone"]))
    return folders


def table_of_parts(folder: Path, parts: "Sequence[CachedPart]") -> str:
    """Format size, days since the last use, and path of cached features, one per line."""
    now = time.time()
    lines = []
    for part in parts:
        days = max(now - part.last_used, 0) / SECONDS_OF_DAY
        lines.append(f"{part.size / 1e6:8.1f} MB  {days:5.1f} days  {printable(str(part.path.relative_to(folder)))}\n")
    return "".join(lines)


def extract_command(args: argparse.Namespace) -> None:
    """Encode all images of a data set to a feature bank; processes of `torchrun` share the work."""
    from ..config_files import load_cfg
    from ..experiments.opening import load_image_task  # torch takes seconds to import, here and below
    from ..features.bank import BankFile
    from ..utils import processes
    from ..utils.devices import available_device

    flags = {"DATASET.NUM_SHOTS": -1} | ({"DATASET.ROOT": args.root} if args.root else {})
    flags |= {f"{NODE}.PREC": args.precision} if args.precision else {}
    cfg = load_cfg(args.dataset_config_file, args.config_file, flags, args.opts)
    with processes.process_group():
        load_image_task(cfg, max(cfg.run.seed, 0), available_device(cfg.run.use_cuda)).write_bank(args.out)
        if processes.rank() == 0:
            file = BankFile(args.out)
            sizes = ", ".join(f"{len(labels)} {split}" for split, labels in file.labels.items())
            echo(f"{args.out}: {sizes} images, {len(file.classnames)} classes\n")


def import_tip_command(args: argparse.Namespace) -> None:
    """Convert a Tip-Adapter cache folder to a feature bank.

    Raises:
        UserError: On a missing or damaged file, or features, labels and class names that do not match.
    """
    from ..config_files import load_cfg
    from ..features.bank import load_bank
    from ..features.tip import import_tip, read_classnames

    cfg = load_cfg(args.dataset_config_file, args.config_file, opts=args.opts)
    classnames = read_classnames(args.classnames)
    encoded: dict[str, Any] = {}
    if args.config_file:
        from ..features.backbones.loading import load_backbone  # open_clip takes seconds to import
        from ..features.extract import encode_prompts

        precision = "fp32" if cfg.backbone.precision == AUTO else cfg.backbone.precision
        backbone = load_backbone(cfg.backbone.name, cfg.backbone.pretrained, precision=precision)
        text = encode_prompts(backbone, cfg.data.name, classnames, cfg.encoding, args.out.parent)
        encoded = {"text": text, "backbone": backbone.name, "logit_scale": backbone.logit_scale}
    bank = import_tip(args.folder, classnames, shots=args.shots, dataset=cfg.data.name, **encoded)
    with atomic_path(args.out) as temporary:  # the file is renamed into place only if it loads
        bank.save(temporary)
        bank = load_bank(temporary)
    echo(f"{args.out}: {len(bank.train_labels)} training images, {len(bank.classnames)} classes\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def run() -> None:
        args = parse_arguments(arguments)
        if args.run is not extract_command:
            refuse_several_processes()
        args.run(args)

    return run_cli(run, several_processes=True)
