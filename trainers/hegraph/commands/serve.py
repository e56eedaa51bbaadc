"""The command `serve`, which answers HTTP requests with the predictions of a trained model."""

import argparse
import os
import re
import sys
from pathlib import Path

from ..apps.launch import check_address
from ..features.backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..utils.command_line import Parser, echo, number, run_cli
from ..utils.errors import UserError

PORT = 8000
LABEL_STUDIO = "http://localhost:8080"
PACKAGES = "fastapi fastapi-offline uvicorn python-multipart prometheus-fastapi-instrumentator"  # the extra "serve"
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
    add("--learn", action="store_true", help="accept labelled images, which change MODEL")
    url = f"address of a Label Studio to pre-label and to learn from (with no URL: {LABEL_STUDIO})"
    add("--label-studio", nargs="?", const=LABEL_STUDIO, default="", metavar="URL", help=url)
    add("--label-studio-token", type=Path, metavar="FILE", help="file with a personal access token of Label Studio")
    add_encoder_arguments(parser)
    add_device_arguments(parser)
    return parser.parse_args(arguments)


def serve(args: argparse.Namespace) -> None:
    """Run the server until the process is interrupted or terminated."""
    check_address(args.host, args.port)
    token = read_token(args.token_file) if args.token_file else ""
    if bool(args.label_studio) != bool(args.label_studio_token):
        raise UserError("--label-studio URL and --label-studio-token FILE need each other")
    label_studio_token = read_token(args.label_studio_token) if args.label_studio else ""
    args.learn |= bool(args.label_studio)
    try:
        import uvicorn

        from ..apps.serve.app import LOOPBACK, SETTINGS, Settings, create_app, from_environment
    except ImportError as error:
        raise UserError(f"serve needs FastAPI; run: {sys.executable} -m pip install {PACKAGES}") from error
    if args.learn and args.workers > 1:
        raise UserError(f"--learn needs a single process, which owns the model, got --workers {args.workers}")
    from ..models.folder import find_model_folder
    from ..utils.devices import choose_device

    if args.host not in LOOPBACK and not token and not args.no_token:
        raise UserError(f"{args.host} opens the server to the network: give --token-file FILE, or --no-token")
    settings = Settings(
        model=find_model_folder(args.model).absolute(), host=args.host, token=token, workers=args.workers,
        device=choose_device(args.device, "--device"), backbone=args.backbone, pretrained=args.pretrained,
        precision=args.precision, learn=args.learn,
        label_studio=args.label_studio, label_studio_token=label_studio_token,
    )  # fmt: skip
    application = create_app(settings)  # UserError before the server starts
    os.environ[SETTINGS] = settings.model_dump_json()
    several = f"{from_environment.__module__}:{from_environment.__name__}"
    echo(f"http://{args.host}:{args.port}/docs shows the interface; Ctrl+C ends the server\n")
    uvicorn.run(
        several if args.workers > 1 else application, factory=args.workers > 1, workers=args.workers,
        host=args.host, port=args.port, log_level="warning", access_log=False, server_header=False,
    )  # fmt: skip


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
    return run_cli(lambda: serve(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
