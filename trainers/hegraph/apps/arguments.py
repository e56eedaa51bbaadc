"""Arguments of the command lines that show a page."""

from ..features.backbones.arguments import add_device_arguments, add_encoder_arguments
from ..utils.command_line import Parser

HOST, PORT = "127.0.0.1", 7860  # the port is Gradio's default, which Spaces expect


def add_page_arguments(parser: Parser, encoder: str = "the one of the model") -> None:
    """Add the address of a page, and the arguments of its image encoder, whose default is described by `encoder`."""
    add = parser.add_argument
    add("--port", type=int, default=PORT, metavar="N", help="port of the page")
    add("--host", default=HOST, metavar="ADDRESS", help="address of the page; 0.0.0.0 opens it to the network")
    add_encoder_arguments(parser, encoder)
    add_device_arguments(parser)
