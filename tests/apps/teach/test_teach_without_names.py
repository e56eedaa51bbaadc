"""Teach project without class names: images alone define the classes."""

from dataclasses import replace

import pytest
import torch
from teach_files import last, updated

from trainers.hegraph import UserError
from trainers.hegraph.apps.teach import backbone_table
from trainers.hegraph.apps.teach.backbone_table import compare_backbones, table_html
from trainers.hegraph.apps.teach.board import Board
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.apps.teach.worker import Worker
from trainers.hegraph.commands import teach as command
from trainers.hegraph.estimator.labels import SUSPICIOUS
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.model_selection.candidates import Candidate
from trainers.hegraph.models.folder import load_model, save_model


@pytest.fixture
def nameless(session, mini) -> Session:
    """The project of `session`, whose class names are not used."""
    return Session(session.project, mini, "hegraph-mini", uses_names=False)


def test_model_and_labels_to_check_need_no_names(nameless, monkeypatch):
    monkeypatch.setattr(type(nameless.backbone), "encode_text", None)
    view = last(nameless)
    model = view.model
    assert not model.has_text and model.prompts is None
    support_set = model.support_set
    nothing = torch.zeros(4, model.classifier.width)
    data = (support_set.keys(), support_set.labels, nothing, model.logit_scale, list(support_set.names))
    expected = [issue for issue in find_label_issues(*data) if issue.score > SUSPICIOUS]
    assert [issue for _, issue in view.issues] == expected and len(expected) > 0
    assert len(view.suggestions) == 11 and view.correct > 8


def test_renamed_classes_change_no_probability(nameless):
    before = updated(nameless).model
    nameless.project.rename_class("zero", "part 43")
    after = updated(nameless).model
    rows = [before.classnames.index({"part 43": "zero"}.get(name, name)) for name in after.classnames]
    torch.testing.assert_close(after.classifier.weights, before.classifier.weights[rows])


def test_class_without_images_waits_for_them(nameless):
    nameless.project.add_class("part 43")
    view = last(nameless)
    assert "part 43" not in view.model.classnames and view.evaluated == 13
    assert view.neediest == ("part 43", 0, 0)


def test_two_classes_without_images_make_no_model(mini, tmp_path):
    session = Session(Project(tmp_path), mini, "hegraph-mini", uses_names=False)
    for name in ("part 43", "part 44"):
        session.project.add_class(name)
    assert last(session).model is None
    with pytest.raises(UserError, match="add images to two classes"):
        session.model()
    assert "Add images to two classes." in Board(Worker(session)).changes(0)["parts"]["slot:facts"]


def test_page_says_that_names_are_not_used(nameless, session):
    last(nameless)
    last(session)
    facts = [Board(Worker(each)).changes(0)["parts"]["slot:facts"] for each in (nameless, session)]
    assert ["class names are not used" in text for text in facts] == [True, False]


def test_exported_model_needs_no_names(nameless, tmp_path):
    last(nameless)
    save_model(nameless.model_to_export(), tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert not model.has_text and model.trained_on.config["TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE"] == "none"


def test_table_of_backbones_has_no_zero_shot_column(nameless, untrained, monkeypatch, gradio):
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [Candidate(name=untrained)])
    results = compare_backbones(nameless, offline=True)
    assert [result.error for result in results] == ["", ""]
    html = table_html(results, nameless)
    assert "by names alone" not in html and "nan" not in html


def test_next_session_uses_no_names_either(nameless):
    file = nameless.project.folder / ".hegraph/encoder.json"
    nameless.remember()
    assert command.read_encoder(file).uses_names is False
    Session(nameless.project, nameless.backbone, "hegraph-mini").remember()
    assert command.read_encoder(file).uses_names is True


@pytest.mark.parametrize(("words", "names"), [([], None), (["--no-names"], False), (["--names"], True)])
def test_names_are_left_out_by_a_flag(words, names):
    assert command.parse_arguments(["photos", *words]).names is names


def test_encoder_without_text_needs_no_flag(session, mini):
    blind = replace(mini, name="mini without text", tokenizer=None)
    blind_session = Session(session.project, blind, "timm:mini")
    blind_session.project.add_class("part 43")
    view = last(blind_session)
    assert not view.model.has_text and "part 43" not in view.model.classnames and view.correct > 8
    facts = Board(Worker(blind_session)).changes(0)["parts"]["slot:facts"]
    assert "the encoder reads no text" in facts and "<b>mini</b>: images, but no text" in facts
    blind_session.remember()
    assert command.read_encoder(session.project.folder / ".hegraph/encoder.json").uses_names
