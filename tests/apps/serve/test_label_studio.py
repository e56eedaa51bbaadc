"""Label Studio: requests in the form that version 1.23.2 sends, and the real Label Studio in the slow tests."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from serving import Client, TestClient, client_of, form, free_port, serving
from studio import Studio, configuration, executable, result, running

from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.serve import label_studio as module
from trainers.hegraph.apps.serve.access import sent_token
from trainers.hegraph.apps.serve.label_studio import LabelStudio
from trainers.hegraph.models.folder import load_model

CLASSES = "zero one two three four eight nine".split()
TOKEN, ACCESS = "header.refresh.signature", "header.access.signature"
SECRET = "a-long-secret-of-the-tests"
PROJECT = 3
UPLOADS = f"/data/upload/{PROJECT}"
READ_PROJECT = ("GET", f"/api/projects/{PROJECT}/")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not met in {seconds} s"
        time.sleep(0.05)


# Recorded answers


class Recorded(ThreadingHTTPServer):
    """Label Studio with the answers of version 1.23.2, for one project whose state a test changes.

    Attributes:
        files: Content of each uploaded file by path.
        tasks: Tasks with annotations by number.
        config: Labeling configuration.
        version: Model version that the project shows.
        webhook: Webhook of the project, as Label Studio creates it.
        refuses: Whether it answers 403 to requests for tasks.
        requests: Method and path of all requests.
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
        server.requests.append((self.command, self.path))
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
            selected, size = json.loads(values["query"])["selectedItems"], int(values["page_size"])
            numbers = server.tasks if selected["all"] else selected["included"]
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
        self.send_response(status)
        self.send_header("content-length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with Recorded() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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


# Predictions


def test_predictions_have_choices_with_probabilities(recorded, folder, scans):
    recorded.add(*scans.files)
    with connected(recorded, folder) as client:
        rows = [row["result"][0] for row in predictions(client, recorded)]
    assert all(row | {"value": 0, "score": 0} == result()[0] | {"value": 0, "score": 0} for row in rows)
    choices = [row["value"]["choices"] for row in rows]
    right = [choice == [label] for choice, label in zip(choices, scans.labels) if label in CLASSES]
    assert sum(right) > 0.8 * len(right)
    assert all(0 < row["score"] <= 1 for row in rows)


def test_scores_have_the_order_of_suggest(recorded, folder, scans):
    recorded.add(*scans.files)
    with connected(recorded, folder) as client:
        scores = [row["score"] for row in predictions(client, recorded)]
        suggestions = client.post("/v1/suggest/files?n=40", files=form(*scans.files)).json()["suggestions"]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    assert [f"{number}.png" for number in order] == [each["path"] for each in suggestions]
    assert (min(scores), max(scores)) == (0, 1 - 1 / 40)


def test_new_predictions_are_shown(recorded, folder, scans):
    recorded.add(*scans.files[:3])
    with connected(recorded, folder) as client:
        [version] = {row["model_version"] for row in predictions(client, recorded)}
        recorded.versions.append(version)
        wait_for(lambda: recorded.version == version)


def test_number_of_features_in_memory_is_limited(recorded, folder, scans, monkeypatch):
    monkeypatch.setattr(module, "MAX_FEATURES", 2)
    recorded.add(*scans.files[:3])
    with connected(recorded, folder) as client:
        first = predictions(client, recorded)
        assert [row["score"] for row in predictions(client, recorded)] == [row["score"] for row in first]
    assert all(row["result"] for row in first)
    assert [sum(path == file for _, path in recorded.requests) for file in recorded.files] == [2, 1, 1]


def test_changed_address_is_encoded_again(recorded, folder, scans):
    tasks = recorded.add(*scans.files[:2])
    with connected(recorded, folder) as client:
        first, second = predictions(client, recorded)
        recorded.tasks[tasks[0]]["data"] = recorded.tasks[tasks[1]]["data"]
        changed, _ = predictions(client, recorded)
    assert changed["result"] == second["result"] != first["result"]


def test_unreadable_image_has_no_choice(recorded, folder, scans):
    recorded.add(*scans.files[:3])
    recorded.files[f"{UPLOADS}/0.png"] = b"no image"
    recorded.tasks[13]["data"] = {"scan": "http://evil.example/data/upload/2.png"}
    with connected(recorded, folder) as client:
        counts = [len(row["result"]) for row in predictions(client, recorded)]
    assert counts == [0, 1, 0]


def test_several_labels_are_predicted_and_learned(recorded, own_model, scans):
    recorded.config = configuration(*CLASSES, "odd", "even", choice="multiple")
    tasks = recorded.add(*scans.files[12:24])
    with connected(recorded, own_model(several=True)) as client:
        rows = predictions(client, recorded)
        answers = client.post("/v1/predict/files", files=form(*scans.files[12:24])).json()["predictions"]
        choices = [{name for item in row["result"] for name in item["value"]["choices"]} for row in rows]
        assert choices == [{each["class"] for each in answer["top"]} for answer in answers]
        assert sorted(row["score"] for row in rows) == [number / 12 for number in range(12)]
        assert changes(client, recorded.annotate(tasks[0], "one", "odd")) == {"one": 1, "odd": 1}
        assert changes(client, recorded.annotate(tasks[0], "odd")) == {"one": -1}


# Annotations


def test_annotations_change_the_model(recorded, folder, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        first = predictions(client, recorded)[0]["model_version"]
        assert changes(client, recorded.annotate(task, "three")) == {"three": 1}
        assert predictions(client, recorded)[0]["score"] == 1
        assert predictions(client, recorded)[0]["model_version"] != first
        assert changes(client, recorded.annotate(task, "four")) == {"three": -1, "four": 1}
        [_, last] = recorded.tasks[task]["annotations"]
        del recorded.tasks[task]["annotations"][1]
        event = recorded.event("ANNOTATIONS_DELETED", annotations=[{"id": last["id"]}])
        assert changes(client, event) == {"three": 1, "four": -1}
        del recorded.tasks[task]
        assert changes(client, recorded.event("TASKS_DELETED", tasks=[{"id": task}])) == {"three": -1}


def test_new_choices_become_classes(recorded, folder):
    with connected(recorded, folder) as client:
        recorded.config = configuration(*CLASSES, "letter")
        client.post("/webhook", json=recorded.event("PROJECT_UPDATED"))
        wait_for(lambda: "letter" in client.get("/v1/model").json()["classes"])


@pytest.mark.parametrize("size", ["BATCH", "PAGE"])
def test_training_reads_all_annotations(recorded, folder, scans, monkeypatch, size):
    monkeypatch.setattr(module, size, 2)
    tasks = recorded.add(*scans.files[20:23])
    with connected(recorded, folder) as client:
        before = labels(client)
        for task in tasks:
            recorded.annotate(task, "two")
        client.post("/webhook", json=recorded.event("START_TRAINING"))
        wait_for(lambda: labels(client) == before + Counter(two=3))


@pytest.mark.parametrize("early_version", [False, True])
def test_restart_knows_the_images_of_annotations(recorded, folder, scans, early_version):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        changes(client, recorded.annotate(task, "three"))
        before = labels(client)
    if early_version:
        path = folder.with_name(f".{folder.name}.label_studio.json")
        example = json.loads(path.read_text())[str(PROJECT)][str(task)]
        path.write_text(json.dumps({PROJECT: {task: {"example": example, "annotations": [101]}}}))
    recorded.tasks[task]["annotations"] = []
    with connected(recorded, folder) as client:
        wait_for(lambda: labels(client) == before - Counter(["three"]))


def test_change_is_read_again_after_an_error(recorded, folder, scans):
    tasks = recorded.add(*scans.files[20:22])
    with connected(recorded, folder) as client:
        changes(client, recorded.annotate(tasks[0], "three"))
        before, recorded.refuses = labels(client), True
        process(client, recorded, recorded.annotate(tasks[0], "two"))
        assert labels(client) == before
        recorded.refuses = False
        client.post("/webhook", json=recorded.annotate(tasks[1], "two"))
        wait_for(lambda: labels(client) == before + Counter(two=2) - Counter(["three"]))


def test_image_of_another_task_stays(recorded, folder, scans):
    tasks = recorded.add(*scans.files[20:21] * 2)
    with connected(recorded, folder) as client:
        before = labels(client)
        for task in tasks:
            process(client, recorded, recorded.annotate(task, "three"))
        for task, count in zip(tasks, (1, 0)):
            recorded.tasks[task]["annotations"] = []
            process(client, recorded, recorded.event("ANNOTATIONS_DELETED", annotations=[{"id": 1}]))
            assert labels(client) == before + Counter(three=count)


@pytest.mark.parametrize("given", [("one", "zero"), ()], ids=["two labels", "no label"])
def test_unusable_annotation_leaves_others(recorded, folder, scans, given):
    tasks, support_set = recorded.add(*scans.files[20:22]), load_model(folder).support_set
    before = support_set.counts[support_set.names.index("two")]
    recorded.annotate(tasks[0], *given)
    recorded.annotate(tasks[1], "two")
    with connected(recorded, folder) as client:
        wait_for(lambda: labels(client)["two"] == before + 1)


# Requests that are refused


@pytest.mark.parametrize("submitted", [True, False], ids=["skipped", "forged"])
def test_skipped_and_forged_annotations_are_not_learned(recorded, folder, scans, submitted):
    tasks = recorded.add(*scans.files[20:22])
    with connected(recorded, folder) as client:
        event = recorded.annotate(tasks[0], "nine", cancelled=submitted)
        if not submitted:
            recorded.tasks[tasks[0]]["annotations"] = []
        client.post("/webhook", json=event)
        assert changes(client, recorded.annotate(tasks[1], "two")) == {"two": 1}


def test_project_that_is_not_connected_is_ignored(recorded, folder, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        event = recorded.annotate(task, "two")
        before = len(recorded.requests)
        assert client.post("/webhook", json=event | {"project": {"id": 77}}).status_code == 200
        assert changes(client, event) == {"two": 1}
        assert not any("77" in path for _, path in recorded.requests[before:])


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("<View><Image", "damaged"),
        ("<View/>", "expected <Image"),
        ('<View><Text name="t"/><Choices name="c" toName="t"/></View>', "expected <Image"),
        (configuration(*CLASSES, choice="multiple"), "single"),
    ],
)
def test_unsuitable_configurations_are_refused(recorded, folder, config, word):
    with connected(recorded, folder) as client:
        answer = client.post("/setup", json=setup_request(recorded, schema=config))
    assert answer.status_code == 422
    assert word in answer.json()["error"]


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd", "/etc/passwd", "http://evil.example/data/upload/1/a.png", "//evil.example/data/upload/a",
        "http://127.0.0.1@evil.example/data/upload/a.png", "ftp://127.0.0.1/data/upload/1/a.png",
        "https://127.0.0.1:8080/data/upload/1/a.png", "http://127.0.0.1:9/data/upload/1/a.png", "http://[/data/upload/a",
        "/data/upload/../../api/projects", "/data/upload/%2e%2e/%2e%2e/api/token", "/data/upload/..%2f..%2fapi",
        "/data/upload/..\\..\\api", "\\data\\upload\\a.png", "/data/local-files/?d=../../etc/passwd",
        "/api/users", "data/upload/1/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA", "", None, 3,
        ["/data/upload/a"],
    ],
)  # fmt: skip
def test_addresses_are_refused(refused, address):
    with refused("label_studio.file"):
        LabelStudio("http://127.0.0.1:8080", TOKEN).path(address)


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("http://host:8080", "/data/upload/1/a%20b.png", "/data/upload/1/a%20b.png"),
        ("http://host:8080/", "http://host:8080/data/upload/1/a.png", "/data/upload/1/a.png"),
        ("http://host/studio", "/studio/data/upload/1/a..b.png", "/data/upload/1/a..b.png"),
        ("http://host", "/data/local-files/?d=scans/a.png", "/data/local-files/?d=scans/a.png"),
    ],
)
def test_task_files_are_accepted(url, address, path):
    assert LabelStudio(url, TOKEN).path(address) == path


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("redirect.png", "label_studio.status", "302"),
        ("cut.png", "label_studio.url", "broke off"),
        ("large.png", "", "at most"),
    ],
)
def test_answers_without_the_file_are_refused(recorded, scans, refused, monkeypatch, name, code, word):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    recorded.add(scans.files[0])
    recorded.files["/data/upload/large.png"] = bytes(1001)
    with refused(code, word):
        LabelStudio(recorded.url, TOKEN).file(f"/data/upload/{name}")


# Tokens


def test_password_is_the_token(recorded, folder):
    with connected(recorded, folder, SECRET) as client:
        assert client.get("/v1/model", auth=("anybody", "wrong")).status_code == 401
        assert client.get("/v1/model", auth=("anybody", SECRET)).status_code == 200


@pytest.mark.parametrize("header", ["", "Basic", "Basic %%%", "Basic YQ==", f"Basic {SECRET}", f"Token {SECRET}"])
def test_damaged_tokens_are_empty(header):
    assert sent_token(header) == b""


def test_webhook_gets_the_token(recorded, folder):
    with connected(recorded, folder, SECRET) as client:
        wait_for(lambda: recorded.webhook["headers"] == {"Authorization": f"Bearer {SECRET}"})
        answer = client.post("/webhook", auth=None, headers=recorded.webhook["headers"], json=recorded.event("X"))
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("url", "token", "code"),
    [
        ("{}", "header.wrong.signature", "label_studio.token"),
        ("{}", "84ed30933f9f82be9f6affec91507ba11c250d98", "label_studio.token"),
        ("{}/other", TOKEN, "label_studio.status"),
        ("http://127.0.0.1:1", TOKEN, "label_studio.url"),
        ("localhost:8080", TOKEN, "label_studio.url"),
        ("file:///etc", TOKEN, "label_studio.url"),
        ("http://[", TOKEN, "label_studio.url"),
        ("http://me:secret@{1}", TOKEN, "label_studio.url"),
    ],
)
def test_wrong_server_or_token_is_refused(recorded, folder, refused, url, token, code):
    with refused(code):
        client_of(folder, learn=True, label_studio=url.format(recorded.url, recorded.url[7:]), label_studio_token=token)


def test_label_studio_needs_its_token(folder, capsys):
    assert main(["serve", str(folder), "--label-studio", "--port", str(free_port())]) == 2
    assert "--label-studio-token FILE" in capsys.readouterr().err


# The real Label Studio


@pytest.fixture(scope="module")
def studio(once, tmp_path_factory) -> Iterator[Studio]:
    with running(tmp_path_factory.mktemp("studio"), once("label_studio", executable)) as studio:
        yield studio


@contextmanager
def backend(studio: Studio, folder: Path, tmp_path: Path) -> Iterator[Client]:
    """Client of `serve` in a process, with a token; its `base_url` is the address for Label Studio."""
    files = {name: tmp_path / name for name in (SECRET, "label_studio_token")}
    for file, token in zip(files.values(), (SECRET, studio.token)):
        file.write_text(token)
    words = ["--label-studio", studio.url, "--label-studio-token", files["label_studio_token"]]
    with serving(folder, *words, "--token-file", files[SECRET]) as server:
        server.client.auth = ("", SECRET)
        yield server.client


@pytest.mark.slow
def test_label_studio_predicts_and_learns(studio, folder, scans, tmp_path):
    with backend(studio, folder, tmp_path) as client:
        project = studio.create_project("Digits", configuration(*CLASSES), scans.files[12:40])
        studio.connect(project, str(client.base_url), SECRET)
        first = studio.retrieve(project)
        suggestions = client.post("/v1/suggest/files?n=28", files=form(*scans.files[12:40])).json()["suggestions"]
        assert [task.name for task in first] == [each["path"] for each in suggestions]
        assert all(len(task.choices) == 1 and task.choices[0] in CLASSES for task in first)

        before, fives = labels(client), [task.id for task in first if scans.labels[int(task.name[:-4])] == "five"]
        studio.configure(project, configuration(*CLASSES, "five"))
        wait_for(lambda: "five" in client.get("/v1/model").json()["classes"])
        annotation = studio.annotate(fives[0], "five")
        wait_for(lambda: labels(client) == before + Counter(["five"]))
        second = {task.id: task for task in studio.retrieve(project)}
        assert all(second[task].choices == ["five"] for task in fives)
        assert {task.score for task in second.values() if task.id == fives[0]} == {1}

        studio.change(annotation, "four")
        wait_for(lambda: labels(client) == before + Counter(["four"]))
        studio.delete(annotation)
        wait_for(lambda: labels(client) == before)


@pytest.mark.slow
def test_label_studio_learns_several_labels(studio, own_model, scans, tmp_path):
    with backend(studio, own_model(several=True), tmp_path) as client:
        config = configuration(*CLASSES, "odd", "even", choice="multiple")
        project = studio.create_project("Parity", config, scans.files[12:20])
        studio.connect(project, str(client.base_url), SECRET)
        opened = studio.json("POST", f"/api/dm/actions?id=next_task&project={project}", json={})
        assert [row["model_version"][:8] for row in opened["predictions"]] == ["model 20"]
        tasks, before = studio.retrieve(project), labels(client)
        assert max(len(task.choices) for task in tasks) > 1
        studio.annotate(tasks[0].id, "one", "odd")
        wait_for(lambda: labels(client) == before + Counter(["one", "odd"]))
