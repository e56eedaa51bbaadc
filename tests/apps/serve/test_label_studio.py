"""Label Studio: requests in the form that version 1.23.2 sends, and the real Label Studio in the slow tests."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded import (
    CLASSES,
    PROJECT,
    TOKEN,
    UPLOADS,
    changes,
    connected,
    labels,
    predictions,
    process,
    setup_request,
    wait_for,
)
from serving import Client, client_of, form, serving
from studio import Studio, configuration, executable, result, running

from tools.free_ports import free_port
from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.access import sent_token
from trainers.hegraph.apps.serve import label_studio as module, server, studio_api
from trainers.hegraph.apps.serve.studio_api import LabelStudio
from trainers.hegraph.models.folder import load_model

SECRET = "a-long-secret-of-the-tests"


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


def test_scores_begin_in_the_order_of_suggest(recorded, folder, scans):
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


def test_batch_of_large_images_is_predicted(recorded, folder, scans, monkeypatch):
    monkeypatch.setattr(server, "MAX_REQUEST_PIXELS", 100)
    recorded.add(*scans.files[:3])
    with connected(recorded, folder) as client:
        assert client.post("/v1/predict/files", files=form(*scans.files[:3])).status_code == 413
        assert all(row["result"] for row in predictions(client, recorded))


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


def test_choices_of_some_classes_have_their_thresholds(recorded, own_model, scans):
    recorded.config = configuration("odd", "even", choice="multiple")
    recorded.add(*scans.files)
    with connected(recorded, own_model(several=True)) as client:
        rows = predictions(client, recorded)
        answers = client.post("/v1/predict/files", files=form(*scans.files)).json()["predictions"]
    choices = [{name for item in row["result"] for name in item["value"]["choices"]} for row in rows]
    assert choices == [{each["class"] for each in answer["top"]} & {"odd", "even"} for answer in answers]


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


@pytest.mark.parametrize("size", ["TASKS_AT_ONCE", "PAGE"])
def test_training_reads_all_annotations(recorded, folder, scans, monkeypatch, size):
    for place in (module, studio_api):
        monkeypatch.setattr(place, size, 2, raising=False)
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
        example = json.loads(path.read_text())["tasks"][str(PROJECT)][str(task)]
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
    monkeypatch.setattr(studio_api, "MAX_BYTES", 1000)
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
def backend(studio: Studio, folder: Path, tmp_path: Path, python: Path) -> Iterator[Client]:
    """Client of `serve` in a process, with a token; its `base_url` is the address for Label Studio."""
    files = {name: tmp_path / name for name in (SECRET, "label_studio_token")}
    for file, token in zip(files.values(), (SECRET, studio.token)):
        file.write_text(token)
    words = ["--label-studio", studio.url, "--label-studio-token", files["label_studio_token"]]
    with serving(folder, *words, "--token-file", files[SECRET], python=python) as server:
        server.client.auth = ("", SECRET)
        yield server.client


@pytest.mark.slow
def test_label_studio_predicts_and_learns(studio, folder, scans, tmp_path, python):
    with backend(studio, folder, tmp_path, python) as client:
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
def test_label_studio_learns_several_labels(studio, own_model, scans, tmp_path, python):
    with backend(studio, own_model(several=True), tmp_path, python) as client:
        config = configuration(*CLASSES, "odd", "even", choice="multiple")
        project = studio.create_project("Parity", config, scans.files[12:20])
        studio.connect(project, str(client.base_url), SECRET)
        opened = studio.json("POST", f"/api/dm/actions?id=next_task&project={project}", json={})
        assert [row["model_version"][:8] for row in opened["predictions"]] == ["model 20"]
        tasks, before = studio.retrieve(project), labels(client)
        assert max(len(task.choices) for task in tasks) > 1
        studio.annotate(tasks[0].id, "one", "odd")
        wait_for(lambda: labels(client) == before + Counter(["one", "odd"]))


@pytest.mark.slow
def test_label_studio_keeps_training_images(studio, folder, scans, tmp_path, python):
    with backend(studio, folder, tmp_path, python) as client:
        project = studio.create_project("Own", configuration(*CLASSES), scans.files[:2])
        studio.connect(project, str(client.base_url), SECRET)
        before = client.get("/v1/examples").json()["examples"]
        tasks = studio.retrieve(project)
        annotation = studio.annotate(tasks[0].id, "nine")
        wait_for(lambda: client.get("/v1/examples").json()["examples"] != before)
        studio.delete(annotation)
        wait_for(lambda: by_id(client) == {row["id"]: row["labels"] for row in before})
        studio.annotate(tasks[1].id, "nine")
        wait_for(lambda: by_id(client) != {row["id"]: row["labels"] for row in before})
        studio.json("DELETE", f"/api/tasks/{tasks[1].id}/")
        wait_for(lambda: by_id(client) == {row["id"]: row["labels"] for row in before})


def by_id(client: Client) -> dict[str, list[str]]:
    """Labels of the training images by id."""
    return {row["id"]: row["labels"] for row in client.get("/v1/examples").json()["examples"]}


@pytest.mark.slow
def test_label_studio_ignores_forged_requests(studio, folder, scans, tmp_path, python):
    with backend(studio, folder, tmp_path, python) as client:
        project = studio.create_project("Forged", configuration(*CLASSES), scans.files[12:14])
        studio.connect(project, str(client.base_url), SECRET)
        tasks, before = studio.retrieve(project), labels(client)
        event = {"action": "ANNOTATION_CREATED", "project": {"id": project}}
        assert client.post("/setup", auth=None, json={"project": "99", "schema": configuration("a")}).status_code == 401
        assert client.post("/webhook", auth=None, json=event).status_code == 401
        for forged, status in ((10**30, 422), (2**40, 200), (tasks[0].id, 200)):
            answer = client.post("/webhook", json=event | {"annotation": {"task": forged}})
            assert answer.status_code == status
        studio.annotate(tasks[1].id, "two")
        wait_for(lambda: labels(client) == before + Counter(["two"]))


@pytest.mark.slow
def test_label_studio_learns_an_empty_submission(studio, own_model, scans, tmp_path, python):
    with backend(studio, own_model(several=True), tmp_path, python) as client:
        project = studio.create_project("Negative", configuration(*CLASSES, choice="multiple"), scans.files[12:14])
        studio.connect(project, str(client.base_url), SECRET)
        tasks, before = studio.retrieve(project), by_id(client)
        number = studio.json("POST", f"/api/tasks/{tasks[0].id}/annotations/", json={"result": []})["id"]
        wait_for(lambda: len(by_id(client)) == len(before) + 1)
        [new] = by_id(client).keys() - before.keys()
        assert by_id(client)[new] == []
        studio.change(number, "one")
        wait_for(lambda: by_id(client)[new] == ["one"])
        studio.json("PATCH", f"/api/annotations/{number}/", json={"result": []})
        wait_for(lambda: by_id(client)[new] == [])
        studio.delete(number)
        wait_for(lambda: by_id(client) == before)


@pytest.mark.slow
def test_label_studio_reports_an_unsuitable_project(studio, folder, scans, tmp_path, python):
    with backend(studio, folder, tmp_path, python) as client:
        config = configuration(*CLASSES, choice="multiple")
        project = studio.create_project("Unsuitable", config, scans.files[12:13])
        with pytest.raises(AssertionError, match="422"):
            studio.connect(project, str(client.base_url), SECRET)
