"""The command `export`, which writes a trained model as an ONNX file."""

import argparse
from pathlib import Path

from ..features.backbones.arguments import MODEL, add_encoder_arguments
from ..utils.command_line import Parser, echo, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile, check_output


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("export", "Export a trained model to an ONNX file, and compare its predictions with torch.")
    parser.examples = ("output/model --onnx model.onnx", "output/model --onnx head.onnx --part head --fp16")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("--onnx", type=OutputFile(".onnx"), required=True, metavar="FILE", help="file to write, over an existing one")
    add("--part", choices=("full", "head"), default="full", help="full: input is pixels; head: input is features")
    add("--fp16", action="store_true", help="store weights as float16, which halves the file size")
    add_encoder_arguments(parser)
    return parser.parse_args(arguments)


def export(args: argparse.Namespace) -> None:
    """Run the command; UserError for contradicting flags, an unusable model, or a model without a form in ONNX."""
    if args.part == "head" and (args.backbone or args.pretrained):
        raise UserError("--part head takes features, so --backbone and --pretrained have no effect; leave them out")
    from ..models.export.onnx_file import require_packages, write_onnx
    from ..models.folder import load_model  # slow imports
    from ..models.images import ImageModel, backbone_files
    from ..models.saved import Preprocessing

    require_packages()
    model = load_model(args.model)
    backbone = None
    check_output(args.onnx, backbone_files(model, args.backbone, args.pretrained))
    if args.part == "full":
        backbone = ImageModel.load(model, "cpu", args.backbone, args.pretrained, "fp32").backbone
        model = model.model_copy(update={"preprocessing": Preprocessing.of(backbone)})
    logits, probabilities = write_onnx(model, backbone, args.onnx, args.fp16)
    differences = f"logits {logits:.1e} of the largest, probabilities {probabilities:.1e}"
    echo(f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.2f} MB; largest difference from torch: {differences}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_cli(lambda: export(parse_arguments(arguments)))
