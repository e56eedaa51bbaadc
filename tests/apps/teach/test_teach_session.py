"""Session of the teach page: its model, evaluation, features on disk, handlers and command."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from teach_files import NAMES, last, updated

from trainers.hegraph import UserError
from trainers.hegraph.apps.teach import session as module, view as view_module
from trainers.hegraph.apps.teach.encoded_images import EncodedImages
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.sample import write_sample
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.apps.teach.view import find_neediest
from trainers.hegraph.commands import teach as command
from trainers.hegraph.commands.label import parse_arguments
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.labels.suggest import suggest
from trainers.hegraph.estimator.training import train_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.utils.reading import read_tensors


def test_suggestions_equal_model_and_order_of_suggest(session, mini, tmp_path):
    view = last(session)
    assert (len(view.suggestions), view.waiting, view.problems) == (11, 0, [])
    assert view.model.classnames == tuple(sorted(NAMES))
    loaded = ImageModel(view.model, mini)
    paths = [session.project.folder / each.picture.path for each in view.suggestions]
    for each, row in zip(view.suggestions, loaded.probabilities(paths)):
        assert each.probability == pytest.approx(row.max().item(), abs=1e-6)
        assert each.label == view.model.classnames[int(row.argmax())]
    everything = sorted((session.project.folder / "unlabelled").iterdir())
    order = suggest(view.model, loaded.features(everything), 24)
    assert paths == [everything[place] for place in order]
    session.project.move([view.suggestions[0].picture], "six")
    assert (len(last(session).suggestions), session.view.evaluated) == (10, view.evaluated + 1)


def test_evaluation_equals_training_without_each_image(session):
    view = last(session)
    pictures = [(picture, name) for name in sorted(NAMES) for picture in view.contents.classes[name]]
    support_set, taken = view.model.support_set, []
    for place, (picture, name) in enumerate(pictures):
        cfg = session._configuration(NAMES, int(support_set.counts.max()))
        other = train_model(support_set.without(torch.arange(len(pictures)) == place), session.origin, cfg, "cpu")
        feature = session.encoded_images.features[picture.digest][None]
        taken.append((name, other.classnames[int(other.classifier.logits(feature).argmax())]))
    assert (view.correct, view.evaluated) == (sum(name == found for name, found in taken), 13)
    assert {(a, b): count for a, b, count in view.confusions} == Counter((a, b) for a, b in taken if a != b)
    picture, issue = view.issues[0]
    assert (picture.path, issue.label, issue.suggested) == ("train/one/zero-3.png", "one", "zero")
    assert issue.score > 0
    session.project.confirm(picture)
    assert picture not in [other for other, _ in last(session).issues]
    session.project.move([picture], "zero")
    assert last(session).correct > view.correct


def test_check_lists_the_labels_that_label_check_lists(mini, tmp_path):
    write_sample(tmp_path / "sample")
    session = Session(Project(tmp_path / "sample"), mini, "hegraph-mini")
    view = last(session)
    train = view.model.support_set
    bank = train.keys(), train.labels, train.positive, session.origin.logit_scale, list(train.names)
    scores = [issue.score for issue in find_label_issues(*bank)]
    above = parse_arguments(["check", "--root", "DIR"]).above
    expected = [score for score in scores if score > above]
    assert 0 < len(expected) < sum(score > 0 for score in scores)
    assert [issue.score for _, issue in view.issues] == pytest.approx(expected)


def test_tried_changes_equal_changed_labels(session):
    updated(session)
    views = session.evaluate()
    view = next(views)
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(next, views).result()
    assert tried.number == view.number + 1 and not [*views] and not [*session.evaluate()]
    assert tried.corrected.keys() == {picture.path for picture, _ in tried.issues}
    picture, issue = tried.issues[0]
    session.project.move([picture], issue.suggested)
    after = last(session)
    assert after.correct == tried.corrected[picture.path] > view.correct
    assert (view.before, after.before) == (None, view.accuracy)


@pytest.mark.parametrize(("correct", "counts", "neediest"), [
    ((3, 4, 0), (4, 4, 0), ("c", 0, 0)), ((3, 4, 9), (4, 4, 10), ("a", 3, 4)), ((1, 4, 2), (1, 5, 2), ("a", 1, 1)),
    ((2, 2, 2), (2, 2, 2), ("a", 2, 2)),
])  # fmt: skip
def test_neediest_class_has_lowest_estimated_accuracy(correct, counts, neediest):
    assert find_neediest([*zip("abc", correct, counts)]) == neediest


def test_names_make_a_model_and_images_an_evaluation(mini, tmp_path):
    session = Session(Project(tmp_path), mini, "hegraph-mini")
    session.project.add_class("zero")
    assert last(session).model is None
    session.project.add_class("{one}")
    assert last(session).model.classnames == ("zero", "{one}")
    assert (session.view.evaluated, session.view.issues) == (0, [])
    for name, colour in (("zero", "red"), ("{one}", "blue")):
        assert last(session).evaluated == 0
        Image.new("RGB", (8, 8), colour).save(tmp_path / "train" / name / "a.png")
    (tmp_path / "train/zero/notes.png").write_text("no image")
    session.project.add_class("two")
    assert (last(session).evaluated, len(session.view.model.classnames)) == (2, 3)
    [problem] = session.view.problems
    assert problem.startswith("train/zero/notes.png is not an image")


def test_prompts_of_digits_are_for_digits_only(mini, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "train" / name).mkdir(parents=True)
    session = Session(Project(tmp_path), mini, "hegraph-mini")
    assert last(session).model.prompts.positive[0][0][0] == 'a photo of the number: "one".'
    assert session.view.model.trained_on.dataset == "Digits"
    session.project.add_class("bird")
    assert last(session).model.prompts.positive[0][0][0] == "a photo of a bird."
    assert session.view.model.trained_on.dataset == "images"
    session.project.delete_class("bird")
    assert last(session).model.prompts.positive[0][0][0] == 'a photo of the number: "one".'


def test_every_suspicious_label_is_tried(session, monkeypatch):
    monkeypatch.setattr(module, "TRIED_AT_ONCE", 2)
    monkeypatch.setattr(view_module, "SUSPICIOUS", -100.0)
    one, two = (session.view.contents.classes[name] for name in ("one", "two"))
    session.project.move(one[:2], "two")
    session.project.move(two[:2], "one")
    updated(session)
    first, *views = session.evaluate()
    assert len(first.issues) > 2 and first.corrected == {}
    assert [len(view.corrected) for view in views] == [*range(2, len(first.issues), 2), len(first.issues)]


@pytest.fixture
def gradio() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")


# The command


def test_backbone_of_last_time_is_the_default(tmp_path, cli_error):
    file = tmp_path / "encoder.json"
    new = command.read_encoder(file)
    assert command.find_encoder(new, "", "") == ("ViT-B-16-quickgelu", "openai")
    assert command.find_encoder(new, "hegraph-mini", "") == command.find_encoder(new, "mini", "")
    assert command.find_encoder(new, "mini", "") == ("hegraph-mini", "")
    file.write_text('{"model": "RN50", "pretrained": "openai"}')
    stored = command.read_encoder(file)
    assert command.find_encoder(stored, "", "") == ("RN50", "openai") and stored.uses_names
    assert command.find_encoder(stored, "", "yfcc15m") == ("RN50", "yfcc15m")
    file.write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"encoder\.json"):
        command.read_encoder(file)
    assert (command.parse_arguments([]).host, command.parse_arguments([]).folder) == ("127.0.0.1", None)
    assert cli_error("teach", tmp_path, "--port", 0).startswith("error: cannot listen")


def test_unknown_backbone_leaves_no_folder(gradio, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    assert command.main([str(tmp_path / "nothere"), "--create", "--backbone", "no-backbone"]) == 2
    assert "no-backbone" in capsys.readouterr().err and not (tmp_path / "nothere").exists()


def test_features_are_saved_when_the_program_ends(gradio, session, monkeypatch):
    sessions: list[Session] = []

    def serve(page, *given, **options):
        sessions.append(page.args[0].session)
        encoded_images = sessions[0].encoded_images
        encoded_images.encode(encoded_images.missing(session.view.contents.unlabelled))

    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "launch_page", serve)
    assert command.main([str(session.project.folder), "--backbone", "hegraph-mini"]) == 0
    on_disk, _ = read_tensors(session.encoded_images.file, "features")
    assert on_disk.keys() == sessions[0].encoded_images.features.keys() and len(on_disk) >= 11


def test_command_serves_folder_or_sample(gradio, tmp_path, monkeypatch):
    served = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(
        command, "launch_page", lambda page, *given, **options: served.append((page.args[0].session, given, options))
    )
    sample = tmp_path / "output/teach-digits"
    for arguments in (["mine", "--create", "--backbone", "hegraph-mini", "--port", "7861"], ["mine"], [], []):
        assert sample.exists() == (len(served) > 2), "the sample is written without FOLDER"
        assert command.main(arguments) == 0
    assert [session.project.folder for session, _, _ in served] == [tmp_path / "mine"] * 2 + [sample] * 2
    contents = Project(sample).read()
    assert ([len(pictures) for pictures in contents.classes.values()], len(contents.unlabelled)) == ([3] * 10, 150)
    assert {session.name for session, _, _ in served} == {"hegraph-mini"}
    _, (host, port, css), options = served[0]
    assert (host, port, ".card" in css) == ("127.0.0.1", 7861, True)
    assert options == {"max_file_size": 2**33, "allowed_paths": [str(tmp_path / "mine/.hegraph/thumbnails")]}


def test_missing_folder_is_created_only_after_a_question(gradio, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "launch_page", lambda *given, **options: None)
    folder = tmp_path / "nothing_here"
    assert command.main([str(folder), "--backbone", "hegraph-mini"]) == 2
    error = f"there is no folder {folder}; choose another, or add --create"
    assert error in capsys.readouterr().err and not folder.exists()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer, exit_code in (("", 2), ("n", 2), ("y", 0)):
        assert not folder.exists()
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert command.main([str(folder), "--backbone", "hegraph-mini"]) == exit_code
    assert folder.is_dir()


# Backbones


def test_switching_back_encodes_nothing_again(session, untrained, monkeypatch):
    before = last(session)
    session.switch(untrained, "")
    assert last(session).correct < before.correct
    monkeypatch.setattr(EncodedImages, "encode", None)
    session.switch("hegraph-mini", "")
    assert last(session).correct == before.correct
    assert len([*(session.project.folder / ".hegraph").glob("features-*.safetensors")]) == 2


def test_next_session_has_the_chosen_backbone(session, untrained):
    session.switch(untrained, "")
    stored = command.read_encoder(session.project.folder / ".hegraph/encoder.json")
    assert command.find_encoder(stored, "", "") == (untrained, "")
