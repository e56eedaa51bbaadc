"""How annotations of Label Studio change the model: training images, failures, forged requests, and scores."""

import json

import pytest
from recorded import CLASSES, PROJECT, changes, connected, labels, predictions, process, setup_request, wait_for
from serving import client_of
from studio import configuration, result

from trainers.hegraph import UserError
from trainers.hegraph.apps.serve import studio_answers
from trainers.hegraph.apps.serve.app import Settings, connect
from trainers.hegraph.apps.serve.learning import Learner
from trainers.hegraph.models.folder import load_model


def examples(client) -> dict[str, list[str]]:
    """Labels of the training images by id."""
    return {example["id"]: example["labels"] for example in client.get("/v1/examples").json()["examples"]}


def delete_annotations(client, recorded, task: int) -> None:
    """Delete all annotations of a task, and wait until the model was updated."""
    recorded.tasks[task]["annotations"] = []
    process(client, recorded, recorded.event("ANNOTATIONS_DELETED", annotations=[{"id": 1}]))


# Images of the training


@pytest.mark.parametrize("label", ["zero", "nine"])
def test_training_image_stays_without_its_annotation(recorded, folder, scans, label):
    [task] = recorded.add(scans.files[0])
    with connected(recorded, folder) as client:
        before = examples(client)
        process(client, recorded, recorded.annotate(task, label))
        assert sorted(examples(client)) == sorted(before)
        assert labels(client)[label] >= 1
        delete_annotations(client, recorded, task)
        assert examples(client) == before


def test_training_image_stays_without_its_task(recorded, folder, scans):
    [task] = recorded.add(scans.files[0])
    with connected(recorded, folder) as client:
        before = examples(client)
        process(client, recorded, recorded.annotate(task, "nine"))
        del recorded.tasks[task]
        process(client, recorded, recorded.event("TASKS_DELETED", tasks=[{"id": task}]))
        assert examples(client) == before


def test_training_image_stays_after_a_restart(recorded, folder, scans):
    [task] = recorded.add(scans.files[0])
    with connected(recorded, folder) as client:
        before = examples(client)
        process(client, recorded, recorded.annotate(task, "nine"))
    recorded.tasks[task]["annotations"] = []
    with connected(recorded, folder) as client:
        wait_for(lambda: examples(client) == before)


def test_image_of_another_program_stays(recorded, folder, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        form = [("files", (scans.files[20].name, scans.files[20].read_bytes()))]
        client.post("/v1/examples/files", files=form, data={"labels": "two"})
        before = examples(client)
        process(client, recorded, recorded.annotate(task, "three"))
        delete_annotations(client, recorded, task)
        assert examples(client) == before


# Failures


def test_failed_removal_is_repeated(recorded, folder, scans, monkeypatch):
    [task] = recorded.add(scans.files[20])
    remove, failures = Learner.remove, [UserError("the disk is full")] * 2

    async def fail_twice(*arguments: object) -> None:
        if failures:
            raise failures.pop()
        await remove(*arguments)

    with connected(recorded, folder) as client:
        before = examples(client)
        changes(client, recorded.annotate(task, "three"))
        monkeypatch.setattr(Learner, "remove", fail_twice)
        delete_annotations(client, recorded, task)
        assert not failures
        assert examples(client) != before
        delete_annotations(client, recorded, task)
        assert examples(client) == before


def test_failing_task_does_not_stop_others(recorded, folder, scans, caplog):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        forged = recorded.event("ANNOTATION_CREATED", annotation={"task": 2**40})
        assert client.post("/webhook", json=forged).status_code == 200
        wait_for(lambda: "task 1099511627776 is left out" in caplog.text)
        assert changes(client, recorded.annotate(task, "two")) == {"two": 1}


def test_numbers_that_no_task_has_are_refused(recorded, folder):
    with connected(recorded, folder) as client:
        forged = recorded.event("ANNOTATION_CREATED", annotation={"task": 10**30})
        assert client.post("/webhook", json=forged).status_code == 422


def test_refused_annotation_is_reported(recorded, folder, scans, caplog):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        before = examples(client)
        process(client, recorded, recorded.annotate(task, "one", "zero"))
        assert examples(client) == before
        assert predictions(client, recorded)[0]["score"] == 0  # not labelled
    assert f"task {task} is left out: expected one label for image 'task {task}', got 2" in caplog.text


# Annotations of other kinds

RELATION = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
BOX = {"from_name": "box", "to_name": "photo", "type": "rectanglelabels", "value": {"rectanglelabels": ["two"]}}
COMMENT = {"from_name": "comment", "to_name": "photo", "type": "textarea", "value": {"text": ["three?"]}}


@pytest.mark.parametrize("others", [[RELATION], [BOX], [COMMENT], [{}], [RELATION, BOX, COMMENT]])
def test_choice_beside_other_results_is_learned(recorded, folder, scans, others):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        event = recorded.annotate(task, "three")
        [annotation] = recorded.tasks[task]["annotations"]
        annotation["result"] = [*others, *annotation["result"]]
        recorded.tasks[task] |= {"drafts": [{"result": result("nine")}], "comments": [{"text": "nine"}]}
        assert changes(client, event) == {"three": 1}


@pytest.mark.parametrize(
    "damaged",
    [
        {"result": [result()[0] | {"value": {"taxonomy": [["two"]]}}]},
        {"result": [result()[0] | {"value": None}]},
        {"result": [result()[0] | {"value": {"choices": "two"}}]},
        {"result": {"choices": ["two"]}},
        {"result": ["two"]},
        {"updated_at": None},
    ],
)
def test_damaged_annotation_does_not_stop_others(recorded, folder, scans, caplog, damaged):
    tasks = recorded.add(*scans.files[20:22])
    for task in tasks:
        recorded.annotate(task, "two")
    recorded.tasks[tasks[0]]["annotations"][0] |= damaged
    before = load_model(folder).support_set
    with connected(recorded, folder) as client:
        wait_for(lambda: sum(labels(client).values()) == len(before.labels) + 1)
    [line] = [line for line in caplog.messages if "left out" in line]
    assert line.startswith(f"task {tasks[0]} is left out: ")


@pytest.mark.parametrize("others", [{"was_cancelled": True}, {"result": None, "updated_at": "2026-01-01T00:00:00Z"}])
def test_newest_annotation_of_all_annotators_counts(recorded, folder, scans, others):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        event = recorded.annotate(task, "three")
        recorded.annotate(task, "nine")
        recorded.tasks[task]["annotations"][1] |= others
        assert changes(client, event) == {"three": 1}


# Several labels


@pytest.fixture
def several(recorded, own_model):
    recorded.config = configuration(*CLASSES, "odd", "even", choice="multiple")
    return own_model(several=True)


def submit_nothing(recorded, task: int) -> dict:
    """Submit an annotation without a choice, as Label Studio does: its result is empty."""
    event = recorded.annotate(task)
    recorded.tasks[task]["annotations"][-1]["result"] = []
    return event


def test_empty_submission_is_an_image_without_labels(recorded, several, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, several) as client:
        before = examples(client)
        process(client, recorded, submit_nothing(recorded, task))
        [new] = examples(client).keys() - before.keys()
        assert examples(client)[new] == []
        delete_annotations(client, recorded, task)
        assert examples(client) == before


def test_emptied_annotation_keeps_the_image(recorded, several, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, several) as client:
        before = examples(client)
        process(client, recorded, recorded.annotate(task, "one", "odd"))
        [new] = examples(client).keys() - before.keys()
        process(client, recorded, submit_nothing(recorded, task))
        assert examples(client)[new] == []


def test_empty_submission_with_one_label_is_no_example(recorded, folder, scans):
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        before = examples(client)
        process(client, recorded, submit_nothing(recorded, task))
        assert examples(client) == before


# Requests that are refused


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_network_needs_a_token(recorded, folder, refused, host):
    settings = Settings(model=folder, host=host, learn=True, label_studio=recorded.url, label_studio_token="secret")
    with refused("label_studio.open", "give --token-file FILE"):
        connect(settings)


@pytest.mark.parametrize("path", ["/setup", "/webhook"])
def test_forged_requests_from_the_network_are_refused(recorded, folder, path):
    secret = "a-long-secret-of-the-tests"
    settings = {"host": "0.0.0.0", "token": secret, "learn": True, "label_studio": recorded.url}
    with client_of(folder, label_studio_token="header.refresh.signature", **settings) as client:
        assert client.post(path, json=setup_request(recorded)).status_code == 401
    assert not folder.with_name(".model.label_studio.json").exists()


def test_refusal_names_the_setting_and_is_logged(recorded, folder, caplog):
    config = configuration(*CLASSES, choice="multiple")
    with connected(recorded, folder) as client:
        answer = client.post("/setup", json=setup_request(recorded, schema=config))
    problem = f'expected <Choices choice="single"> in the labeling interface of project {PROJECT}'
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(problem)
    assert 'got choice="multiple"' in answer.json()["error"]
    assert f"refused /setup of Label Studio: {problem}" in caplog.text


# Scores


@pytest.fixture
def scorings(monkeypatch) -> list[int]:
    """Numbers of features that were ordered, one entry for each order."""
    sizes, suggest = [], studio_answers.suggest

    def count(model, features, number):
        sizes.append(len(features))
        return suggest(model, features, number)

    monkeypatch.setattr(studio_answers, "suggest", count)
    return sizes


def test_scores_are_computed_once_for_each_model(recorded, folder, scans, scorings):
    tasks = recorded.add(*scans.files[12:24])
    with connected(recorded, folder) as client:
        first = [row["score"] for row in predictions(client, recorded)]
        assert [row["score"] for row in predictions(client, recorded)] == first
        assert scorings == [12]
        changes(client, recorded.annotate(tasks[0], "three"))
        assert predictions(client, recorded)[0]["score"] == 1
        assert scorings == [12, 11]


def test_new_image_is_scored(recorded, folder, scans, scorings):
    recorded.add(*scans.files[12:15])
    with connected(recorded, folder) as client:
        predictions(client, recorded)
        recorded.add(scans.files[15])
        assert sorted(row["score"] for row in predictions(client, recorded)) == [0, 1 / 4, 2 / 4, 3 / 4]
    assert scorings == [3, 4]


# Names


def test_choices_and_classes_are_compared_in_one_form(recorded, folder, scans):
    recorded.config = configuration(*CLASSES, "Am\u00e9lie")
    [task] = recorded.add(scans.files[20])
    with connected(recorded, folder) as client:
        wait_for(lambda: "Am\u00e9lie" in client.get("/v1/model").json()["classes"])
        recorded.config = configuration(*CLASSES, "Ame\u0301lie")
        assert changes(client, recorded.annotate(task, "Ame\u0301lie")) == {"Am\u00e9lie": 1}
        assert len(client.get("/v1/model").json()["classes"]) == len(CLASSES) + 1
        recorded.config = configuration("Ame\u0301lie")  # the only choice is predicted
        assert predictions(client, recorded)[0]["result"][0]["value"]["choices"] == ["Ame\u0301lie"]


def test_file_of_earlier_versions_is_read(recorded, folder, scans):
    [task] = recorded.add(scans.files[20])
    path = folder.with_name(".model.label_studio.json")
    with connected(recorded, folder) as client:
        changes(client, recorded.annotate(task, "three"))
        before = labels(client)
    path.write_text(json.dumps(json.loads(path.read_text())["tasks"]))
    recorded.tasks[task]["annotations"] = []
    with connected(recorded, folder) as client:
        wait_for(lambda: labels(client)["three"] == before["three"] - 1)
