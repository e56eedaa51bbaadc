"""The command `demo`, which shows a trained model in the browser or writes it as a Hugging Face Space."""

import argparse
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..utils.errors import Parser, UserError, echo, first_line, run_cli
from ..utils.files import OutputFolder

if TYPE_CHECKING:
    from gradio import Blocks

HOST, PORT = "127.0.0.1", 7860  # the port is Gradio's default, which Spaces expect
GRADIO = "gradio>=6.31,<7"  # the extra "demo" of pyproject.toml
MAX_QUEUE = 20  # waiting requests; further ones are refused


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("demo", "Try a trained model in the browser, or write it as a Hugging Face Space.")
    parser.examples = ("output/model", "output/model --space my_space")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("--space", type=OutputFolder(), metavar="DIR", help="folder of a Space to write, instead of showing the page")
    add_page_arguments(parser)
    return parser.parse_args(arguments)


def add_page_arguments(parser: Parser, encoder: str = "the one of the model") -> None:
    """Add the address of a page, and the arguments of its image encoder, whose default is described by `encoder`."""
    add = parser.add_argument
    add("--port", type=int, default=PORT, metavar="N", help="port of the page")
    add("--host", default=HOST, metavar="ADDRESS", help="address of the page; 0.0.0.0 opens it to the network")
    add_encoder_arguments(parser, encoder)
    add_device_arguments(parser)


def demo(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.space is None:
        check_address(args.host, args.port)
    require_gradio()
    from ..models.folder import find_model_folder  # slow to import
    from ..models.images import ImageModel
    from ..utils.devices import choose_device
    from .page import build_page
    from .space import write_space

    folder = find_model_folder(args.model)
    device = choose_device(args.device, "--device")
    images = ImageModel.load(folder, device, args.backbone, args.pretrained, args.precision)
    if args.space is None:
        serve(partial(build_page, images, folder), args.host, args.port)
    else:
        write_space(images, folder, args.space, args.backbone, args.pretrained, args.precision)
        echo(f"{args.space}: a Space; upload it with: hf upload USER/NAME {args.space} --repo-type space\n")


def require_gradio() -> None:
    """Raise UserError if Gradio is not installed. Switch off its usage statistics before the first import."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs Gradio; run: {sys.executable} -m pip install '{GRADIO}'") from error


def check_address(host: str, port: int) -> None:
    """Raise UserError if the port is in use or the host is not an address of this machine."""
    try:
        if port == 0:  # the system would choose a random port
            raise ValueError("expected a port from 1 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError, ValueError) as error:
        problem = f"cannot listen on {host}, port {port}: {first_line(error)}"
        raise UserError(f"{problem}; choose another --port or --host") from error


def serve(build: "Callable[[Path], Blocks]", host: str, port: int, css: str = "", **options: Any) -> None:
    """Serve a page until the process is interrupted or terminated.

    Args:
        build: Function from the temporary folder for uploads, which is deleted at the end, to the page.
        host, port: Address of the page.
        css: Style sheet, added to the one of the demo.
        options: Further arguments of Gradio's `launch`.
    """
    from ..datasets.images import MAX_BYTES
    from .page import CSS, gradio_theme

    host = f"[{host}]" if ":" in host else host  # IPv6 in a URL
    with tempfile.TemporaryDirectory(prefix="hegraph-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        for variable in ("NO_PROXY", "no_proxy"):  # Gradio sends requests to its own server
            os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), "localhost,127.0.0.1"]))
        page = build(Path(uploads)).queue(max_size=MAX_QUEUE)
        page.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, pwa=False, mcp_server=False,
            prevent_thread_lock=True, quiet=True, footer_links=[], run_history=False,
            enable_monitoring=False, theme=gradio_theme(), css=CSS + css, **{"max_file_size": MAX_BYTES} | options,
        )  # fmt: skip
        try:
            echo(f"http://{host}:{port} shows the page; Ctrl+C ends it\n")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            page.close(verbose=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code, 2 for a user error."""
    return run_cli(lambda: demo(parse_arguments(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
