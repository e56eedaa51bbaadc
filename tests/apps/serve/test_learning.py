"""Learning over HTTP: changes of the model, their answers after a kill, suggestions, and suspicious labels."""

import asyncio
import json
import shutil
import threading
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from serving import TransportError, client_of, encoded, form, serving

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.serve import learning as module
from trainers.hegraph.apps.serve.learning import Learner
from trainers.hegraph.models import folder as model_folder
from trainers.hegraph.models.images import ImageModel

learner_of = partial(client_of, learn=True)  # client of a server that learns


def added(scans, *numbers: int, labels: list | None = None) -> dict:
    """Request that adds scans with their own labels, or with others."""
    labels = labels or [[scans.labels[number]] for number in numbers]
    return encoded(*(scans.files[number].read_bytes() for number in numbers), labels=labels)


def stored(folder) -> dict[str, list[str]]:
    """Labels of the examples in a model folder, by id."""
    with learner_of(folder) as client:
        return {example["id"]: example["labels"] for example in client.get("/v1/examples").json()["examples"]}


# Changes


def test_added_images_equal_partial_fit(folder, scans):
    expected = HeGraphClassifier.from_pretrained(folder)
    with learner_of(folder) as client:
        assert len(client.post("/v1/examples", json=added(scans, *range(12, 16))).json()["ids"]) == 4
        client.post("/v1/examples/files", files=form(scans.files[16]), data={"labels": "letter"})
        answers = client.post("/v1/predict/files?top=99", files=form(*scans.files[20:24])).json()["predictions"]
    expected.partial_fit(scans.images[12:16], scans.labels[12:16]).partial_fit(scans.images[16:17], ["letter"])
    saved = HeGraphClassifier.from_pretrained(folder)
    probabilities = expected.predict_proba(scans.images[20:24])
    np.testing.assert_allclose(saved.predict_proba(scans.images[20:24]), probabilities, atol=1e-5)
    for answer, row in zip(answers, probabilities):
        served = {each["class"]: each["probability"] for each in answer["top"]}
        assert [served[label] for label in expected.classes_] == pytest.approx(row, abs=1e-5)


def test_all_files_of_a_form_are_learned(folder, scans):
    with learner_of(folder) as client:
        ids = client.post("/v1/examples/files", files=form(*scans.files[12:15]), data={"labels": "letter"}).json()[
            "ids"
        ]
    examples = stored(folder)
    assert [examples.get(number) for number in ids] == [["letter"]] * 3


def test_class_can_be_added_by_name(folder):
    with learner_of(folder) as client:
        assert client.post("/v1/examples", json={"classes": ["letter"]}).json() == {"ids": []}
        assert "letter" in client.get("/v1/model").json()["classes"]
    assert ImageModel.load(folder).model.named_only[-1:] == ("letter",)


def test_repeated_request_changes_nothing(folder, scans):
    with learner_of(folder) as client:
        first = client.post("/v1/examples", json=added(scans, 12)).json()
        before = (folder / "config.json").stat()
        assert client.post("/v1/examples", json=added(scans, 12)).json() == first
        after = (folder / "config.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_new_label_replaces_the_old_one(folder, scans):
    before = stored(folder)
    with learner_of(folder) as client:
        [number] = client.post("/v1/examples", json=added(scans, 0, labels=[["letter"]])).json()["ids"]
    assert before[number] == [scans.labels[0]]
    assert stored(folder) == before | {number: ["letter"]}


def test_removed_images_and_classes_are_forgotten(folder, scans):
    before = stored(folder)
    with learner_of(folder) as client:
        ids = client.post("/v1/examples", json=added(scans, 12, 13, labels=[["letter"], ["sign"]])).json()["ids"]
        assert client.delete("/v1/examples", params={"id": ids, "class": "sign"}).status_code == 200
        assert "letter" in client.get("/v1/model").json()["classes"]
        assert "sign" not in client.get("/v1/model").json()["classes"]
    assert stored(folder) == before


def test_images_of_a_run_can_be_removed(finished_digits):
    folder = finished_digits.parent / "model"
    shutil.copytree(finished_digits / "model", folder)
    before = stored(folder)
    assert len(before) == 40
    with learner_of(folder) as client:
        assert client.delete("/v1/examples", params={"id": min(before)}).status_code == 200
    assert stored(folder) == {number: labels for number, labels in before.items() if number != min(before)}


def test_image_can_have_several_labels(own_model, scans):
    folder = own_model(several=True)
    before = stored(folder)
    with learner_of(folder) as client:
        request = added(scans, 12, 13, 0, labels=[["new", "even"], [], ["odd"]])
        one, two, three = client.post("/v1/examples", json=request).json()["ids"]
        assert three in before
    assert stored(folder) == before | {one: ["even", "new"], two: [], three: ["odd"]}


def test_change_repeats_the_adaptation(folder, scans):
    HeGraphClassifier.from_pretrained(folder).adapt(scans.images[20:]).save_pretrained(folder)
    with learner_of(folder) as client:
        assert client.post("/v1/examples", json=added(scans, 12)).status_code == 200
    assert ImageModel.load(folder).model.unlabelled == 20


def test_concurrent_changes_are_all_stored(folder, scans):
    learner = Learner.load(folder)

    async def add_all() -> list:
        uploads = [(file.name, file.read_bytes()) for file in scans.files[12:18]]
        return await asyncio.gather(
            *(learner.add([upload], [[label]]) for upload, label in zip(uploads, scans.labels[12:]))
        )

    ids = [number for [number] in asyncio.run(add_all())]
    learner.close()
    assert set(ids) <= stored(folder).keys()


def test_request_in_flight_uses_one_model(folder, scans):
    learner = Learner.load(folder)

    async def predict_during_change() -> dict:
        waiting = asyncio.create_task(learner.predict([("", scans.files[20].read_bytes())], 99, None))
        await asyncio.sleep(0)
        await learner.add([], [], ["letter"])
        encoder = asyncio.create_task(learner.features.run())
        answer = await waiting
        encoder.cancel()
        return answer

    [row] = asyncio.run(predict_during_change())["predictions"]
    learner.close()
    assert "letter" in learner.model.model.classnames
    assert "letter" not in {each["class"] for each in row["top"]}


# Help with labels


def test_suggestions_equal_the_command(folder, scans, capsys):
    assert main(["label", "suggest", str(folder), *map(str, scans.files[20:]), "-n", "5", "--format", "jsonl"]) == 0
    expected = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    with learner_of(folder) as client:
        answers = client.post("/v1/suggest/files?n=5", files=form(*scans.files[20:])).json()["suggestions"]
        damaged = client.post("/v1/suggest", json=encoded(b"no image")).json()["suggestions"]
    assert [answer["path"] for answer in answers] == [path.rpartition("/")[2] for path in expected]
    assert [bool(answer["error"]) for answer in damaged] == [True]


def test_issues_equal_those_of_the_classifier(folder, scans):
    with learner_of(folder) as client:
        [number] = client.post("/v1/examples", json=added(scans, 0, labels=[["nine"]])).json()["ids"]
        issues = client.get("/v1/issues?above=-100").json()["issues"]
    classifier = HeGraphClassifier.from_pretrained(folder)
    support_set = classifier.model_.support_set
    expected = classifier.label_issues(support_set.keys(), support_set.image_labels())
    assert [issue["score"] for issue in issues] == pytest.approx([issue.score for issue in expected], abs=1e-4)
    assert [issue["suggested"] for issue in issues] == [issue.suggested for issue in expected]
    assert [issue["label"] for issue in issues if issue["id"] == number] == ["nine"]


# Refusals


@pytest.fixture(scope="module")
def learning(own_model):
    with learner_of(own_model()) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "word"),
    [
        ("POST", "/v1/examples", {"json": {"images": [{"data": ""}]}}, 422, "labels"),
        ("POST", "/v1/examples", {"json": encoded(b"no image", labels=[["zero"]])}, 422, "image '0' is not an image"),
        ("POST", "/v1/examples", {"json": {"classes": [" "]}}, 422, "classnames"),
        ("POST", "/v1/examples", {"json": {"path": "/etc"}}, 422, "Extra inputs"),
        ("POST", "/v1/examples/files", {"data": {"labels": "zero"}}, 422, "files"),
        ("DELETE", "/v1/examples", {}, 422, "expected ids"),
        ("DELETE", "/v1/examples?id=0123", {}, 404, "no labelled image has the id '0123'"),
        ("DELETE", "/v1/examples?class=letter", {}, 404, "unknown class"),
        ("DELETE", "/v1/examples?all=1", {}, 422, "Extra inputs"),
        ("POST", "/v1/suggest?n=0", {"json": encoded(b"")}, 422, "n:"),
        ("POST", "/v1/suggest?number=1", {"json": encoded(b"")}, 422, "number"),
        ("GET", "/v1/issues?above=x", {}, 422, "above"),
        ("GET", "/v1/issues?score=3", {}, 422, "score"),
        ("POST", "/v1/examples", {"headers": {"origin": "http://evil.example"}}, 403, "evil.example"),
        ("POST", "/v1/examples", {"headers": {"origin": "null"}}, 403, "a page of null"),
    ],
)
def test_invalid_changes_are_refused(learning, method, path, content, status, word):
    before = learning.get("/v1/examples").json()
    answer = learning.request(method, path, **content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert word in answer.json()["error"]
    assert learning.get("/v1/examples").json() == before


def test_own_page_on_any_port_may_change_the_model(folder):
    address = "http://127.0.0.1:8000"
    with client_of(folder, address, learn=True) as client:
        origins = (address, "http://127.0.0.1:9000")
        answers = [client.post("/v1/examples", json={"classes": []}, headers={"origin": each}) for each in origins]
    assert [answer.status_code for answer in answers] == [200, 403]


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([["zero", "one"]], "expected one label for image '0', got 2"),
        ([[]], "expected one label for image '0', got 0"),
        ([["zero"], ["one"]], "image '1' is in the request twice"),
    ],
)
def test_contradicting_labels_are_refused(learning, scans, labels, word):
    answer = learning.post("/v1/examples", json=added(scans, *[12] * len(labels), labels=labels))
    assert (answer.status_code, answer.json()["error"][: len(word)]) == (422, word)


@pytest.mark.parametrize("path", ["/v1/issues", "/v1/suggest"])
def test_models_with_several_labels_have_no_help(own_model, scans, path):
    with learner_of(own_model(several=True)) as client:
        answer = client.get(path) if path == "/v1/issues" else client.post(path, json=added(scans, 12, labels=[[]]))
        assert answer.status_code == 422


def test_server_does_not_learn_by_default(own_model):
    with client_of(own_model()) as client:
        for path in ("/v1/examples", "/v1/suggest", "/v1/issues"):
            assert client.get(path).status_code == client.post(path, json={}).status_code == 404


def test_change_without_the_lock_is_not_overwritten(folder, scans, tmp_path):
    other = tmp_path / "other"
    HeGraphClassifier.from_pretrained(folder).add_class("letter").save_pretrained(other)
    with learner_of(folder) as client:
        shutil.copytree(other, folder, dirs_exist_ok=True)
        answer = client.post("/v1/examples", json=added(scans, 12))
    assert (answer.status_code, list(answer.json())) == (409, ["error"])
    assert "letter" in ImageModel.load(folder).model.classnames


def test_change_during_the_training_is_not_overwritten(folder, scans, tmp_path, monkeypatch):
    other = tmp_path / "other"
    HeGraphClassifier.from_pretrained(folder).add_class("letter").save_pretrained(other)
    train = module.IncrementalTraining.add

    def add_meanwhile(*arguments: object) -> object:
        model = train(*arguments)
        shutil.copytree(other, folder, dirs_exist_ok=True)
        return model

    monkeypatch.setattr(module.IncrementalTraining, "add", add_meanwhile)
    with learner_of(folder) as client:
        assert client.post("/v1/examples", json=added(scans, 12)).status_code == 409
    assert "letter" in ImageModel.load(folder).model.classnames


@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
def test_missing_folder_is_a_conflict(folder, scans, how):
    with learner_of(folder) as client:
        folder.rename(folder.with_name("elsewhere"))
        if how == "deleted":
            shutil.rmtree(folder.with_name("elsewhere"))
        if how == "replaced":
            folder.write_text("no model")
        answer = client.post("/v1/examples", json=added(scans, 12))
    assert answer.status_code == 409
    assert answer.json()["error"].startswith(f"{folder} was moved or removed by another program")
    assert folder.exists() == (how == "replaced")


@pytest.mark.parametrize("writer", ["estimator", "train-more"])
def test_other_writers_are_refused_while_a_server_learns(folder, scans, tmp_path, cli_error, monkeypatch, writer):
    monkeypatch.setattr(model_folder, "SAVE_WAIT", 0)
    (tmp_path / "photos" / "train" / "letter").mkdir(parents=True)
    shutil.copy(scans.files[20], tmp_path / "photos" / "train" / "letter")
    with learner_of(folder) as client:
        if writer == "estimator":
            with pytest.raises(UserError, match=f"{folder} is in use by process"):
                HeGraphClassifier.from_pretrained(folder).add_class("letter").save_pretrained(folder)
        else:
            words = ("train-more", folder, "--root", tmp_path / "photos", "--in-place")
            assert f"{folder} is in use by process" in cli_error(*words)
        assert client.post("/v1/examples", json=added(scans, 12)).status_code == 200
    assert "letter" not in ImageModel.load(folder).model.classnames


def test_names_are_compared_in_one_form(folder, scans):
    with learner_of(folder) as client:
        client.post("/v1/examples", json=added(scans, 12, labels=[["Am\u00e9lie"]]))
        [number] = client.post("/v1/examples", json=added(scans, 13, labels=[[" Ame\u0301lie "]])).json()["ids"]
        assert client.post("/v1/examples", json=added(scans, 14, labels=[[" zero "]])).status_code == 200
        before = client.get("/v1/model").json()["classes"]
        assert client.delete("/v1/examples", params={"class": "Ame\u0301lie"}).status_code == 200
        after = client.get("/v1/model").json()["classes"]
    assert sorted(before) == sorted([*after, "Am\u00e9lie"])
    assert after.count("zero") == 1
    assert " zero " not in after
    assert number not in stored(folder)


def test_class_after_the_largest_label_is_refused(folder, scans):
    labels = [0, 5, 2**63 - 1]
    y = [labels[number % 3] for number in range(12)]
    names = dict(zip(labels, "abc"))
    HeGraphClassifier("hegraph-mini", variant="training_free").fit(scans.images[:12], y, names).save_pretrained(folder)
    before = (folder / "config.json").read_bytes()
    with learner_of(folder) as client:
        answer = client.post("/v1/examples", json={"classes": ["brand new"]})
        assert (answer.status_code, client.get("/v1/model").json()["classes"]) == (422, ["a", "b", "c"])
        assert client.post("/v1/examples", json=added(scans, 12, labels=[["c"]])).status_code == 200
    assert "after 9223372036854775807" in answer.json()["error"]
    assert (folder / "config.json").read_bytes() != before
    assert HeGraphClassifier.from_pretrained(folder).classes_.tolist() == labels


def test_image_with_two_labels_gets_one(folder, scans):
    classifier = HeGraphClassifier("hegraph-mini", variant="training_free")
    twice = [scans.images[12], scans.images[12]]
    labels = [*scans.labels[:12], "zero", "one"]
    classifier.fit([*scans.images[:12], *twice], labels).save_pretrained(folder)
    with learner_of(folder) as client:
        [number] = client.post("/v1/examples", json=added(scans, 12, labels=[["zero"]])).json()["ids"]
        examples = client.get("/v1/examples").json()["examples"]
    assert [example["labels"] for example in examples if example["id"] == number] == [["zero"]]


def test_suggested_classes_equal_the_predictions(folder, scans):
    with learner_of(folder) as client:
        suggested = client.post("/v1/suggest/files?n=3&top=7", files=form(*scans.files[20:40])).json()["suggestions"]
        predicted = client.post("/v1/predict/files?top=7", files=form(*scans.files[20:40])).json()["predictions"]
    by_path = {row["path"]: row["top"] for row in predicted}
    assert [row["path"] for row in suggested] != [row["path"] for row in predicted[:3]]  # an order that shows a mistake
    assert len(suggested) == 3
    for row in suggested:
        assert row["top"] == by_path[row["path"]]


def test_labels_are_changed_without_the_image(folder):
    before = stored(folder)
    number = min(before)
    learner = Learner.load(folder)
    asyncio.run(learner.relabel({number: ["nine" if before[number] != ["nine"] else "zero"]}))
    learner.close()
    after = stored(folder)
    assert after.pop(number) == (["nine"] if before.pop(number) != ["nine"] else ["zero"])
    assert after == before


def test_second_server_is_refused(folder, cli_error):
    with learner_of(folder):
        assert f"{folder} is in use by process" in cli_error("serve", folder, "--learn")
    assert not [*folder.parent.glob(".*")]


def test_start_of_learning_is_refused(finished_digits_once, own_model, cli_error):
    assert "copy it: cp -r" in cli_error("serve", finished_digits_once, "--learn")
    assert "got --workers 2" in cli_error("serve", own_model(), "--learn", "--workers", "2")


# A killed server


@pytest.mark.slow
def test_killed_server_has_all_answered_changes(folder, scans):
    answered = []

    def add_until_killed() -> None:
        with suppress(TransportError):
            for number in range(12, 40):
                answered.extend(server.client.post("/v1/examples", json=added(scans, number)).json()["ids"])

    with serving(folder, "--learn") as server:
        thread = threading.Thread(target=add_until_killed)
        thread.start()
        while len(answered) < 3:
            thread.join(0.01)
        server.process.kill()
        thread.join()
    examples = stored(folder)
    assert set(answered) <= examples.keys()
    assert len(examples) - 12 - len(answered) in (0, 1)  # the change that was not answered
    with learner_of(folder) as client:
        assert client.post("/v1/examples", json=added(scans, 39)).status_code == 200
