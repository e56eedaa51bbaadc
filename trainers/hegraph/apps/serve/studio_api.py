"""API of a Label Studio server, through which annotations and images are read."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from ...datasets.images import MAX_BYTES
from ...utils.errors import UserError
from ...utils.reading import is_plain_url
from ...utils.text import shown

FILES = ("/data/upload/", "/data/local-files/")  # paths of task files in Label Studio
BUSY = (500, 502, 503)  # answers of a busy Label Studio: with SQLite, "database is locked" is a 500
TIMEOUT = 30  # seconds of a request to Label Studio
PAGE = 100  # tasks of a request to Label Studio
HAS_ANNOTATION = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
ANNOTATED = {"conjunction": "and", "items": [HAS_ANNOTATION]}  # filters of the Data Manager
URL, STATUS = "label_studio.url", "label_studio.status"  # codes of errors


class LabelStudio:
    """API of a Label Studio server.

    Args:
        url: Address of the server.
        token: Personal access token, which is exchanged for access tokens of some minutes, or a legacy token.

    Raises:
        UserError: If the address is no plain URL. Of all methods: if the server does not answer as expected.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._header = ""
        if not is_plain_url(url):  # the message does not repeat it, as it may contain a password
            expected = "expected a URL of Label Studio such as http://localhost:8080"
            raise UserError(f"{expected}, with no user, password, query or fragment", URL)
        self._session = requests.Session()
        self._session.auth = self._authorize  # a function, so that ~/.netrc is not read
        again = Retry(2, backoff_factor=0.5, status_forcelist=BUSY, allowed_methods=None, raise_on_status=False)
        self._session.mount(self.url, HTTPAdapter(max_retries=again))

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            return self._session.request(
                method, self.url + path, allow_redirects=False, stream=True, timeout=TIMEOUT, **arguments
            )
        except requests.RequestException as error:
            problem = f"cannot reach Label Studio at {self.url}: {_reason(error)}"
            raise UserError(problem, URL) from error

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send a request, with a new access token if the last one has expired."""
        response = self._send(method, path, **arguments)
        if response.status_code == 401:
            self._header = ""
            self._header = self._new_header()
            response = self._send(method, path, **arguments)
        if response.status_code == 401:
            problem = "expected a personal access token (Account & Settings)"
            raise UserError(f"Label Studio at {self.url} refused the token; {problem}", "label_studio.token")
        if not response.ok or response.is_redirect:
            problem = f"Label Studio at {self.url} answered {response.status_code} to {method} {path}"
            raise UserError(problem, STATUS)
        return response

    def _new_header(self) -> str:
        if "." not in self._token:  # a legacy token
            return f"Token {self._token}"
        response = self._send("POST", "/api/token/refresh", json={"refresh": self._token})
        return f"Bearer {response.json()['access']}" if response.ok else ""

    def json(self, method: str, path: str, **arguments: Any) -> Any:
        """Answer to a request as JSON."""
        try:
            return self.request(method, path, **arguments).json()
        except requests.RequestException as error:
            raise UserError(f"expected Label Studio at {self.url}, got another server", URL) from error

    def annotated_tasks(self, project: int, numbers: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Tasks of a project that have annotations, or those with some numbers among them."""
        selected = {"all": True, "excluded": []} if numbers is None else {"all": False, "included": [*numbers]}
        query = json.dumps({"filters": ANNOTATED, "selectedItems": selected})
        values = {"project": project, "fields": "all", "query": query, "page_size": PAGE}
        tasks = list[dict[str, Any]]()
        while True:
            answer = self.json("GET", "/api/tasks", params=values | {"page": len(tasks) // PAGE + 1})
            tasks += answer["tasks"]
            if not answer["tasks"] or len(tasks) >= answer["total"]:
                return tasks

    def check_tasks(self, project: int) -> None:
        """Check that the tasks of a project can be read."""
        self.json("GET", "/api/tasks", params={"project": project, "page_size": 1})

    def file(self, address: Any) -> bytes:
        """Content of a task file; UserError for any other address, and for a large file."""
        with self.request("GET", self.path(address)) as response:
            try:
                content = response.raw.read(MAX_BYTES + 1, decode_content=True)
            except HTTPError as error:
                raise UserError(f"{address}: the download broke off: {type(error).__name__}", URL) from error
        if len(content) > MAX_BYTES:
            raise UserError(f"{address}: expected at most {MAX_BYTES >> 20} MB")
        return content

    def path(self, address: Any) -> str:
        """Path and query of a task file; UserError for an address that is not one of Label Studio's files."""
        with suppress(ValueError):
            url = urlsplit(address if isinstance(address, str) else "")
            base = urlsplit(self.url)
            path = f"{url.path}?{url.query}".rstrip("?")
            same = (url.scheme, url.netloc) in (("", ""), (base.scheme, base.netloc))
            inside = url.path.removeprefix(base.path).startswith(FILES)
            if same and inside and ".." not in re.split(r"[/\\=&]", unquote(path)):
                return path.removeprefix(base.path)
        problem = f"expected a file of Label Studio at {self.url}, such as {FILES[0]}1/image.png, got {shown(address)}"
        raise UserError(problem, "label_studio.file")


def _reason(error: requests.RequestException) -> str:
    """Why a request was not answered, in words."""
    if isinstance(error, requests.Timeout):
        return f"it did not answer within {TIMEOUT} s"
    if isinstance(error, requests.ConnectionError):
        return "it refuses the connection; start it, or correct the address"
    return type(error).__name__
