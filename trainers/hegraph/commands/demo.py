"""The command `demo`, which shows a trained model in the browser or writes it as a Hugging Face Space."""

import argparse
from functools import partial
from pathlib import Path

from ..apps.arguments import add_page_arguments
from ..apps.launch import check_address, launch_page, require_gradio
from ..features.backbones.arguments import MODEL
from ..utils.command_line import Parser, announce, echo, run_cli
from ..utils.files import OutputFolder


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("demo", "Try a trained model in the browser, or write it as a Hugging Face Space.")
    parser.examples = ("output/model", "output/model --space my_space")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("--space", type=OutputFolder(), metavar="DIR", help="folder of a Space to write, instead of showing the page")
    add_page_arguments(parser)
    return parser.parse_args(arguments)


def demo(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.space is None:
        check_address(args.host, args.port)
        announce(f"loading the model {args.model} and the page, whose address follows", is_server=True)
    require_gradio()
    from ..apps.demo.page import build_page
    from ..apps.demo.space import write_space
    from ..models.folder import find_model_folder  # slow to import
    from ..models.images import ImageModel
    from ..utils.devices import choose_device

    folder = find_model_folder(args.model)
    device = choose_device(args.device, "--device")
    images = ImageModel.load(folder, device, args.backbone, args.pretrained, args.precision)
    if args.space is None:
        launch_page(partial(build_page, images, folder), args.host, args.port)
    else:
        write_space(images, folder, args.space, args.backbone, args.pretrained, args.precision)
        echo(f"{args.space}: a Space; upload it with: hf upload USER/NAME {args.space} --repo-type space\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code, 2 for a user error."""
    return run_cli(lambda: demo(parse_arguments(arguments)))
