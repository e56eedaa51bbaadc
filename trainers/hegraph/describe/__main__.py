"""The command `describe`, which generates class descriptions with a chat model."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..utils.errors import Parser, UserError, command, echo, number, run_cli
from ..utils.files import OutputFile

ENDPOINT, MODEL = "https://api.openai.com/v1", "gpt-4o-mini"  # the defaults
OPENAI, OPENAI_KEY = "openai.com", "OPENAI_API_KEY"  # the only service that gets this key without being asked to
PASSING_LOG = "openai._base_client"  # where the library says that it asks again
LONGEST_CONNECT = 10.0  # seconds until a server that does not even take the connection counts as dead
LONGEST_REASON = 120  # how many characters of a server's message are shown to the user
SHORTEST_SECRET = 8  # a shorter key is for a server that needs none, and may be a word of an answer: it is not removed

logger = logging.getLogger(__package__)  # __name__ is "__main__" here


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=command("describe"),
        description="Generate class descriptions with a chat model, and write them as a file for PROMPTS.DESCRIPTIONS.",
        examples=(
            '--classes classes.txt --context "satellite photos of land use" --out land.json',
            '--classes classes.txt --context "photos of birds" --out birds.json --dry-run',
        ),
        failure="a class lacks descriptions",
    )
    add, count = parser.add_argument, number(int, 1)
    add("--classes", type=Path, required=True, metavar="FILE", help="class names: JSON list, or one name per line")
    context = 'content of the images, such as "satellite photos of land use"'
    add("--context", required=True, metavar="TEXT", help=context)
    add("--out", type=OutputFile(), required=True, metavar="FILE.json", help="description file to write or to continue")
    add("--model", default=MODEL, metavar="NAME", help="chat model, as the endpoint names it")
    add("--endpoint", default=ENDPOINT, metavar="URL", help="OpenAI-compatible endpoint")
    key = f"environment variable that holds the API key (default: {OPENAI_KEY}, for OpenAI only)"
    add("--key-env", metavar="NAME", help=key)
    add("--per-class", type=count, default=5, metavar="N", help="sentences per class")
    add("--batch-size", type=count, default=10, metavar="N", help="classes per request")
    add("--tries", type=count, default=4, metavar="N", help="requests for a class until it counts as failed")
    seconds = number(float, 0.001, 86400)
    add("--timeout", type=seconds, default=120.0, metavar="SECONDS", help="longest time to wait for an answer")
    add("--max-tokens", type=count, metavar="N", help="tokens of an answer (default: the one of the endpoint)")
    temperature = "sampling temperature (default: the one of the endpoint)"
    add("--temperature", type=number(float, 0, 2), metavar="T", help=temperature)
    add("--retries", type=number(int, 0), default=6, metavar="N", help="retries after status 429 or 5xx, or a time-out")
    add("--aliases", type=Path, metavar="FILE", help="JSON {class: [alias, ...]} of other names that sentences may use")
    add("--dry-run", action="store_true", help="print the first request and the number of requests, and send none")
    return parser.parse_args(arguments)


def describe(args: argparse.Namespace) -> int:
    """Runs the command; returns 1 if classes failed, else 0."""
    from ..features.tip import read_classnames  # torch and open_clip take seconds to import
    from ..utils.reading import read_json, validate
    from .collect import Collection, Texts, collect

    context = " ".join(args.context.split())
    if not context:
        raise UserError('--context is empty; say what the pictures are, such as "satellite photos of land use"')
    names, aliases = read_classnames(args.classes), {}
    if args.aliases:
        aliases = validate(Texts, read_json(args.aliases), f"{args.aliases} must hold {{class name: [alias, ...]}}")
    collection = Collection(names, args.out, context, args.per_class, args.batch_size, aliases, args.model)
    questions = collection.batches(0)
    models = Counter(model for progress in collection.progress.values() for model in progress.models)
    for model in sorted(models.keys() - {args.model}) if questions else ():
        said = "of %r are the sentences of %d classes; the others will be of %r"
        logger.warning(said, model, models[model], args.model)
    if args.dry_run:
        if questions:
            echo(f"{collection.prompt(questions[0])}\n")
        echo(f"requests: {len(questions)}, classes: {len(collection.unfinished())}; nothing was asked\n")
        return 0
    if questions:
        collect(collection, ChatClient(args).ask, args.tries)
    failed = collection.finish()
    num_classes = len(collection.classnames)
    echo(f"{args.out}: {num_classes - len(failed)} of {num_classes} classes have their sentences\n")
    for name, problem in failed.items():
        logger.warning("failed, and tried again by the same command: %s: %s", name, problem)
    return int(bool(failed))


class ChatClient:
    """Asks the model that the flags say, by the `openai` library, which asks again after failures that may pass.
    UserError without it, or without a key. The key is removed from every text that leaves this class: answers, errors.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self._key = args, read_key(args.endpoint, args.key_env)
        try:
            import openai  # takes a second to import, and `--dry-run` does not need it
        except ImportError as error:
            raise UserError("asking an endpoint needs the package openai: pip install 'openai>=1.56'") from error
        self._openai, theirs = openai, is_openai(args.endpoint)
        # OpenAI's newer models refuse the name that all other servers know
        tokens = "max_completion_tokens" if theirs else "max_tokens"
        given = {tokens: args.max_tokens, "temperature": args.temperature}
        self._options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        limits = openai.Timeout(args.timeout, connect=min(args.timeout, LONGEST_CONNECT))
        logging.getLogger(PASSING_LOG).setLevel(logging.INFO)
        # The library makes headers of these variables, such as the organisation: they are for OpenAI alone
        hidden = {} if theirs else {n: os.environ.pop(n) for n in [*os.environ] if n.startswith("OPENAI_")}
        try:
            self._client = openai.OpenAI(
                base_url=args.endpoint, api_key=self._key, timeout=limits, max_retries=args.retries
            )
        finally:
            os.environ.update(hidden)

    def ask(self, prompt: str) -> str:
        """The model's answer to one message.

        Raises:
            UserError: If a failure does not pass; without the exception of the library, which holds the key.
        """
        openai, timeout = self._openai, self.args.timeout
        try:
            completion = self._client.chat.completions.create(
                model=self.args.model, messages=[{"role": "user", "content": prompt}], **self._options
            )
            choice = completion.choices[0]
            if choice.finish_reason == "length":
                logger.warning("an answer was cut off: raise --max-tokens, or lower --batch-size")
            return self._without_key(choice.message.content or "")
        except openai.APITimeoutError as error:
            problem = f"no answer in {timeout:g} s: raise --timeout, or lower --batch-size"
            if type(error.__cause__).__name__ == "ConnectTimeout":
                problem = f"no connection in {min(timeout, LONGEST_CONNECT):g} s: is the address right?"
        except openai.APIConnectionError as error:
            problem = f"no connection: {error.__cause__ or error}"
        except openai.OpenAIError as error:
            problem = str(error)
        except (AttributeError, IndexError, TypeError, ValueError, RecursionError):
            problem = "what came is no chat completion"
        hint = "" if re.search(r"/v\d+/?$", self.args.endpoint) else "; does --endpoint have to end in /v1?"
        raise UserError(f"{self.args.endpoint}: {' '.join(self._without_key(problem).split())[:LONGEST_REASON]}{hint}")

    def _without_key(self, text: str) -> str:
        """A server's text with the key removed, since a server may repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint belongs to OpenAI and is encrypted, so that a key of OpenAI's may go there."""
    parts = urlsplit(endpoint)
    return parts.scheme == "https" and f".{parts.hostname}".endswith(f".{OPENAI}")


def read_key(endpoint: str, variable: str | None = None) -> str:
    """The key for an endpoint, from an environment variable; without a name, OpenAI alone gets `OPENAI_API_KEY`.

    Raises:
        UserError: If the endpoint is no plain URL, there is no key, it has characters that cannot be sent, or no
            variable is named for an endpoint that is not OpenAI's. The message never holds the key.
    """
    from pydantic import HttpUrl, TypeAdapter

    plain = False
    with suppress(ValueError):
        url = TypeAdapter(HttpUrl).validate_python(endpoint)
        (url.host or "").encode("idna")  # as it is looked up
        plain = endpoint.isprintable() and not (url.username or url.password or url.query)
    if not plain:  # what is wrong may be a secret in it: it is not repeated
        raise UserError(f"--endpoint must be a URL such as {ENDPOINT}, with no user, password or query")
    if variable is None and not is_openai(endpoint):
        raise UserError(
            f"{endpoint} is not https at {OPENAI}, so it does not get {OPENAI_KEY}: name the environment variable that "
            "holds its key with --key-env NAME (any text for a server that needs none)"
        )
    variable = OPENAI_KEY if variable is None else variable
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # the user may have given the key itself: it is not repeated
        raise UserError("--key-env takes the NAME of an environment variable in capitals, such as OPENAI_API_KEY")
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{variable} holds no key, or what no key has: set it, or name another one with --key-env")
    return key


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 if classes failed, 2 for a mistake of the user's."""
    return run_cli(lambda: describe(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
