"""Shows a page in the browser to try a trained model, or writes it as a Hugging Face Space.

Example: OUTPUT_DIR/model --port 7860
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..utils.commands import Parser, command
from ..utils.errors import report, say

HOST, PORT = "127.0.0.1", 7860  # Gradio's own port, which a Space is asked on


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("demo"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="the model folder, or the output folder of a run")
    add("--port", type=int, default=PORT, metavar="N", help="the port of the page (%(default)s)")
    add("--host", default=HOST, help="who can open it: %(default)s is this machine alone, 0.0.0.0 the network")
    add("--space", type=Path, metavar="DIR", help="write a folder that can be pushed as a Space; show nothing")
    add("--backbone", default="", metavar="NAME", help="of a model that was trained from a bank: what encodes images")
    add("--pretrained", default="", metavar="TAG", help="its weights: a tag of open_clip's, or a file")
    add("--device", default="", help='such as "cpu" or "cuda"; by default a GPU if there is one')
    return parser.parse_args(arguments)


def demo(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UserError: If the model cannot be had, Gradio is missing, the port is taken or the Space is there already.
    """
    from .server import check_address, require_gradio, serve  # what is imported below takes seconds

    if args.space is None:
        check_address(args.host, args.port)
    require_gradio()
    from ..models.folder import find_model_folder
    from ..models.images import ImageModel
    from ..utils.devices import choose_device
    from .space import check_target, write_space

    if args.space is not None:
        check_target(args.space)
    folder = find_model_folder(args.model)
    images = ImageModel.load(folder, choose_device(args.device, "--device"), args.backbone, args.pretrained)
    if args.space is None:
        serve(images, folder, args.host, args.port)
    else:
        write_space(images, folder, args.space, args.backbone, args.pretrained)
        say(f"{args.space}: a Space; upload it with: hf upload USER/NAME {args.space} --repo-type space\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    return report(lambda: demo(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
