"""Label Studio with recorded answers of version 1.23.2, and requests in the form that it sends."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from serving import TestClient, client_of
from studio import configuration, result

CLASSES = "zero one two three four eight nine".split()
TOKEN, ACCESS = "header.refresh.signature", "header.access.signature"
PROJECT = 3
UPLOADS = f"/data/upload/{PROJECT}"
LARGEST_ID = 2**31 - 1
READ_PROJECT = ("GET", f"/api/projects/{PROJECT}/")


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not met in {seconds} s"
        time.sleep(0.05)


class Recorded(ThreadingHTTPServer):
    """Label Studio with the answers of version 1.23.2, for one project whose state a test changes.

    Attributes:
        files: Content of each uploaded file by path.
        tasks: Tasks with annotations by number.
        config: Labeling configuration.
        version: Model version that the project shows.
        webhook: Webhook of the project, as Label Studio creates it.
        refuses: Whether it answers 403 to requests for tasks.
        requests: Method and path of all requests, from the moment when their answer is fixed.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files, self.tasks, self.config, self.version = {}, {}, configuration(*CLASSES), "hegraph"
        self.webhook = {"id": 9, "url": "http://127.0.0.1/webhook", "headers": {}}
        self.requests, self.versions, self.next, self.refuses = [], [], 100, False

    def add(self, *files: Path) -> list[int]:
        """Import images; returns the numbers of their tasks, 11 for the first."""
        numbers = [*range(len(self.tasks) + 11, len(self.tasks) + 11 + len(files))]
        for number, file in zip(numbers, files):
            self.files[path := f"{UPLOADS}/{file.name}"] = file.read_bytes()
            self.tasks[number] = {"id": number, "data": {"scan": path}, "annotations": []}
        return numbers

    def annotate(self, task: int, *labels: str, cancelled: bool = False) -> dict:
        """Submit an annotation; returns the request of the webhook."""
        self.next += 1
        stamp = f"2026-11-30T14:11:21.{self.next}Z"
        annotation = {"id": self.next, "result": result(*labels), "was_cancelled": cancelled, "updated_at": stamp}
        self.tasks[task]["annotations"].append(annotation)
        return self.event("ANNOTATION_CREATED", annotation=annotation | {"task": task, "project": PROJECT})

    def event(self, action: str, **content: object) -> dict:
        return {"action": action, "project": {"id": PROJECT, "title": "Digits", "label_config": self.config}, **content}


class Handler(BaseHTTPRequestHandler):
    server: Recorded

    def answer(self) -> None:
        server, url = self.server, urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if not url.path.startswith(("/api/", "/data/")):
            return self.send(404, b"<html>")
        if url.path == "/api/token/refresh":
            right = body == {"refresh": TOKEN}
            return self.send(200, {"access": ACCESS}) if right else self.send(401, {"detail": "Token is invalid"})
        if self.headers["authorization"] != f"Bearer {ACCESS}":
            return self.send(401, {"detail": "Authentication credentials were not provided."})
        if url.path in server.files:
            return self.send(200, server.files[url.path])
        if url.path == "/data/upload/cut.png":
            self.close_connection = True
            return self.send(200, b"half", length=8)
        if url.path == "/data/upload/redirect.png":
            server.requests.append((self.command, self.path))
            self.send_response(302)
            self.send_header("location", f"{server.url}{next(iter(server.files))}")
            return self.end_headers()
        if url.path == f"/api/projects/{PROJECT}/model-versions":
            return self.send(200, dict.fromkeys(server.versions, 1))
        if url.path == f"/api/projects/{PROJECT}/":
            server.version = body.get("model_version", server.version)
            return self.send(200, {"id": PROJECT, "label_config": server.config})
        if url.path == "/api/tasks" and not server.refuses:
            values = {name: value for name, [value] in parse_qs(url.query).items()}
            if "query" not in values:
                return self.send(200, {"total": len(server.tasks), "tasks": []})
            selected, size = json.loads(values["query"])["selectedItems"], int(values["page_size"])
            numbers = server.tasks if selected["all"] else selected["included"]
            if any(number > LARGEST_ID for number in numbers):  # PostgreSQL: integer out of range
                return self.send(500, {"detail": "integer out of range"})
            tasks = [task for number, task in server.tasks.items() if number in numbers and task["annotations"]]
            return self.send(200, {"total": len(tasks), "tasks": tasks[size * (int(values["page"]) - 1) :][:size]})
        if url.path.startswith("/api/webhooks/"):
            server.webhook |= body
            return self.send(200, [server.webhook])
        if url.path == "/api/current-user/whoami":
            return self.send(200, {"id": 1})
        return self.send(403 if server.refuses else 404, {"detail": "Not found."})

    do_GET = do_POST = do_PATCH = answer

    def send(self, status: int, content: object, length: int = 0) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.requests.append((self.command, self.path))
        self.send_response(status)
        self.send_header("content-length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def connected(recorded: Recorded, folder: Path, token: str = "") -> Iterator[TestClient]:
    """Client of a server that is connected to Label Studio."""
    settings = {"token": token, "learn": True, "label_studio": recorded.url, "label_studio_token": TOKEN}
    before = readings(recorded)
    with client_of(folder, **settings) as client:
        client.auth = ("hegraph", token) if token else None
        answer = client.post("/setup", json=setup_request(recorded))
        assert answer.json()["model_version"].startswith("model 20"), answer.text
        wait_for(lambda: readings(recorded) > before)  # later annotations are not in the first reading
        yield client


def readings(recorded: Recorded) -> int:
    """Number of requests for tasks with annotations."""
    return sum(path.startswith("/api/tasks?") for _, path in recorded.requests)


def setup_request(recorded: Recorded, **changes: object) -> dict:
    return {
        "project": f"{PROJECT}.1796047879", "schema": recorded.config, "hostname": "http://localhost:8080",
        "access_token": "84ed30933f9f82be9f6affec91507ba11c250d98", "extra_params": None, **changes,
    }  # fmt: skip


def predictions(client: TestClient, recorded: Recorded) -> list[dict]:
    """Predictions of all tasks."""
    tasks = [task | {"project": PROJECT, "predictions": [], "meta": {}} for task in recorded.tasks.values()]
    request = {"tasks": tasks, "project": f"{PROJECT}.1796047879", "label_config": recorded.config}
    answer = client.post("/predict", json=request | {"params": {"login": None, "password": None, "context": None}})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def labels(client: TestClient) -> Counter:
    """Number of training images by class."""
    return Counter(name for example in client.get("/v1/examples").json()["examples"] for name in example["labels"])


def changes(client: TestClient, event: dict) -> Counter:
    """Send the event of a webhook; returns the change of `labels`."""
    before = labels(client)
    assert client.post("/webhook", json=event).status_code == 200
    wait_for(lambda: labels(client) != before)
    after = labels(client)
    after.subtract(before)
    return Counter({name: number for name, number in after.items() if number})


def process(client: TestClient, recorded: Recorded, event: dict) -> None:
    """Send the event of a webhook, and another one whose processing begins when that of the first has ended."""
    for each in (event, recorded.event("PROJECT_UPDATED")):
        before = recorded.requests.count(READ_PROJECT)
        assert client.post("/webhook", json=each).status_code == 200
        wait_for(lambda before=before: recorded.requests.count(READ_PROJECT) > before)
