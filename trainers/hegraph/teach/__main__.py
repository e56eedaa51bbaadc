"""Shows a page in the browser to teach a model: classes, images, what to label next, labels that look wrong.

Example: FOLDER --backbone ViT-B-16-quickgelu --pretrained openai
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from ..backbones.identity import MINI_NAME
from ..demo.__main__ import add_page_flags, check_address, require_gradio, serve
from ..utils.errors import Parser, command, report
from ..utils.files import write_json
from ..utils.reading import Part, check, read_json
from .project import MOST_BYTES, OWN, Project

logger = logging.getLogger(__name__)

SAMPLE = Path("output/teach-digits")


class Encoder(Part):
    """What the images of a project are encoded by, where nothing else is said."""

    backbone: str = "ViT-B-16-quickgelu"
    pretrained: str = "openai"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("teach"), description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help=f"by default {SAMPLE}, with the digits")
    add_page_flags(parser, "what encodes images; by default that of the last time, or CLIP's ViT-B/16")
    return parser.parse_args(arguments)


def teach(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_address(args.host, args.port)
    require_gradio()
    from ..backbones.loading import load_backbone  # these take seconds
    from ..utils.devices import choose_device
    from .page import build_page
    from .session import Session, write_sample

    if args.folder is None:
        args.folder, args.backbone = SAMPLE, args.backbone or MINI_NAME
        if not SAMPLE.exists():
            write_sample(SAMPLE)
    project = Project(args.folder)
    said = project.at(f"{OWN}/encoder.json")
    encoder = find_encoder(said, args.backbone, args.pretrained)
    device = choose_device(args.device, "--device")
    backbone = load_backbone(encoder.backbone, encoder.pretrained, device, args.precision)
    session = Session(project, backbone, encoder.backbone, encoder.pretrained)
    write_json(said, encoder.model_dump())
    if not session.view.contents.base:
        logger.info("%s: the class folders are directly in it, and their images stay there", project.folder)
    css = (Path(__file__).parent / "board.css").read_text(encoding="utf-8")
    page = partial(build_page, session)
    try:
        serve(page, args.host, args.port, css, max_file_size=MOST_BYTES, allowed_paths=[str(session.thumbnails)])
    finally:
        session.save()


def find_encoder(path: Path, backbone: str, pretrained: str) -> Encoder:
    """What encodes the images: what is said now, or was said the last time, which is in a file."""
    if backbone:
        return Encoder(backbone=backbone, pretrained=pretrained)
    said = check(Encoder, read_json(path), str(path)) if path.is_file() and not path.is_symlink() else Encoder()
    return said.model_copy(update={"pretrained": pretrained or said.pretrained})


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake of the user's."""
    return report(lambda: teach(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
