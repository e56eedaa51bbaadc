"""Asks a chat endpoint. The only file that knows the `openai` library.

The library's client and `ChatClient` hold the secret key. It is removed from every text that leaves this file: answers,
log messages and errors.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from ..utils.errors import UserError
from ..utils.schema import OpenPart

logger = logging.getLogger(__name__)

ENDPOINT, MODEL = "https://api.openai.com/v1", "gpt-4o-mini"  # the defaults
OPENAI, OPENAI_KEY = "openai.com", "OPENAI_API_KEY"  # the only service that gets this key without being asked to

PASSING_LOG = "openai._base_client"  # where the library says that it asks again
NO_SUCH_PAGE = (404, 405)  # the statuses of a wrong path
LONGEST_CONNECT = 10.0  # seconds until a server that does not even take the connection counts as dead
LONGEST_REASON = 120  # how many characters of a server's message are shown to the user
SHORTEST_SECRET = 8  # a shorter key is for a server that needs none, and may be a word of an answer: it is not removed


class _Message(OpenPart):
    """An answer; a refusal has no text."""

    content: str | None


class _Choice(OpenPart):
    """An answer and why it ended."""

    message: _Message
    finish_reason: Any = None


class _Completion(OpenPart):
    """A chat completion, as far as it is read."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


class ChatClient:
    """Asks a model behind an OpenAI-compatible endpoint. The library asks again after failures that may pass.

    Args:
        endpoint: The base URL, up to and including `/v1`.
        model: The model, as the endpoint names it.
        key: The secret key.
        timeout: Seconds of silence after which a question is asked again.
        retries: How often a question is asked again after a failure that may pass.
        max_tokens: How many tokens an answer may have; None leaves it to the server.
        temperature: How much chance there is in an answer, from 0 to 2; None leaves it to the server.

    Raises:
        UserError: If the endpoint is not such a URL, or the `openai` library is missing.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        key: str,
        timeout: float,
        retries: int,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        _check_endpoint(endpoint)
        try:
            import openai  # takes a second to import, and `--dry-run` does not need it
        except ImportError as error:
            raise UserError("asking an endpoint needs the package openai: pip install 'openai>=1.56'") from error
        self.endpoint, self.model, self.timeout = endpoint, model, timeout
        self._key, self._openai = key, openai
        # OpenAI's newer models refuse the name that all other servers know
        name = "max_completion_tokens" if is_openai(endpoint) else "max_tokens"
        given = {name: max_tokens, "temperature": temperature}
        self._options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        limits = openai.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
        logging.getLogger(PASSING_LOG).setLevel(logging.INFO)
        with _environment_for(endpoint):
            self._client = openai.OpenAI(base_url=endpoint, api_key=key, timeout=limits, max_retries=retries)

    def ask(self, prompt: str) -> str:
        """The model's answer to one message.

        Raises:
            UserError: If a failure will not pass, or all tries have failed. It is raised without the exception of the
                library, which holds the request and so the key.
        """
        body, problem = self._body(prompt)
        if not problem:
            try:
                choice = _Completion.model_validate(json.loads(body)).choices[0]
                if choice.finish_reason == "length":
                    said = "an answer was cut off: raise --max-tokens, or ask for fewer classes with --batch-size"
                    logger.warning(said)
                return self._without_key(choice.message.content or "")
            except (ValueError, RecursionError):
                problem = f"not a chat completion but {self._clear(body)!r}{self._hint_of_path()}"
        raise UserError(f"{self.endpoint}: {problem}") from None

    def _body(self, prompt: str) -> tuple[str, str]:
        """The body of the response to a message, and what went wrong, without the key; "" if nothing did."""
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], **self._options
            )
            return raw.http_response.text, ""
        except self._openai.APIStatusError as error:
            message = error.body.get("message") if isinstance(error.body, dict) else None
            said = self._clear(str(message or error.response.text or "no more said"))
            hint = self._hint_of_path() if error.status_code in NO_SUCH_PAGE else ""
            return "", f"status {error.status_code}: {said}{hint}"
        except self._openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                return "", f"no connection in {min(self.timeout, LONGEST_CONNECT):g} s: is the address right?"
            return "", f"no answer in {self.timeout:g} s: raise --timeout, or lower --batch-size"
        except self._openai.APIConnectionError as error:
            return "", f"no connection: {self._clear(str(error.__cause__ or error))}"
        except self._openai.OpenAIError as error:
            return "", self._clear(str(error))

    def _clear(self, text: str) -> str:
        """The first `LONGEST_REASON` characters of a server's message, on one line and without the key."""
        return " ".join(self._without_key(text).split())[:LONGEST_REASON]

    def _without_key(self, text: str) -> str:
        """A server's text with the key removed, since a server may repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text

    def _hint_of_path(self) -> str:
        """What may be wrong with the path of an endpoint that does not answer as a chat endpoint does."""
        base = self.endpoint.rstrip("/").removesuffix("/completions").removesuffix("/chat")
        better = base if re.search(r"/v\d", base) else f"{base}/v1"
        return f"; perhaps --endpoint should be {better}" if better != self.endpoint.rstrip("/") else ""


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint belongs to OpenAI and is encrypted, so that a key of OpenAI's may go there."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == OPENAI or host.endswith(f".{OPENAI}"))


def read_key(endpoint: str, variable: str | None = None) -> str:
    """Reads the key for an endpoint from an environment variable.

    Args:
        endpoint: Where the key will be sent.
        variable: The name of the variable; None means `OPENAI_API_KEY`, which only OpenAI gets in this way.

    Raises:
        UserError: If there is no key, it has characters that cannot be sent, or no variable is named for an endpoint
            that is not OpenAI's. The message never holds the key.
    """
    _check_endpoint(endpoint)
    if variable is None and not is_openai(endpoint):
        raise UserError(
            f"{endpoint} is not https at {OPENAI}, so it does not get {OPENAI_KEY}: name the environment variable that "
            "holds its key with --key-env NAME (any text for a server that needs none)"
        )
    variable = OPENAI_KEY if variable is None else variable
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # the user may have given the key itself: it is not repeated
        raise UserError("--key-env takes the NAME of an environment variable in capitals, such as OPENAI_API_KEY")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"no key: set {variable}, or name another variable with --key-env (any text for a free server)")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"the key in {variable} holds spaces, line ends or letters that no key has; set it anew")
    return key


@contextmanager
def _environment_for(endpoint: str) -> Iterator[None]:
    """Hides the variables `OPENAI_...` for a while, unless the endpoint is OpenAI's.

    The library takes headers from them when a client is made: organisation, project, and any others.
    """
    hidden = (
        {} if is_openai(endpoint) else {name: os.environ[name] for name in os.environ if name.startswith("OPENAI_")}
    )
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")  # as it is looked up; UnicodeError is a ValueError
        usable &= endpoint.isprintable()
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password or parts.query:  # these may hold secrets: not repeated
        raise UserError(f"--endpoint must be a URL such as {ENDPOINT}, with no user, password or query")
