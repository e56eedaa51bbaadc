"""The command `serve`, which answers HTTP requests with the predictions of a trained model."""

import argparse
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..apps.launch import bind, page_address
from ..apps.serve.start import run_quietly, serve_model
from ..features.backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..utils.command_line import Parser, announce, echo, number
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..apps.serve.settings import Settings

PORT = 8000
LABEL_STUDIO = "http://localhost:8080"
PACKAGES = "fastapi fastapi-offline uvicorn python-multipart prometheus-fastapi-instrumentator"  # the extra "serve"
MODULES = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_fastapi_instrumentator")
EPILOG = """\
POST /v1/predict takes images in base64, POST /v1/predict/files takes a form with files. GET /v1/model describes the
model, /health and /metrics are for monitoring, and /docs shows and tries the interface in the browser. With --learn,
POST and DELETE of /v1/examples change the model, POST /v1/suggest orders unlabelled images, and GET /v1/issues lists
suspicious labels.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("serve", "Answer HTTP requests with the predictions of a trained model.", epilog=EPILOG)
    parser.examples = ("my_model --learn", "output/model --host 0.0.0.0 --token-file token.txt --workers 2")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("--port", type=int, default=PORT, metavar="N", help="port of the server")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address of the server; 0.0.0.0 opens it to the network")
    add("--token-file", type=Path, metavar="FILE", help="file with a secret that requests must have")
    add("--no-token", action="store_true", help="open the server to the network without a token")
    add("--workers", type=number(int, 1), default=1, metavar="N", help="number of processes, each with the model")
    late = "seconds until a request must have arrived completely"
    add("--request-timeout", type=number(float, 0.1), default=30, metavar="SECONDS", help=late)
    add("--stop-timeout", type=number(float, 2), default=10, metavar="SECONDS", help="seconds from SIGTERM to the end")
    add("--learn", action="store_true", help="accept labelled images, which change MODEL")
    add = parser.add_argument_group("Label Studio").add_argument
    url = f"address of a Label Studio to pre-label and to learn from (with no URL: {LABEL_STUDIO})"
    add("--label-studio", nargs="?", const=LABEL_STUDIO, default="", metavar="URL", help=url)
    add("--label-studio-token", type=Path, metavar="FILE", help="file with a personal access token of Label Studio")
    encoder = parser.add_argument_group("encoder and device")
    add_encoder_arguments(encoder)
    add_device_arguments(encoder)
    return parser.parse_args(arguments)


def serve(args: argparse.Namespace) -> int:
    """Run the server until the process is interrupted or terminated; returns the exit code."""
    listener = bind(args.host, args.port)
    announce(f"loading the model {args.model}; the address of the server follows", is_server=True)
    settings = read_settings(args)

    def report() -> None:
        echo(f"{page_address(args.host, args.port)}/docs shows the interface; Ctrl+C ends the server\n")

    if args.workers > 1:
        from ..apps.serve.workers import Workers

        return Workers(settings, listener).run(report)
    return serve_model(settings, listener, report)


def read_settings(args: argparse.Namespace) -> "Settings":
    """Read the settings of the server from the arguments.

    Raises:
        UserError: If arguments do not fit together, a token or the model folder is missing, or FastAPI is not
            installed.
    """
    token = read_token(args.token_file) if args.token_file else ""
    if bool(args.label_studio) != bool(args.label_studio_token):
        raise UserError("--label-studio URL and --label-studio-token FILE need each other")
    label_studio_token = read_token(args.label_studio_token) if args.label_studio else ""
    learn = args.learn or bool(args.label_studio)
    require_packages()
    if learn and args.workers > 1:
        raise UserError(f"--learn needs a single process, which owns the model, got --workers {args.workers}")
    from ..apps.access import is_loopback
    from ..apps.serve.settings import Settings
    from ..models.folder import find_model_folder
    from ..utils.devices import choose_device

    if not is_loopback(args.host) and not token and not args.no_token:
        raise UserError(f"{args.host} opens the server to the network: give --token-file FILE, or --no-token")
    return Settings(
        model=find_model_folder(args.model).absolute(),
        host=args.host,
        token=token,
        workers=args.workers,
        device=choose_device(args.device, "--device"),
        backbone=args.backbone,
        pretrained=args.pretrained,
        precision=args.precision,
        learn=learn,
        label_studio=args.label_studio,
        label_studio_token=label_studio_token,
        request_seconds=args.request_timeout,
        stop_seconds=args.stop_timeout,
    )


def require_packages() -> None:
    """Raise UserError if a package of the extra `serve` is not installed."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs FastAPI; run: {sys.executable} -m pip install {PACKAGES}")


def read_token(path: Path) -> str:
    """Read a token, which HTTP headers can hold; UserError for an unreadable file, and for any other content."""
    from ..utils.reading import read_text  # slow to import

    token = read_text(path).strip()
    if not re.fullmatch(r"[!-~]{16,}", token):
        expected = f"expected a token of at least 16 letters, digits or signs of ASCII in {path}, without spaces"
        raise UserError(f"{expected}, got {len(token)} characters", "serve.token")
    return token


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_quietly(lambda: serve(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
