"""Asks a chat endpoint, and asks again after a failure that may pass. The only file that knows the `openai` library.

The library's client and `ChatClient` hold the secret key. It is removed from every text that leaves this file: answers,
log messages and errors.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

ENDPOINT, MODEL = "https://api.openai.com/v1", "gpt-4o-mini"  # the defaults

# Seconds to wait between tries. They double from one try to the next; if a server's Retry-After is longer, it counts.
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
LONGEST_RETRY_AFTER = 600.0  # the command ends if a server asks for more, as it may when a daily quota is used up
PASSING = (408, 409, 429)  # the statuses of failures that may pass, beside all of 5xx
USED_UP = "insufficient_quota"  # the code of a status 429 that will not pass
LONGEST_REASON = 200  # how many characters of a server's message are shown to the user
SHORTEST_SECRET = 8  # a shorter key is for a server that needs none, and may be a word of an answer: it is not removed


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer.

    Attributes:
        reason: The reason, to be shown to the user; it does not hold the key.
        passing: Whether the same question may have an answer later.
        wait: Seconds that the server asks to wait before that.
    """

    reason: str
    passing: bool
    wait: float = 0.0


class ChatClient:
    """Asks a model behind an OpenAI-compatible endpoint.

    Args:
        endpoint: The base URL, up to and including `/v1`.
        model: The model, as the endpoint names it.
        key: The secret key.
        timeout: Seconds of silence after which a question is asked again.
        retries: How often a question is asked again after a failure that may pass.

    Raises:
        UserError: If the endpoint is not such a URL, or the `openai` library is missing.
    """

    def __init__(self, endpoint: str, model: str, key: str, timeout: float, retries: int) -> None:
        _check_endpoint(endpoint)
        try:
            import openai  # takes a second to import, and `--dry-run` does not need it
        except ImportError as error:
            raise UserError("asking an endpoint needs the package openai: pip install 'openai>=1.56'") from error
        self.endpoint, self.model, self.timeout, self.retries = endpoint, model, timeout, retries
        self._key, self._openai = key, openai
        # We retry ourselves: the library ignores a Retry-After of more than a minute, and does not say that it retries
        self._client = openai.OpenAI(base_url=endpoint, api_key=key, timeout=timeout, max_retries=0)

    def ask(self, prompt: str) -> str:
        """The model's answer to one message.

        Raises:
            UserError: If a failure will not pass, the server asks to wait for too long, or all tries have failed.
        """
        retry = 0
        while True:
            answer = self._try(prompt)
            if isinstance(answer, str):
                return answer
            # Errors are raised here and not in `_try`, where an exception of the library, which holds the request and
            # so the key, would be shown as their cause
            if not answer.passing:
                raise UserError(f"{self.endpoint}: {answer.reason}")
            wait = max(min(FIRST_WAIT * 2**retry, LONGEST_WAIT), answer.wait)
            if wait > LONGEST_RETRY_AFTER:
                raise UserError(f"{self.endpoint}: {answer.reason}; it asks to wait {wait:.0f} s")
            if retry == self.retries:
                raise UserError(f"{self.endpoint}: {answer.reason}, after {self.retries + 1} tries")
            logger.warning("%s; asking again in %.3g s", answer.reason, wait)
            time.sleep(wait)
            retry += 1

    def _try(self, prompt: str) -> str | Failure:
        """Asks once; returns the answer, or why there is none."""
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": prompt}]
            )
            body = raw.http_response.text
        except self._openai.APIStatusError as error:
            message = error.body.get("message") if isinstance(error.body, dict) else None
            reason = f"status {error.status_code}: {self._clear(str(message or error.response.text or 'no more said'))}"
            may_pass = error.status_code in PASSING or error.status_code >= 500
            return Failure(reason, may_pass and error.code != USED_UP, retry_after(error.response.headers))
        except self._openai.APITimeoutError:
            return Failure(f"no answer in {self.timeout:g} s", passing=True)
        except self._openai.APIConnectionError as error:
            return Failure(f"no connection: {self._clear(str(error.__cause__ or error))}", passing=True)
        except self._openai.OpenAIError as error:
            return Failure(self._clear(str(error)), passing=False)
        return self._read(body)

    def _read(self, body: str) -> str | Failure:
        """The text of a chat completion, or a failure if the body of a response is something else."""
        try:
            text = json.loads(body)["choices"][0]["message"]["content"] or ""  # a refusal has none
        except (ValueError, RecursionError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            reason = f"not a chat completion but {self._clear(body)!r}; does --endpoint end in /v1?"
            return Failure(reason, passing=True)
        return self._without_key(text)

    def _clear(self, text: str) -> str:
        """The first `LONGEST_REASON` characters of a server's message, on one line and without the key."""
        return " ".join(self._without_key(text).split())[:LONGEST_REASON]

    def _without_key(self, text: str) -> str:
        """A server's text with the key removed, since a server may repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text


def read_key(variable: str) -> str:
    """Reads the key from an environment variable.

    Args:
        variable: The name of the variable.

    Raises:
        UserError: If there is no key, or it has characters that cannot be sent. The message never holds the key.
    """
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # the user may have given the key itself: it is not repeated
        raise UserError("--key-env takes the NAME of an environment variable in capitals, such as OPENAI_API_KEY")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"no key: set {variable}, or name another variable with --key-env (any text for a free server)")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"the key in {variable} holds spaces, line ends or letters that no key has; set it anew")
    return key


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a response asks to wait; 0 if it does not ask.

    Args:
        headers: The headers of the response. `Retry-After` holds seconds or a date, `Retry-After-Ms` milliseconds.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, moment.timestamp() - time.time())


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password or parts.query:  # these may hold secrets: not repeated
        raise UserError(f"--endpoint must be a URL such as {ENDPOINT}, with no user, password or query")
