"""Asks a chat endpoint. The only file that knows the `openai` library.

The library's client and `ChatClient` hold the secret key. It is removed from every text that leaves this file: answers,
log messages and errors.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pydantic import HttpUrl, TypeAdapter

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

ENDPOINT, MODEL = "https://api.openai.com/v1", "gpt-4o-mini"  # the defaults
OPENAI, OPENAI_KEY = "openai.com", "OPENAI_API_KEY"  # the only service that gets this key without being asked to

PASSING_LOG = "openai._base_client"  # where the library says that it asks again
LONGEST_CONNECT = 10.0  # seconds until a server that does not even take the connection counts as dead
LONGEST_REASON = 120  # how many characters of a server's message are shown to the user
SHORTEST_SECRET = 8  # a shorter key is for a server that needs none, and may be a word of an answer: it is not removed


class ChatClient:
    """Asks a model behind an OpenAI-compatible endpoint. The library asks again after failures that may pass.

    Args:
        endpoint: The base URL, up to and including `/v1`.
        timeout: Seconds of silence after which a question is asked again.
        retries: How often a question is asked again after a failure that may pass.
        max_tokens, temperature: Of an answer; None leaves it to the server.

    Raises UserError if the endpoint is not such a URL, or the `openai` library is missing.
    """

    def __init__(
        self, endpoint: str, model: str, key: str, timeout: float, retries: int,
        max_tokens: int | None = None, temperature: float | None = None,
    ) -> None:  # fmt: skip
        _check_endpoint(endpoint)
        try:
            import openai  # takes a second to import, and `--dry-run` does not need it
        except ImportError as error:
            raise UserError("asking an endpoint needs the package openai: pip install 'openai>=1.56'") from error
        self.endpoint, self.model, self.timeout = endpoint, model, timeout
        self._key, self._openai = key, openai
        theirs = is_openai(endpoint)
        # OpenAI's newer models refuse the name that all other servers know
        given = {"max_completion_tokens" if theirs else "max_tokens": max_tokens, "temperature": temperature}
        self._options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        limits = openai.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
        logging.getLogger(PASSING_LOG).setLevel(logging.INFO)
        # The library makes headers of these variables, such as the organisation: they are for OpenAI alone
        hidden = {} if theirs else {n: os.environ.pop(n) for n in [*os.environ] if n.startswith("OPENAI_")}
        try:
            self._client = openai.OpenAI(base_url=endpoint, api_key=key, timeout=limits, max_retries=retries)
        finally:
            os.environ.update(hidden)

    def ask(self, prompt: str) -> str:
        """The model's answer to one message.

        Raises UserError if a failure will not pass, or all tries have failed: without the exception of the library,
        which holds the request and so the key.
        """
        openai = self._openai
        try:
            completion = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], **self._options
            )
            choice = completion.choices[0]
            answer = self._without_key(choice.message.content or "")
            if choice.finish_reason == "length":
                said = "an answer was cut off: raise --max-tokens, or ask for fewer classes with --batch-size"
                logger.warning(said)
            return answer
        except openai.APITimeoutError as error:
            problem = f"no answer in {self.timeout:g} s: raise --timeout, or lower --batch-size"
            if type(error.__cause__).__name__ == "ConnectTimeout":
                problem = f"no connection in {min(self.timeout, LONGEST_CONNECT):g} s: is the address right?"
        except openai.APIConnectionError as error:
            problem = f"no connection: {error.__cause__ or error}"
        except openai.OpenAIError as error:
            problem = str(error)
        except (AttributeError, IndexError, TypeError, ValueError, RecursionError):
            problem = "what came is no chat completion"
        hint = "" if re.search(r"/v\d+/?$", self.endpoint) else "; does --endpoint have to end in /v1?"
        raise UserError(f"{self.endpoint}: {' '.join(self._without_key(problem).split())[:LONGEST_REASON]}{hint}")

    def _without_key(self, text: str) -> str:
        """A server's text with the key removed, since a server may repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text


def is_openai(endpoint: str) -> bool:
    """Whether an endpoint belongs to OpenAI and is encrypted, so that a key of OpenAI's may go there."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == OPENAI or host.endswith(f".{OPENAI}"))


def read_key(endpoint: str, variable: str | None = None) -> str:
    """The key for an endpoint, from an environment variable; without a name, OpenAI alone gets `OPENAI_API_KEY`.

    Raises UserError if there is no key, it has characters that cannot be sent, or no variable is named for an endpoint
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
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{variable} holds no key, or what no key has: set it, or name another one with --key-env")
    return key


def _check_endpoint(endpoint: str) -> None:
    with suppress(ValueError):
        url = TypeAdapter(HttpUrl).validate_python(endpoint)
        (url.host or "").encode("idna")  # as it is looked up
        if endpoint.isprintable() and not (url.username or url.password or url.query):
            return
    # What is wrong may be a secret in it: it is not repeated
    raise UserError(f"--endpoint must be a URL such as {ENDPOINT}, with no user, password or query")
