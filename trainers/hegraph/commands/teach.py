"""The command `teach`, which trains a model interactively in the browser."""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..apps.arguments import add_page_arguments
from ..apps.launch import check_address, launch_page, require_gradio
from ..datasets.groups import PATTERN_HELP, check_group_pattern
from ..features.backbones.identity import DEFAULT_BACKBONE, MINI_NAME, canonical_name
from ..utils.command_line import Parser, announce, run_cli
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..apps.teach.encoders import StoredEncoder

logger = logging.getLogger(__name__)

SAMPLE = Path("output/teach-digits")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("teach", "Train a model interactively in the browser: add images and classes, correct labels.")
    parser.examples = ("", "photos --backbone ViT-B-32-quickgelu")
    folder = f"folder of the project (default: {SAMPLE}, an example with digits)"
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help=folder)
    create = "create FOLDER if it does not exist (default: ask on the terminal)"
    parser.add_argument("--create", action="store_true", help=create)
    names = "encode class names as text; with --no-names, images alone define the classes (default: as last in FOLDER)"
    parser.add_argument("--names", action=argparse.BooleanOptionalAction, help=names)
    pattern = f"{PATTERN_HELP}; '' forgets it (default: as last in FOLDER)"
    parser.add_argument("--group-pattern", metavar="REGEX", help=pattern)
    add_page_arguments(parser, f"the one used last in FOLDER, or {DEFAULT_BACKBONE.model}")
    return parser.parse_args(arguments)


def teach(args: argparse.Namespace) -> None:
    """Run the command."""
    check_address(args.host, args.port)
    if args.group_pattern:
        check_group_pattern(args.group_pattern)
    if args.folder is not None and not os.path.lexists(args.folder):
        check_creation(args.folder, args.create)
    announce("loading the image encoder and the page, whose address follows", is_server=True)
    require_gradio()
    from ..apps.teach.groups import log_groups, warn_of_folders
    from ..apps.teach.page import CSS, build_page
    from ..apps.teach.project import MAX_ZIP_BYTES, Project
    from ..apps.teach.sample import write_sample
    from ..apps.teach.session import ENCODER_FILE, Session
    from ..apps.teach.worker import Worker
    from ..features.backbones.loading import load_backbone  # slow to import
    from ..utils.devices import choose_device

    if args.folder is None:
        args.folder = SAMPLE
        args.backbone = args.backbone or MINI_NAME
        if not SAMPLE.exists():
            write_sample(SAMPLE)
    project = Project(args.folder)
    stored = read_encoder(project.path_of(ENCODER_FILE))
    model, weights = find_encoder(stored, args.backbone, args.pretrained)
    device = choose_device(args.device, "--device")
    backbone = load_backbone(model, weights, device, args.precision)
    uses_names = stored.uses_names if args.names is None else args.names
    pattern = stored.group_pattern if args.group_pattern is None else args.group_pattern
    session = Session(project, backbone, model, weights, uses_names, pattern)
    session.remember()
    if not session.view.contents.base:
        logger.info("%s: class folders are read from this folder, and new classes are added to it", project.folder)
    if pattern:
        log_groups(session.view.contents, pattern)
    warn_of_folders(project, session.view.contents)
    worker = Worker(session)
    page = partial(build_page, worker)
    thumbnails = str(session.encoded_images.thumbnails)
    try:
        with worker.running():
            launch_page(page, args.host, args.port, CSS, max_file_size=MAX_ZIP_BYTES, allowed_paths=[thumbnails])
    finally:
        session.save()


def check_creation(folder: Path, create: bool) -> None:
    """Raise UserError unless a missing folder may be created: by --create, or by the answer on the terminal."""
    if create:
        return
    problem = f"there is no folder {folder}; choose another, or add --create"
    if not sys.stdin.isatty():
        raise UserError(problem)
    if input(f"There is no folder {folder}. Create it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(problem)


def read_encoder(path: Path) -> "StoredEncoder":
    """Read the image encoder of an earlier session of the project; the default one without a file.

    Raises:
        UserError: If the file is damaged.
    """
    from ..apps.teach.encoders import StoredEncoder
    from ..utils.reading import read_json, validate  # slow to import

    if path.is_file() and not path.is_symlink():
        return validate(StoredEncoder, read_json(path), str(path))
    return StoredEncoder(model=DEFAULT_BACKBONE.model, pretrained=DEFAULT_BACKBONE.weights)


def find_encoder(stored: "StoredEncoder", backbone: str, pretrained: str) -> tuple[str, str]:
    """Choose the name and the weights of the image encoder: the arguments, else the ones of an earlier session."""
    if backbone:
        return canonical_name(backbone), pretrained
    return canonical_name(stored.model), pretrained or stored.pretrained


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code, 2 for a user error."""
    return run_cli(lambda: teach(parse_arguments(arguments)))
