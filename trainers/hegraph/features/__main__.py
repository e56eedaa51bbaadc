"""The command `features`: `extract --out BANK [...]`, and `import-tip DIR --classnames FILE --out BANK [...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backbones.identity import AUTO, PRECISIONS
from ..utils.errors import Parser, UserError, command, refuse_several_processes, report, say
from ..utils.files import OutputFile, atomic_path
from ..utils.option import NODE


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; UserError if the bank is there already."""
    parser = Parser(prog=command("features"))
    commands = parser.add_subparsers()
    tip = commands.add_parser("import-tip", help="turn a Tip-Adapter cache folder into a feature bank")
    tip.add_argument("folder", type=Path, metavar="DIR")
    tip.add_argument("--classnames", type=Path, required=True, help="names in label order: JSON list or one a line")
    tip.add_argument("--shots", type=int, help="which keys_<S>shots.pt, where there are several")
    tip.add_argument("--dataset-config-file", default="", help="names the data set, and so its templates")
    tip.add_argument(
        "--config-file", default="", help="names a backbone to encode the text with; without it, text_*.pt is read"
    )
    tip.set_defaults(run=import_tip_command)
    extract = commands.add_parser("extract", help="encode all images of a data set, and write them as a feature bank")
    extract.add_argument("--dataset-config-file", required=True, help="names the data set")
    extract.add_argument("--config-file", required=True, help="names the backbone")
    extract.add_argument("--root", default="", help="as of training: the folder of the data sets, or of your images")
    extract.add_argument("--precision", choices=PRECISIONS, help="what the backbone computes in (PREC)")
    extract.set_defaults(run=extract_command)
    for each in (tip, extract):
        each.add_argument("--out", type=OutputFile(), required=True, metavar="BANK", help="the new .safetensors file")
        each.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys")
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out or delete it")
    return args


def extract_command(args: argparse.Namespace) -> None:
    """Encodes all images of a data set, and writes them as a feature bank; processes of `torchrun` share the work."""
    from ..config_files import load_cfg
    from ..experiments.tasks import load_image_task  # torch takes seconds to import, here and below
    from ..utils import processes
    from ..utils.devices import available_device
    from .bank import BankFile

    flags = {"DATASET.NUM_SHOTS": -1} | ({"DATASET.ROOT": args.root} if args.root else {})
    flags |= {f"{NODE}.PREC": args.precision} if args.precision else {}
    cfg = load_cfg(args.dataset_config_file, args.config_file, flags, args.opts)
    with processes.joined():
        load_image_task(cfg, max(cfg.run.seed, 0), available_device(cfg.run.use_cuda)).write_bank(args.out)
        if processes.rank() == 0:
            file = BankFile(args.out)
            sizes = ", ".join(f"{len(labels)} {split}" for split, labels in file.labels.items())
            say(f"{args.out}: {sizes} images, {len(file.classnames)} classes\n")


def import_tip_command(args: argparse.Namespace) -> None:
    """Turns a Tip-Adapter cache folder into a feature bank; UserError as `import_tip`, or if it makes none."""
    from ..config_files import load_cfg
    from .bank import load_bank
    from .tip import import_tip, read_classnames

    cfg = load_cfg(args.dataset_config_file, args.config_file, opts=args.opts)
    classnames = read_classnames(args.classnames)
    encoded: dict[str, Any] = {}
    if args.config_file:
        from ..backbones.loading import load_backbone  # open_clip takes seconds to import
        from .extract import encode_prompts

        precision = "fp32" if cfg.backbone.precision == AUTO else cfg.backbone.precision
        backbone = load_backbone(cfg.backbone.name, cfg.backbone.pretrained, precision=precision)
        text = encode_prompts(backbone, cfg.data.name, classnames, cfg.encoding, args.out.parent)
        encoded = {"text": text, "backbone": backbone.name, "logit_scale": backbone.logit_scale}
    bank = import_tip(args.folder, classnames, shots=args.shots, dataset=cfg.data.name, **encoded)
    with atomic_path(args.out) as temporary:  # the file appears only if it loads
        bank.save(temporary)
        bank = load_bank(temporary)
    say(f"{args.out}: {len(bank.train_labels)} training images, {len(bank.classnames)} classes\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code, as of `report`."""

    def run() -> None:
        args = parse_arguments(arguments)
        if args.run is not extract_command:
            refuse_several_processes()
        args.run(args)

    return report(run, several_processes=True)


if __name__ == "__main__":
    sys.exit(main())
