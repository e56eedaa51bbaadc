"""Learning over HTTP with a model that was trained without class texts: images alone define its classes."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from serving import client_of, encoded

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.models.folder import load_model

NO_NAMES = {"TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE": "none"}

learner_of = partial(client_of, learn=True)


@pytest.fixture(scope="session")
def nameless_once(once, scans) -> Path:
    """Model folder of the first 12 scans without class texts; read-only."""

    def fit(folder: Path) -> None:
        classifier = HeGraphClassifier("hegraph-mini", variant="training_free", options=NO_NAMES)
        classifier.fit(scans.images[:12], scans.labels[:12]).save_pretrained(folder)

    return once("nameless_model", fit)


@pytest.fixture
def nameless(nameless_once, tmp_path) -> Path:
    """Copy of `nameless_once` that a test may change."""
    return Path(shutil.copytree(nameless_once, tmp_path / "model"))


def added(scans, *numbers: int, labels: list | None = None, **fields: list) -> dict:
    """Request that adds scans with their own labels, or with others."""
    labels = labels or [[scans.labels[number]] for number in numbers]
    return encoded(*(scans.files[number].read_bytes() for number in numbers), labels=labels) | fields


def test_images_of_new_classes_are_learned(nameless, scans):
    six = scans.labels.index("six")  # not a class of the model
    with learner_of(nameless) as client:
        assert client.post("/v1/examples", json=added(scans, six, labels=[["part 43"]])).status_code == 200
        found = client.post("/v1/predict", json=encoded(scans.files[six].read_bytes())).json()["predictions"][0]
    assert "part 43" in [each["class"] for each in found["top"]]
    model = load_model(nameless)
    assert not model.has_text and model.prompts is None


@pytest.mark.parametrize("image", [[], [12]])
def test_class_by_its_name_alone_is_refused(nameless, scans, image):
    before = (nameless / "config.json").read_bytes()
    with learner_of(nameless) as client:
        answer = client.post("/v1/examples", json=added(scans, *image, classes=["part 43"]))
    assert answer.status_code == 422
    assert "'part 43' has no images, and images alone define the classes" in answer.text
    assert (nameless / "config.json").read_bytes() == before


def test_class_that_loses_its_only_image_is_removed(nameless, scans):
    counts = load_model(nameless).images
    names = load_model(nameless).classnames
    only = names[counts.index(1)]
    number = scans.labels[:12].index(only)
    with learner_of(nameless) as client:
        answer = client.post("/v1/examples", json=added(scans, number, labels=[["part 43"]]))
        assert answer.status_code == 200, answer.text
        assert set(client.get("/v1/model").json()["classes"]) == {*names, "part 43"} - {only}


def test_suggestions_and_issues_need_no_text(nameless, scans):
    wrong = scans.labels[12:14][::-1]
    pool = encoded(*(file.read_bytes() for file in scans.files[20:24]))
    request = added(scans, 12, 13, labels=[[label] for label in wrong])
    with learner_of(nameless) as client:
        answer = client.post("/v1/suggest?n=2", json=pool).json()
        assert len(answer["suggestions"]) == 2
        [first, second] = client.post("/v1/examples", json=request).json()["ids"]
        issues = client.get("/v1/issues?above=0").json()["issues"]
    assert {first, second} & {issue["id"] for issue in issues}


def test_removal_of_all_classes_except_one_leaves_a_model(nameless):
    names = load_model(nameless).classnames
    with learner_of(nameless) as client:
        assert client.delete("/v1/examples", params={"class": names[1:]}).status_code == 200
        assert client.get("/v1/model").json()["classes"] == [names[0]]
        refused = client.delete("/v1/examples", params={"class": names[0]})
    assert refused.status_code == 422 and load_model(nameless).classnames == names[:1]
