"""Groups of images in a teach project: accuracy, suspicious labels, page, exported model and command."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from teach_files import last, png, updated, write

from trainers.hegraph import UserError
from trainers.hegraph.apps.teach import backbone_table
from trainers.hegraph.apps.teach.backbone_table import compare_backbones
from trainers.hegraph.apps.teach.board import Board
from trainers.hegraph.apps.teach.folds import folds_of_pictures
from trainers.hegraph.apps.teach.groups import groups_of_pictures, log_groups, warn_of_folders
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.apps.teach.view import View, has_same_training
from trainers.hegraph.apps.teach.worker import Worker
from trainers.hegraph.commands import teach as command
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.estimator.inputs import checked_groups
from trainers.hegraph.estimator.labels import SUSPICIOUS
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.training import train_model
from trainers.hegraph.models.folder import load_model, save_model

PATTERN = r"(v\d)_"
FRAMES = 3  # near-copies of a scan
DIGITS = {"left": ("zero", "one", "two", "three"), "right": ("four", "five", "six", "seven")}


@pytest.fixture
def project(tmp_path) -> Project:
    """Two classes of four videos, each three frames of a scan of another digit, so that only copies show the class."""
    dataset = load_digits_dataset()
    scans = {item.classname: item.path for item in reversed(dataset.train)}
    videos = [(name, digit) for name, digits in DIGITS.items() for digit in digits]
    for number, (name, digit) in enumerate(videos):
        folder = tmp_path / "project/train" / name
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(FRAMES):
            image = dataset.open(scans[digit]).point(lambda value, dark=2 * frame: max(value - dark, 0))
            image.save(folder / f"v{number}_{frame}.png")
    return Project(tmp_path / "project")


@pytest.fixture
def grouped(project, mini) -> Session:
    return Session(project, mini, "hegraph-mini", uses_names=False, group_pattern=PATTERN)


@pytest.fixture
def alone(project, mini) -> Session:
    """The session without groups."""
    return Session(project, mini, "hegraph-mini", uses_names=False)


def videos(view: View) -> list[int]:
    """Number of the video of each training image, by its file name."""
    return [int(picture.name[1]) for picture in view.trained_on]


def correct_without_folds(session: Session, labels: torch.Tensor, folds: torch.Tensor) -> int:
    """Number of images that models without their folds classify correctly, if all images are in folds."""
    view = session.view
    images = replace(view.model.support_set, labels=labels)
    cfg = session._configuration(view.model.classnames, len(labels) // 2)
    correct = 0
    for fold in folds.unique():
        held_out = folds == fold
        fitted = train_model(images.without(held_out), session.origin, cfg, "cpu")
        predicted = fitted.classifier.logits(images.keys()[held_out]).argmax(dim=1)
        correct += int((predicted == labels[held_out]).sum())
    return correct


def parts(session: Session) -> dict:
    return Board(Worker(session)).changes(0)["parts"]


# Evaluation


def test_accuracy_equals_refits_without_groups_of_a_fold(grouped):
    view = last(grouped)
    support_set = view.model.support_set
    labels = support_set.labels
    folds = folds_of_pictures(view.trained_on, labels, support_set.groups)
    videos_of_folds = {*zip(folds.tolist(), videos(view))}
    assert sorted(fold for fold, _ in videos_of_folds) == [0, 0, 1, 1, 2, 2, 3, 3]
    correct = correct_without_folds(grouped, labels, folds)
    assert (view.correct, view.evaluated, view.num_groups) == (correct, 24, 8)


def test_near_copies_raise_accuracy_only_without_groups(grouped, alone):
    """A new video shows nothing of its class, so its accuracy is the one of a random guess."""
    assert (last(alone).correct, last(grouped).correct) == (24, 12)


def test_labels_are_judged_without_the_group(grouped, alone):
    view = last(grouped)
    model = view.model
    support_set = model.support_set
    data = (support_set.keys(), support_set.labels, model.known_text, model.logit_scale, list(support_set.names))
    issues = find_label_issues(*data, groups=torch.tensor(videos(view)))
    expected = [(view.trained_on[issue.index], issue) for issue in issues if issue.score > SUSPICIOUS]
    assert view.suspicious == expected and len(expected) > 0
    assert last(alone).suspicious == []


def test_tried_change_equals_the_evaluation_after_it(grouped):
    view = last(grouped)
    assert len(view.corrected) == 3
    for picture, issue in view.issues:
        grouped.project.move([picture], issue.suggested)
        assert last(grouped).correct == view.corrected[picture.path]
        grouped.project.undo()


def test_moved_image_keeps_its_group(grouped):
    before = updated(grouped)
    picture = before.contents.classes["left"][0]
    grouped.project.move([picture], "right")
    after = updated(grouped)
    groups = dict(zip([each.path for each in after.trained_on], after.model.support_set.groups.tolist()))
    assert picture.path == "train/left/v0_0.png" and picture not in after.trained_on
    assert groups["train/right/v0_0.png"] == groups["train/left/v0_1.png"] != groups["train/left/v1_1.png"]
    assert len({*groups.values()}) == 8


def test_renamed_file_belongs_to_its_new_group(grouped):
    last(grouped)
    folder = grouped.project.folder / "train/left"
    (folder / "v0_0.png").rename(folder / "single.png")
    view = updated(grouped)
    assert not view.is_evaluated
    assert last(grouped).num_groups == 9
    groups = dict(zip([each.name for each in view.trained_on], view.model.support_set.groups.tolist()))
    assert groups["single.png"] < 0


def test_other_groups_are_another_training(grouped):
    view = updated(grouped)
    assert has_same_training(view, replace(view, number=9))
    support_set = view.model.support_set
    for groups in (None, support_set.groups.roll(1)):
        changed = view.model.model_copy(update={"support_set": replace(support_set, groups=groups)})
        assert not has_same_training(view, replace(view, model=changed))


def test_images_of_one_group_are_not_evaluated(project, mini):
    session = Session(project, mini, "hegraph-mini", group_pattern="(v)")
    view = last(session)
    assert (view.evaluated, view.scores, view.is_evaluated) == (0, {}, True)
    assert "All images are of one group; add images of another group" in parts(session)["slot:facts"]


def test_pattern_without_match_changes_no_number(project, alone, mini):
    session = Session(project, mini, "hegraph-mini", uses_names=False, group_pattern="(nothing)")
    view = last(session)
    expected = last(alone)
    for name in ("correct", "evaluated", "num_groups", "scores", "confusions", "suspicious", "corrected"):
        assert getattr(view, name) == getattr(expected, name)
    torch.testing.assert_close(view.model.classifier.weights, expected.model.classifier.weights, rtol=0, atol=0)


def test_comparison_of_backbones_has_accuracy_with_groups(grouped, monkeypatch, gradio):
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [])
    view = last(grouped)
    [result] = compare_backbones(grouped, offline=True)
    assert result.accuracy == pytest.approx(100 * view.correct / view.evaluated)


# Exported model


def test_exported_model_knows_groups_by_name(grouped, alone, tmp_path):
    view = last(grouped)
    save_model(grouped.model_to_export(), tmp_path / "model")
    model = load_model(tmp_path / "model")
    expected = checked_groups([f"v{number}" for number in videos(view)], 24)
    assert model.support_set.groups.equal(expected)
    assert model.calibration.temperature != last(alone).model.calibration.temperature


def test_image_without_match_is_a_group_of_its_own(project):
    write(project.folder, {"train/left/a.png": png("red"), "train/left/b.png": png("blue")})
    pictures = [*project.read().pictures()]
    groups = groups_of_pictures(pictures, PATTERN)
    unmatched = [group for picture, group in zip(pictures, groups.tolist()) if not picture.name.startswith("v")]
    assert unmatched == [-1, -2] and len(groups.unique()) == 10
    assert groups_of_pictures(pictures, "") is None


# Page


def test_page_says_that_accuracy_is_for_new_groups(grouped, alone):
    last(grouped)
    last(alone)
    facts = parts(grouped)["slot:facts"]
    assert "Accuracy on new groups" in facts and "mean of the classes; 8 groups)" in facts
    assert "without the images of their group classifies" in facts
    assert "Accuracy on held-out images" in parts(alone)["slot:facts"]
    picture, _ = grouped.view.issues[0]
    assert "Without the images of its group, the model" in parts(grouped)[f"card:issues/{picture.digest}"]


def test_page_and_terminal_report_missing_groups(project, grouped, mini, caplog):
    session = Session(project, mini, "hegraph-mini", uses_names=False, group_pattern="(<b>)")
    assert "matches the pattern of groups <code>(&lt;b&gt;)</code>" in parts(session)["slot:messages"]
    assert "pattern of groups" not in parts(grouped)["slot:messages"]
    log_groups(session.view.contents, "(<b>)")
    log_groups(session.view.contents, "(v0)")
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 2
    assert "DATASET.GROUP_PATTERN '(<b>)' matches none of 24 paths, such as train/left/v0_0.png; each" in messages[0]
    assert "DATASET.GROUP_PATTERN matches 3 of 24 paths" in messages[1]


def test_terminal_shows_pattern_and_number_of_groups(project, caplog):
    caplog.set_level(logging.INFO)
    log_groups(project.read(), PATTERN)
    [message] = caplog.messages
    assert message.startswith(r"groups: 8 in the paths of 24 images, by --group-pattern '(v\d)_'; --group-pattern ''")


def test_project_without_images_gets_no_warning(tmp_path, mini, caplog):
    session = Session(Project(tmp_path), mini, "hegraph-mini", group_pattern=PATTERN)
    log_groups(session.view.contents, PATTERN)
    assert "pattern of groups" not in parts(session)["slot:messages"]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# The command


@pytest.fixture
def sessions(gradio, monkeypatch) -> list[Session]:
    """Sessions that the command serves."""
    served: list[Session] = []
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "launch_page", lambda page, *_, **options: served.append(page.args[0].session))
    return served


def test_next_session_has_the_pattern_until_forgotten(sessions, project):
    for arguments in (["--group-pattern", PATTERN], [], ["--group-pattern", ""], []):
        assert command.main([str(project.folder), "--backbone", "mini", *arguments]) == 0
    assert [session.group_pattern for session in sessions] == [PATTERN, PATTERN, "", ""]


def test_backbone_that_is_switched_to_has_the_pattern(grouped, untrained):
    grouped.switch(untrained, "")
    assert command.read_encoder(grouped.project.folder / ".hegraph/encoder.json").group_pattern == PATTERN


@pytest.mark.parametrize("pattern", ["(", "v1", "(v)(1)"])
def test_malformed_pattern_is_refused_at_the_start(sessions, cli_error, tmp_path, pattern):
    line = cli_error("teach", tmp_path / "new", "--create", "--group-pattern", pattern)
    expected = "DATASET.GROUP_PATTERN: expected a regular expression with one group in parentheses"
    assert line == f"error: {expected}, got {pattern!r}\n"
    assert not (tmp_path / "new").exists() and not sessions


def test_malformed_pattern_of_last_time_is_refused(grouped):
    grouped.remember()
    file = grouped.project.folder / ".hegraph/encoder.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"group_pattern": "("}))
    with pytest.raises(UserError, match=r"encoder\.json.*expected a regular expression with one group in parentheses"):
        command.read_encoder(file)


@pytest.mark.parametrize("base", ["train/", ""])
def test_folders_in_class_folders_are_reported(project, caplog, base):
    shutil.rmtree(project.folder / "train")
    write(project.folder, {f"{base}cat/v1/a.png": png("red"), f"{base}dog/v2/a.png": png("blue"), "test/a/a.png": b""})
    warn_of_folders(project, project.read())
    [record] = caplog.records
    assert f"skipped folders in class folders (2), such as {base}cat/v1; move their images" in record.getMessage()
