"""The command `export`, which writes a trained model as an ONNX file, or as a page that classifies in the browser."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..features.backbones.arguments import MODEL, add_encoder_arguments
from ..utils.command_line import Parser, echo, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile, OutputFolder, check_output

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone
    from ..models.saved import SavedModel


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    description = "Export a trained model to an ONNX file or to a web page, and compare its predictions with torch."
    parser = Parser("export", description)
    parser.examples = ("output/model --onnx model.onnx", "output/model --page site --runtime onnxruntime-web.tgz")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument(
        "--onnx", type=OutputFile(".onnx"), metavar="FILE", help="ONNX file to write, over an existing one"
    )
    page = "folder to write, with a page that classifies in the browser, for any static host"
    output.add_argument("--page", type=OutputFolder(), metavar="DIR", help=page)
    runtime = "archive or folder of the npm package onnxruntime-web, for --page; its checksum is verified"
    add("--runtime", type=Path, metavar="PATH", help=runtime)
    add("--part", choices=("full", "head"), default="full", help="full: input is pixels; head: input is features")
    number_format = parser.add_mutually_exclusive_group()
    number_format.add_argument("--fp16", action="store_true", help="store weights as float16: half of the file size")
    int8 = "compute in int8: a quarter of the file size; written only if features stay close to float32"
    number_format.add_argument("--int8", action="store_true", help=int8)
    calibrate = "at least 64 images, folders or lists of images like those to classify, for --int8"
    add("--calibrate", nargs="+", default=(), metavar="IMAGES", help=calibrate)
    add_encoder_arguments(parser)
    return parser.parse_args(arguments)


def export(args: argparse.Namespace) -> None:
    """Run the command; UserError for contradicting flags, an unusable model, or a model without a form in ONNX."""
    check_flags(args)
    from ..models.export.onnx_file import require_packages
    from ..models.folder import load_model  # slow imports
    from ..models.images import ImageModel, backbone_files
    from ..models.saved import Preprocessing

    require_packages()
    model = load_model(args.model)
    backbone = None
    files = backbone_files(model, args.backbone, args.pretrained)
    if args.onnx is not None:
        check_output(args.onnx, files)
    if args.part == "full":
        backbone = ImageModel.load(model, "cpu", args.backbone, args.pretrained, "fp32").backbone
        model = model.model_copy(update={"preprocessing": Preprocessing.of(backbone)})
    write = partial(write_file, args, model, backbone)
    if args.page is None:
        result = write(args.onnx)
        echo(f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.2f} MB; {result}\n")
        return
    from ..apps.static.page import write_page

    result, num_bytes = write_page(model, args.page, args.runtime, write)
    echo(f"{args.page}: {num_bytes / 1e6:.2f} MB; {result}\n")
    echo(f"show it with: python -m http.server --directory {args.page}\n")


def write_file(args: argparse.Namespace, model: "SavedModel", backbone: "Backbone | None", path: Path) -> str:
    """Write the ONNX file to a path, and compare it with torch. Return the result of the comparison in words."""
    from ..models.export.int8 import write_int8
    from ..models.export.onnx_file import write_onnx  # slow imports

    if args.int8:
        assert backbone is not None
        comparison = write_int8(model, backbone, path, calibration_images(args))
        result = f"int8 against float32 on {comparison.images} images: smallest cosine of features "
        return f"{result}{comparison.cosine:.4f}, same class for {100 * comparison.agreement:.1f} %"
    logits, probabilities = write_onnx(model, backbone, path, args.fp16)
    return f"largest difference from torch: logits {logits:.1e} of the largest, probabilities {probabilities:.1e}"


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.part == "head" and (args.backbone or args.pretrained):
        raise UserError("--part head takes features, so --backbone and --pretrained have no effect; leave them out")
    if args.part == "head" and args.int8:
        raise UserError("--int8 quantises the image tower, which --part head leaves out; leave out one of the two")
    if args.part == "head" and args.page:
        raise UserError("--page classifies images, and --part head takes features; leave out one of the two")
    if args.page and args.runtime is None:
        from ..apps.static.runtime import ADVICE

        raise UserError(f"--page needs --runtime PATH, the npm package onnxruntime-web: {ADVICE}")
    if args.runtime is not None and not args.page:
        raise UserError("--runtime is for --page; add --page, or leave it out")
    if args.int8 and not args.calibrate:
        raise UserError("--int8 needs --calibrate IMAGES, at least 64 images like those to classify")
    if args.calibrate and not args.int8:
        raise UserError("--calibrate is for --int8; add --int8, or leave it out")


def calibration_images(args: argparse.Namespace) -> Iterator[str]:
    """Iterate over the paths of the calibration images; UserError if one of them is the output."""
    from ..models.predict.files import check_inputs, image_paths  # torch takes seconds to import

    check_inputs(args.calibrate)
    return image_paths(args.calibrate, out=args.onnx)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code, 2 for a user error."""
    return run_cli(lambda: export(parse_arguments(arguments)))
