"""The command `describe`, which generates class descriptions with a chat model."""

import argparse
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..utils.command_line import Parser, echo, number, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFile

ENDPOINT, MODEL = "https://api.openai.com/v1", "gpt-4o-mini"  # the defaults
OPENAI, OPENAI_KEY = "openai.com", "OPENAI_API_KEY"  # the default key is for this service only
RETRY_LOGGER = "openai._base_client"  # logs the retries of the library
CONNECT_TIMEOUT = 10.0  # seconds
MAX_REASON = 120  # characters of a server's message that are shown
MIN_SECRET = 8  # characters; a shorter key is a placeholder, which may occur in an answer and is not removed

logger = logging.getLogger(__name__)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("describe", "Generate class descriptions with a chat model, as a file for PROMPTS.DESCRIPTIONS.")
    parser.examples = (
        '--classes classes.txt --context "satellite photos of land use" --out land.json',
        '--classes classes.txt --context "photos of birds" --out birds.json --dry-run',
    )
    parser.failure = "a class lacks descriptions"
    add = parser.add_argument
    count = number(int, 1)
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
    """Run the command; return 1 if classes failed."""
    from ..features.prompts.collect import Collection, Texts, collect
    from ..features.tip import read_classnames  # slow imports
    from ..utils.reading import read_json, validate

    context = " ".join(args.context.split())
    if not context:
        raise UserError('--context is empty; describe the images, such as "satellite photos of land use"')
    names = read_classnames(args.classes)
    aliases = {}
    if args.aliases:
        aliases = validate(Texts, read_json(args.aliases), f"{args.aliases} must hold {{class name: [alias, ...]}}")
    collection = Collection(names, args.out, context, args.per_class, args.batch_size, args.model, aliases)
    batches = collection.batches(0)
    models = Counter(model for progress in collection.progress.values() for model in progress.models)
    for model in sorted(models.keys() - {args.model}) if batches else ():
        logger.warning("%s wrote sentences of %d classes, %s writes the rest", model, models[model], args.model)
    if args.dry_run:
        if batches:
            echo(f"{collection.prompt(batches[0])}\n")
        echo(f"requests: {len(batches)}, classes: {len(collection.unfinished())}; nothing was sent\n")
        return 0
    if batches:
        collect(collection, ChatClient(args).ask, args.tries)
    failed = collection.finish()
    num_classes = len(collection.classnames)
    echo(f"{args.out}: {num_classes - len(failed)} of {num_classes} classes are complete\n")
    for name, problem in failed.items():
        logger.warning("failed, run the same command to retry: %s: %s", name, problem)
    return int(bool(failed))


class ChatClient:
    """Client of a chat model, with the `openai` library, which retries temporary failures.

    The API key is removed from all answers and errors.

    Raises:
        UserError: If the library or the key is missing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._key = read_key(args.endpoint, args.key_env)
        try:
            import openai  # slow import, which --dry-run does not need
        except ImportError as error:
            raise UserError("describe needs the package openai; run: pip install 'openai>=1.56'") from error
        self._openai = openai
        official = is_openai(args.endpoint)
        # OpenAI's newer models reject the name that all other servers know
        tokens = "max_completion_tokens" if official else "max_tokens"
        options = {tokens: args.max_tokens, "temperature": args.temperature}
        self._options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        limits = openai.Timeout(args.timeout, connect=min(args.timeout, CONNECT_TIMEOUT))
        logging.getLogger(RETRY_LOGGER).setLevel(logging.INFO)
        # The library sends these variables as headers, such as the organisation. They are for OpenAI only
        hidden = {} if official else {n: os.environ.pop(n) for n in [*os.environ] if n.startswith("OPENAI_")}
        try:
            server = {"base_url": args.endpoint, "api_key": self._key}
            self._client = openai.OpenAI(**server, timeout=limits, max_retries=args.retries)
        finally:
            os.environ.update(hidden)

    def ask(self, prompt: str) -> str:
        """Return the model's answer to one message.

        Raises:
            UserError: If the request fails. The exception of the library is not chained, because it contains the key.
        """
        openai = self._openai
        try:
            completion = self._client.chat.completions.create(
                model=self.args.model, messages=[{"role": "user", "content": prompt}], **self._options
            )
            choice = completion.choices[0]
            if choice.finish_reason == "length":
                logger.warning("an answer was cut off: raise --max-tokens, or lower --batch-size")
            return self._without_key(choice.message.content or "")
        except openai.APIConnectionError as error:  # also for a time-out
            problem = f"no answer ({error.__cause__ or error}); check the address, or raise --timeout"
        except openai.OpenAIError as error:
            problem = str(error)
        except (AttributeError, IndexError, TypeError, ValueError, RecursionError):
            problem = "the response is no chat completion"
        hint = "" if re.search(r"/v\d+/?$", self.args.endpoint) else "; --endpoint may have to end in /v1"
        raise UserError(f"{self.args.endpoint}: {' '.join(self._without_key(problem).split())[:MAX_REASON]}{hint}")

    def _without_key(self, text: str) -> str:
        """Remove the key from the text of a server."""
        return text.replace(self._key, "[key]") if len(self._key) >= MIN_SECRET else text


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint is an encrypted one of OpenAI, which may get OpenAI's key."""
    parts = urlsplit(endpoint)
    return parts.scheme == "https" and f".{parts.hostname}".endswith(f".{OPENAI}")


def read_key(endpoint: str, variable: str | None = None) -> str:
    """Read the key for an endpoint from an environment variable, by default `OPENAI_API_KEY` for OpenAI.

    Raises:
        UserError: If the endpoint is no plain URL, the key is missing or has invalid characters, or no variable is
            named for another endpoint than OpenAI's. The message never contains the key.
    """
    from ..utils.reading import is_plain_url  # slow to import

    if not is_plain_url(endpoint):  # the message does not repeat it, as it may contain a secret
        raise UserError(f"--endpoint must be a URL such as {ENDPOINT}, with no user, password or query")
    if variable is None and not is_openai(endpoint):
        advice = "name the variable of its key with --key-env NAME (any text for a server without keys)"
        raise UserError(f"{OPENAI_KEY} is only for https at {OPENAI}, got {endpoint}; {advice}")
    variable = OPENAI_KEY if variable is None else variable
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # may be the key itself, so that the message does not repeat it
        raise UserError("--key-env must be the NAME of an environment variable in capitals, such as MY_API_KEY")
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{variable} holds no key, or invalid characters; set it, or choose another one with --key-env")
    return key


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code, 1 if classes failed."""
    return run_cli(lambda: describe(parse_arguments(arguments)))
