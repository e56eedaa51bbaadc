"""python -m trainers.hegraph.features import-tip DIR --classnames FILE --out BANK [...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..backbones.backbone import load_backbone
from ..config_files import load_cfg
from ..utils.errors import UserError, report
from ..utils.files import atomic_path
from .bank import load_bank
from .extract import encode_prompts
from .tip import import_tip, read_classnames


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainers.hegraph.features")
    commands = parser.add_subparsers(dest="command", required=True)
    tip = commands.add_parser("import-tip", help="turn a Tip-Adapter cache folder into a feature bank")
    tip.add_argument("folder", type=Path, metavar="DIR")
    tip.add_argument("--out", type=Path, required=True, metavar="BANK", help="the .safetensors file to write")
    tip.add_argument("--classnames", type=Path, required=True, help="names in label order: JSON list or one a line")
    tip.add_argument("--shots", type=int, help="which keys_<S>shots.pt, where there are several")
    tip.add_argument("--dataset-config-file", default="", help="names the data set, and so its templates")
    tip.add_argument(
        "--config-file", default="", help="names a backbone to encode the text with; without it, text_*.pt is read"
    )
    tip.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys")
    return parser.parse_args(arguments)


def import_tip_command(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out or delete it")
    cfg = load_cfg(args.dataset_config_file, args.config_file, opts=args.opts)
    classnames = read_classnames(args.classnames)
    text, names = None, {"dataset": cfg.DATASET.NAME}
    if args.config_file:
        backbone = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED)
        text = encode_prompts(backbone, cfg.DATASET.NAME, classnames, cfg, args.out.parent)
        names |= {"backbone": backbone.name, "logit_scale": backbone.logit_scale}
    with atomic_path(args.out) as temporary:  # only a bank that loads is put there
        import_tip(args.folder, classnames, text, args.shots, **names).save(temporary)
        bank = load_bank(temporary)
    sys.stdout.write(f"{args.out}: {len(bank.train_labels)} training images, {len(bank.classnames)} classes\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for a mistake of the user's."""
    return report(lambda: import_tip_command(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
