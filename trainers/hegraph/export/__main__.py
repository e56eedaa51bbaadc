"""Export a trained model to an ONNX file, and compare its predictions with torch.

Example: OUTPUT_DIR/model --onnx model.onnx
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..utils.errors import Parser, UserError, command, echo, run_cli
from ..utils.files import OutputFile, check_output


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("export"), description=__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="model folder, or output folder of a run")
    add("--onnx", type=OutputFile(".onnx"), required=True, metavar="FILE", help="file to write, over an existing one")
    add(
        "--part",
        choices=("full", "head"),
        default="full",
        help="full: input is pixels; head: input is features (default: full)",
    )
    add("--fp16", action="store_true", help="store weights as float16, which halves the file size")
    add(
        "--backbone",
        default="",
        metavar="NAME",
        help="image encoder, an open_clip model name (default: the one of the model)",
    )
    add("--pretrained", default="", metavar="WEIGHTS", help="weights of the encoder, an open_clip tag or a file")
    return parser.parse_args(arguments)


def export(args: argparse.Namespace) -> None:
    """Run the command; UserError for contradicting flags, an unusable model, or a model without a form in ONNX."""
    if args.part == "head" and (args.backbone or args.pretrained):
        raise UserError("--part head takes features, so --backbone and --pretrained have no effect; leave them out")
    from ..models.folder import load_model  # slow imports
    from ..models.images import ImageModel, backbone_files
    from ..models.saved import Preprocessing
    from .onnx_file import require_packages, write_onnx

    require_packages()
    model, backbone = load_model(args.model), None
    check_output(args.onnx, backbone_files(model, args.backbone, args.pretrained))
    if args.part == "full":
        backbone = ImageModel.load(model, "cpu", args.backbone, args.pretrained, "fp32").backbone
        model = model.model_copy(update={"preprocessing": Preprocessing.of(backbone)})
    logits, probabilities = write_onnx(model, backbone, args.onnx, args.fp16)
    echo(
        f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.2f} MB; largest difference from torch: logits {logits:.1e} of "
        f"the largest, probabilities {probabilities:.1e}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    return run_cli(lambda: export(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
