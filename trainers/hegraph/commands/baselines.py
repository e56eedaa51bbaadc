"""The command `baselines`, which lists the methods."""

import logging

from ..baselines import ALL_BASELINES, MULTILABEL_METHODS, TRANSDUCTIVE_METHODS, needs_backbone
from ..utils.command_line import Parser, echo, run_cli
from ..utils.option import OUR_METHOD

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    epilog = "Transductive methods, which also need `--unlabelled test`, precede HeGraphAdapter."
    parser = Parser("baselines", "Print the names of all methods, the values of `--trainer`.", epilog=epilog)
    parser.examples = ("", "--from-bank")
    parser.add_argument("--from-bank", action="store_true", help="list only methods that run on a feature bank")

    def list_methods() -> None:
        args = parser.parse_args(arguments)
        names = [name for name in ALL_BASELINES if not (args.from_bank and needs_backbone(name))]
        echo("".join(f"{name}\n" for name in [*names, OUR_METHOD]))
        logger.info("these need --unlabelled test: %s", ", ".join(TRANSDUCTIVE_METHODS))
        logger.info("these need several labels per image: %s", ", ".join(MULTILABEL_METHODS))

    return run_cli(list_methods)
