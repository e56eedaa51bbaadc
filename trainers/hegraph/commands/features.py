"""Command `features`: `extract` encodes a data set, `import-tip` converts a Tip-Adapter cache, to a feature bank."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..features.backbones.identity import AUTO, PRECISIONS
from ..utils.command_line import Parser, echo, refuse_several_processes, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile, atomic_path
from ..utils.option import NODE

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
    for each in (tip, extract):
        each.add_argument("--out", type=OutputFile(), required=True, metavar="BANK", help="new .safetensors file")
        each.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out or delete it")
    return args


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
    """Convert a Tip-Adapter cache folder to a feature bank; errors as for `import_tip` and `load_bank`."""
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
