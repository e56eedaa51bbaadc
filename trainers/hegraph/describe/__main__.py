"""Asks a chat endpoint for sentences that describe image classes, and writes a file for PROMPTS.DESCRIPTIONS.

Example: --classes FILE --context "satellite photos of land use" --out FILE.json
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path

from ..features.tip import read_classnames
from ..utils.commands import Parser, command
from ..utils.errors import UserError, report, say
from ..utils.files import check_output
from ..utils.reading import read_json
from ..utils.schema import check
from .client import ENDPOINT, MODEL, OPENAI_KEY, ChatClient, read_key
from .collect import Collection, Texts, collect

DAY = 86400  # in seconds

logger = logging.getLogger(__package__)  # __name__ is "__main__" here


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("describe"), description=__doc__)
    add = parser.add_argument
    add("--classes", type=Path, required=True, metavar="FILE", help="class names: JSON list or one a line")
    add("--context", required=True, help='what the pictures are, such as "satellite photos of land use"')
    add("--out", type=Path, required=True, metavar="FILE.json", help="the description file to write, or to go on with")
    add("--model", default=MODEL, help="as the endpoint names it (%(default)s)")
    add("--endpoint", default=ENDPOINT, metavar="URL", help="any OpenAI-compatible one (%(default)s)")
    add("--key-env", metavar="NAME", help=f"environment variable of the key ({OPENAI_KEY}, for OpenAI alone)")
    count = number(int, 1)
    add("--per-class", type=count, default=5, metavar="N", help="sentences for each class (%(default)s)")
    add("--batch-size", type=count, default=10, metavar="N", help="classes in one question (%(default)s)")
    add("--tries", type=count, default=4, metavar="N", help="questions about a class until it fails (%(default)s)")
    timeout = "seconds of silence before it asks again (%(default)g)"
    add("--timeout", type=number(float, 0.001, DAY), default=120.0, metavar="S", help=timeout)
    add("--max-tokens", type=count, metavar="N", help="tokens that an answer may have (as the endpoint likes)")
    chance = "0 to 2: chance in the answers (as the endpoint likes)"
    add("--temperature", type=number(float, 0, 2), metavar="T", help=chance)
    repetitions = "repetitions after 429, 5xx and time-outs (%(default)s)"
    add("--retries", type=number(int, 0), default=6, metavar="N", help=repetitions)
    add("--aliases", type=Path, metavar="FILE", help="JSON {class: [alias, ...]}: other names that sentences may use")
    add("--dry-run", action="store_true", help="show the first question and how many there are; ask nothing")
    return parser.parse_args(arguments)


def describe(args: argparse.Namespace) -> int:
    """Runs the command; returns 1 if classes failed, else 0.

    Raises:
        UserError: If an argument is wrong, the endpoint does not answer, or a file cannot be read or written.
    """
    context = " ".join(args.context.split())
    if not context:
        raise UserError('--context is empty; say what the pictures are, such as "satellite photos of land use"')
    check_output(args.out, [args.classes, args.aliases])
    names, aliases = read_classnames(args.classes), {}
    if args.aliases:
        aliases = check(Texts, read_json(args.aliases), f"{args.aliases} must hold {{class name: [alias, ...]}}")
    collection = Collection(names, args.out, context, args.per_class, args.batch_size, aliases)
    questions = collection.batches(0)
    if args.dry_run:
        if questions:
            say(f"{collection.prompt(questions[0])}\n")
        say(f"requests: {len(questions)}, classes: {len(collection.unfinished())}; nothing was asked\n")
        return 0
    if questions:
        key = read_key(args.endpoint, args.key_env)
        limits = (args.timeout, args.retries, args.max_tokens, args.temperature)
        collect(collection, ChatClient(args.endpoint, args.model, key, *limits).ask, args.tries)
    failed = collection.finish()
    num_classes = len(collection.classnames)
    say(f"{args.out}: {num_classes - len(failed)} of {num_classes} classes have their sentences\n")
    if failed:
        logger.warning("failed, and tried again by the same command (%d):", len(failed))
        for name, problem in failed.items():
            logger.warning("  %s: %s", name, problem)
    return int(bool(failed))


def number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """What turns a word of the command line into a number from `least` to `most`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse says it of a word that is no number
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 if classes failed, 2 for a mistake of the user's."""
    return report(lambda: describe(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
