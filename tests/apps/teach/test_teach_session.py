"""Session of the teach page: its model, evaluation, features on disk, handlers and command."""

import json
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.hegraph import UserError
from trainers.hegraph.apps.demo.answer import compute_answer
from trainers.hegraph.apps.demo.drawing import SIDE, data_url
from trainers.hegraph.apps.teach import session as module
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.session import Session, write_sample
from trainers.hegraph.apps.teach.view import View, find_neediest
from trainers.hegraph.commands import teach as command
from trainers.hegraph.commands.label import parse_arguments
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.datasets.images import open_image
from trainers.hegraph.estimator.incremental import image_ids
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.labels.suggest import suggest
from trainers.hegraph.estimator.model_selection.candidates import Candidate
from trainers.hegraph.estimator.training import train_model
from trainers.hegraph.features.backbones.identity import MINI_CONFIG
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.utils.files import write_tensors
from trainers.hegraph.utils.reading import read_tensors

NAMES = ("zero", "one", "two", "six")


@pytest.fixture
def session(mini, tmp_path) -> Session:
    """Four classes of three scans, a wrongly labelled scan, and eleven unlabelled scans."""
    dataset = load_digits_dataset()
    for name in NAMES:
        for number, item in enumerate([item for item in dataset.train if item.classname == name][:6]):
            folder = tmp_path / "project" / (f"train/{name}" if number < 3 else "unlabelled")
            folder.mkdir(parents=True, exist_ok=True)
            dataset.open(item.path).save(folder / f"{name}-{number}.png")
    shutil.move(folder / "zero-3.png", tmp_path / "project/train/one")
    return Session(Project(tmp_path / "project"), mini, "hegraph-mini")


def last(session: Session) -> View:
    for _ in session.update():
        pass
    return session.view


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
        feature = session.features[picture.digest][None]
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
    view = last(session)
    views = session.try_changes()
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(next, views).result()
    assert tried.number == view.number + 1 and not [*views] and not [*session.try_changes()]
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
    assert find_neediest("abc", correct, counts) == neediest


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


def test_stored_features_are_read_for_the_same_backbone(session, mini, monkeypatch):
    before = last(session)
    again = Session(session.project, mini, "hegraph-mini")
    monkeypatch.setattr(again, "_encode", lambda pictures: 1 / 0)
    assert last(again).suggestions == before.suggestions
    file = session.features_file
    monkeypatch.setattr(module, "hash_json", lambda value: "another")
    assert Session(session.project, mini, "hegraph-mini").features == {}
    shutil.move(again.thumbnails, file.with_name("elsewhere"))
    again.thumbnails.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(UserError, match="leads out of the folder"):
        Session(session.project, mini, "hegraph-mini")


WIDTH = 64  # of hegraph-mini


@pytest.mark.parametrize(("row", "message"), [
    (torch.zeros(WIDTH), "of norm 0"), (torch.full((WIDTH,), torch.nan), "of norm nan"),
    (torch.eye(WIDTH)[0].double(), "got float64"), (torch.eye(WIDTH)[0].int(), "got int32"),
    (torch.eye(WIDTH + 1)[0], r"got float32 \[65\]"), (torch.ones(WIDTH), "of norm 8"), (None, "damaged"),
])  # fmt: skip
def test_unusable_features_are_encoded_again_with_warning(session, mini, caplog, row, message):
    before, file = last(session), session.features_file
    if row is None:
        file.write_bytes(b"damaged")
    else:
        rows, metadata = read_tensors(file, "features")
        write_tensors(file, rows | {min(rows): row}, metadata)
    again = Session(session.project, mini, "hegraph-mini")
    [record] = caplog.records
    assert re.search(f"features-.*{message}.*are encoded again", record.message)
    assert last(again).suggestions == before.suggestions
    caplog.clear()
    assert Session(session.project, mini, "hegraph-mini").features.keys() == again.features.keys()
    assert not caplog.records


def test_features_are_on_disk_when_a_tab_closes(session, mini, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 4)

    def on_disk() -> int:
        return len(Session(session.project, mini, "hegraph-mini").features)

    views = session.update()
    for _ in range(3):
        next(views)
    assert on_disk() > 0, "the first batch is written at once"
    views.close()
    assert on_disk() == len(session.features) == 12
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    views = session.update()
    assert [next(views).waiting, next(views).waiting] == [12, 8]
    assert on_disk() == 20, "written while images are encoded"
    session._encode(session._missing(session.view.contents.unlabelled)[:4])
    session.save()
    assert on_disk() == 24


def test_full_disk_while_encoding_is_reported(session, mini, disk_full_after):
    with disk_full_after(100), pytest.raises(UserError, match="cannot"):
        last(session)
    assert session.view.waiting == 0
    last(session)
    assert len(Session(session.project, mini, "hegraph-mini").features) == len(session.features) == 24


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


def test_damaged_files_are_not_counted(session):
    folder = session.project.folder
    (folder / "train/one/cut.png").write_bytes((folder / "train/one/one-0.png").read_bytes()[:60])
    (folder / "unlabelled/cut.png").write_bytes(b"no image")
    view = last(session)
    assert (len(view.contents.classes["one"]), len(view.contents.unlabelled)) == (4, 11)
    assert sorted(problem.split()[0] for problem in view.problems) == ["train/one/cut.png", "unlabelled/cut.png"]


def test_moved_project_is_not_created_again_while_encoding(session, tmp_path):
    """The folder is moved between two batches; the session neither writes features nor thumbnails at the old place."""
    encode = session._encode

    def encode_and_move(pictures):
        if session.project.folder.exists():
            session.project.folder.rename(tmp_path / "moved away")
        encode(pictures)

    session._encode = encode_and_move
    with pytest.raises(UserError, match="was removed"):
        list(session.update())
    assert not session.project.folder.exists()
    (tmp_path / "moved away").rename(session.project.folder)  # it can be moved back
    session._encode = encode
    assert list(session.update())[-1].model is not None


def test_image_moved_while_encoding_is_encoded_later(session):
    picture = session.view.contents.unlabelled[0]
    session.project.move([picture], "six")
    session._encode([picture])
    assert (last(session).problems, len(session.view.contents.classes["six"])) == ([], 4)


def test_every_suspicious_label_is_tried(session, monkeypatch):
    monkeypatch.setattr(module, "TRIED_AT_ONCE", 2)
    one, two = (session.view.contents.classes[name] for name in ("one", "two"))
    session.project.move(one[:2], "two")
    session.project.move(two[:2], "one")
    issues = last(session).issues
    assert len(issues) > 2
    tried = [len(view.corrected) for view in session.try_changes()]
    assert tried == [*range(2, len(issues), 2), len(issues)]


def test_encoding_stops_and_resumes_labelled_first(session, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 4)
    views = session.update()
    assert [next(views).waiting, next(views).waiting] == [24, 20]
    session.stopping.set()
    assert [view.waiting for view in views] == [16]
    assert {p.path for p in session.view.contents.unlabelled if p.digest in session.features} == set()
    assert last(session).waiting == 16
    session.stopping.clear()
    assert [view.waiting for view in session.update()] == [16, 12, 8, 4, 0]


# The handlers of the page


@pytest.fixture
def gradio() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")


@pytest.fixture
def teacher(session, tmp_path, gradio):
    from trainers.hegraph.apps.teach.page import Teacher

    (tmp_path / "uploads").mkdir()
    last(session)
    return Teacher(session, tmp_path / "uploads")


def test_boards_escape_names_and_show_the_view(teacher):
    from trainers.hegraph.apps.teach.page import BOARDS

    session, evil = teacher.session, "<img src=x onerror=alert(1)>"
    folder = session.project.folder / "train"
    (folder / evil).mkdir()
    Image.new("RGB", (8, 8)).save(folder / evil / f'{evil}".png')
    (folder / "empty").mkdir()
    shutil.copy(folder / "one/one-0.png", folder / "two/copy.png")
    session.stopping.set()
    last(session)
    shown = dict(zip(BOARDS, teacher.boards(evil, evil)))
    for html in shown.values():
        assert "<img src=x" not in html and 'alert(1)>".png' not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown["classes"]
    in_check = ("against <b>one</b>", "Move to zero", "Confused classes", 'data-to="two">Keep in two only')
    in_status = ("Encode 1 more image", " to check</span>", "(no image)", f"({session.view.correct} of 14 images)")
    assert all(text in shown["check"] for text in in_check) and all(text in shown["status"] for text in in_status)
    teacher.do({"do": "keep-in", "digest": session.view.contents.classes["two"][0].digest, "to": "two"})
    last(session)
    assert 'data-do="keep-in"' not in teacher.boards()[2]


def test_missing_suggestions_are_explained(teacher):
    session, folder = teacher.session, teacher.session.project.folder
    label = 3  # position of the board
    assert "Most useful images first" in teacher.boards()[label]
    shutil.rmtree(folder / "unlabelled")
    last(session)
    assert "No unlabelled images" in teacher.boards()[label]
    shutil.copytree(folder / "train/six", folder / "unlabelled")
    last(session)
    assert "copies of images in the classes" in teacher.boards()[label]
    Image.new("RGB", (20, 20)).save(folder / "unlabelled/new.png")
    next(session.update())
    assert "appear when the images are encoded" in teacher.boards()[label]


def counts(teacher) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in teacher.session.project.read().classes.items()}


def event(data: dict) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Event of a board and its request, as Gradio passes them."""
    return SimpleNamespace(_data=data), SimpleNamespace(session_hash="tab")


def test_message_of_the_later_action_stays(teacher):
    first, second, other = (
        teacher.refresh(lambda text=text: (text, ""), tab)
        for text, tab in (("first", "a"), ("second", "a"), ("third", "b"))
    )
    assert ["first" in next(first)[0], "second" in next(second)[0], "third" in next(other)[0]] == [True] * 3
    assert "second" in next(first)[0]


def test_each_button_performs_its_action(teacher):
    before = counts(teacher)
    picture = teacher.session.view.contents.classes["one"][0]
    image = {"image": picture.path, "digest": picture.digest}
    for data, message in (
        ({"do": "add-class", "name": "cat"}, "Class cat added; drop images on it"),
        ({"do": "rename", "place": "cat", "name": "dog"}, "Class cat renamed to dog"),
        ({"do": "move", "to": "dog", "images": json.dumps([picture])}, ""), ({"do": "delete", "place": "dog"}, ""),
        ({"do": "undo"}, "Undone: the class dog deleted"),
    ):  # fmt: skip
        assert teacher.do(data) == (message, "")
    assert counts(teacher) == before | {"one": 3, "dog": 1}
    teacher.do({"do": "undo"})
    teacher.do({"do": "confirm", **image})
    assert teacher.session.project.read().confirmed == {picture.digest}
    for what, stopped, message in (("stop", True, ""), ("resume", False, ""), ("fly", False, "Unknown action.")):
        *_, (status, *_, number) = teacher.act(None, *event({"do": what}))
        assert message in status and number == teacher.session.view.number
        assert teacher.session.stopping.is_set() == stopped
    with pytest.raises(UserError, match="the canvas is empty"):
        teacher.do({"do": "draw", "place": "one"})


def sent(teacher, *files: Path) -> str:
    """Upload files as the script of the page does; returns its description of them."""
    return json.dumps([[shutil.copy(file, teacher.uploads), file.name] for file in files])


def test_only_uploaded_files_are_added(teacher):
    folder = teacher.session.project.folder
    files = [folder / f"{name}.png" for name in ("train/one/one-0", "unlabelled/two-4", "unlabelled/two-5")]
    message, problem = teacher.do({"do": "add", "place": "one", "files": sent(teacher, *files), "failed": '["d.png"]'})
    assert message == "2 images added"
    assert problem == "Not added: d.png did not arrive, or is too large; one-0.png exists already"
    assert not any(teacher.uploads.iterdir())
    assert (counts(teacher)["one"], len(last(teacher.session).suggestions)) == (6, 9), (
        "a labelled image is not suggested"
    )
    for names in ('[{"path": "/etc/hostname", "name": "x.png"}]', "[7]", "{", "null", "[" * 10_000):
        with pytest.raises(UserError, match="(send them|upload it) again"):
            teacher.do({"do": "add", "place": "two", "files": names, "failed": "[]"})
        with pytest.raises(UserError, match="the images arrived damaged"):
            teacher.do({"do": "move", "to": "two", "images": names})
    shown = list(teacher.refresh(lambda: teacher.do({"do": "add", "place": "two", "files": "{"})))
    assert "Error: the files arrived damaged" in shown[-1][0]
    shutil.rmtree(folder)
    assert "was removed" in list(teacher.refresh())[-1][0]


def test_refused_uploads_are_named_as_sent(teacher, tmp_path):
    (tmp_path / "Notes.zip").write_text("no zip file")
    shutil.make_archive(str(tmp_path / "good"), "zip", teacher.session.project.folder, "train")
    files = sent(teacher, tmp_path / "Notes.zip", tmp_path / "good.zip")
    message, problem = teacher.do({"do": "zip", "files": files, "failed": "[]"})
    assert problem.startswith("Not added: Notes.zip is damaged or not a project's zip file")
    assert "six-0.png exists already" in problem and str(teacher.uploads) not in problem
    teacher.session.view = View(0, teacher.session.view.contents)
    teacher.do({"do": "add-class", "name": "cat"})
    events = {"do": "rename", "place": "cat", "name": "Mouse"}, {"do": "rename", "place": "unlabelled", "name": "Mouse"}
    message, problem = (list(teacher.act(None, *event(data)))[-1][0] for data in events)
    assert "Class cat renamed to Mouse." in message
    assert "Error: &#39;unlabelled&#39; is not a class" in problem
    deep: list = []
    for _ in range(2_000):
        deep = [deep]
    assert "Unknown action" in list(teacher.act(None, *event({"do": deep})))[-1][0]


def test_damaged_file_has_no_thumbnail(teacher):
    (teacher.session.project.folder / "train/one/cut.png").write_bytes(b"no image")
    first, *_, end = (each[1] for each in teacher.refresh())
    assert "<span" in first and 'file="' not in first and "cut.png of one" not in end
    assert "cut.png is not an image" in end


def test_drawing_is_added_and_prediction_explained(teacher):
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(255, (130, 40, 160, 240))
    drawing = data_url(canvas)
    assert teacher.do({"do": "draw", "place": "two"}, drawing) == ("1 image added", "")
    session, model = teacher.session, last(teacher.session).model
    [drawn] = [each for each in session.view.contents.classes["two"] if each.name.startswith("drawing-")]
    shutil.copy(session.project.folder / drawn.path, teacher.uploads)
    pictures = session.view.trained_on
    features = torch.stack([session.features[picture.digest] for picture in pictures])
    torch.testing.assert_close(model.support_set.keys(), features)
    answers, expected = teacher.answers(), compute_answer(model, session.features[drawn.digest][None])
    for request in ({"drawing": drawing}, {"path": str(teacher.uploads / drawn.name)}):
        html = answers(request)
        assert f"--share: {expected.scores[0].adapted:.4f}" in html
        for position, _ in expected.neighbours:
            assert f"gradio_api/file={session.thumbnail(pictures[position])}" in html
    Image.new("RGB", (20, 10)).save(teacher.uploads / "photo.png")
    assert "chart" in answers({"path": str(teacher.uploads / "photo.png")}), "an upload is not converted into a scan"


def test_exported_model_and_project_open_again(teacher, tmp_path):
    session, project = teacher.session, teacher.session.project
    shutil.unpack_archive(teacher.export("model.zip")[1], tmp_path)
    features = torch.stack([*session.features.values()])
    expected = session.view.model.probabilities(features)
    taken = load_model(tmp_path / "model")
    torch.testing.assert_close(taken.probabilities(features), expected)
    assert taken.prompts is not None, "needed to add a class"
    assert taken.trained_on.seed == 1
    labelled = [project.folder / picture.path for picture in session.view.trained_on]
    assert taken.image_ids == tuple(image_ids(labelled).tolist()), "train-more skips images of the project"
    project.move([session.view.contents.unlabelled[0]], "")
    project.add_class("empty")
    _, path = teacher.export("project.zip")
    shutil.unpack_archive(path, tmp_path / "other")
    assert Project(tmp_path / "other").read().images == project.read().images
    assert not (tmp_path / "other" / ".hegraph/removed").exists(), "removed files are not exported"
    project.delete_class("six")
    message, problem = teacher.do({"do": "zip", "files": sent(teacher, Path(path)), "failed": '["b.zip"]'})
    assert message == "3 images added", "images that were missing"
    assert problem.startswith("Not added: b.zip did not arrive, or is too large; one-0.png exists already; ")
    session.view = View(0, session.view.contents)
    assert "There is no model yet" in teacher.export("model.zip")[0]


def test_onnx_file_gives_the_probabilities_of_the_page(teacher):
    pytest.importorskip("onnx", reason="onnx is not installed, which makes the file")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, which runs the file")
    problem, path = teacher.export("model.onnx")
    assert problem == ""
    session, suggestions = teacher.session, teacher.session.view.suggestions
    pixels = [session.backbone.preprocess(open_image(session.project.read_bytes(each.picture))) for each in suggestions]
    run = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = run.run(["probabilities"], {run.get_inputs()[0].name: torch.stack(pixels).numpy()})
    assert found.max(axis=1) == pytest.approx([each.probability for each in suggestions], abs=1e-5)


def test_page_has_all_boards_and_polls_changes(teacher):
    from trainers.hegraph.apps.teach.page import build_page

    page = build_page(teacher.session, teacher.uploads)
    ids = [getattr(each, "elem_id", "") for each in page.blocks.values()]
    assert [ids.count(name) for name in ("status", "classes", "check", "label", "zip", "sketch", "try")] == [1] * 7
    number = teacher.session.view.number
    _, request = event({})
    assert (teacher.poll(number, request)[0], teacher.poll(number - 1, request)[-1]) == ({"__type__": "update"}, number)


# The command


def test_backbone_of_last_time_is_the_default(tmp_path, cli_error):
    file = tmp_path / "encoder.json"
    assert command.find_encoder(file, "", "") == ("ViT-B-16-quickgelu", "openai")
    assert command.find_encoder(file, "hegraph-mini", "") == command.find_encoder(file, "mini", "")
    assert command.find_encoder(file, "mini", "") == ("hegraph-mini", "")
    file.write_text('{"model": "RN50", "pretrained": "openai"}')
    assert command.find_encoder(file, "", "") == ("RN50", "openai")
    assert command.find_encoder(file, "", "yfcc15m") == ("RN50", "yfcc15m")
    file.write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"encoder\.json"):
        command.find_encoder(file, "", "")
    assert (command.parse_arguments([]).host, command.parse_arguments([]).folder) == ("127.0.0.1", None)
    assert cli_error("teach", tmp_path, "--port", 0).startswith("error: cannot listen")


def test_unknown_backbone_leaves_no_folder(gradio, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    assert command.main([str(tmp_path / "nothere"), "--backbone", "no-backbone"]) == 2
    assert "no-backbone" in capsys.readouterr().err and not (tmp_path / "nothere").exists()


def test_features_are_saved_when_the_program_ends(gradio, session, monkeypatch):
    sessions: list[Session] = []

    def serve(page, *given, **options):
        sessions.append(page.args[0])
        sessions[0]._encode(session._missing(session.view.contents.unlabelled))

    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "launch_page", serve)
    assert command.main([str(session.project.folder), "--backbone", "hegraph-mini"]) == 0
    on_disk, _ = read_tensors(session.features_file, "features")
    assert on_disk.keys() == sessions[0].features.keys() and len(on_disk) == 11


def test_command_serves_folder_or_sample(gradio, tmp_path, monkeypatch):
    served = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(
        command, "launch_page", lambda page, *given, **options: served.append((page.args[0], given, options))
    )
    sample = tmp_path / "output/teach-digits"
    for arguments in (["mine", "--backbone", "hegraph-mini", "--port", "7861"], ["mine"], [], []):
        assert sample.exists() == (len(served) > 2), "the sample is written without FOLDER"
        assert command.main(arguments) == 0
    assert [session.project.folder for session, _, _ in served] == [tmp_path / "mine"] * 2 + [sample] * 2
    contents = Project(sample).read()
    assert ([len(pictures) for pictures in contents.classes.values()], len(contents.unlabelled)) == ([3] * 10, 150)
    assert {session.name for session, _, _ in served} == {"hegraph-mini"}
    _, (host, port, css), options = served[0]
    assert (host, port, ".card" in css) == ("127.0.0.1", 7861, True)
    assert options == {"max_file_size": 2**33, "allowed_paths": [str(tmp_path / "mine/.hegraph/thumbnails")]}


# Backbones


@pytest.fixture
def untrained(tmp_path) -> str:
    """Name of a model with the architecture of hegraph-mini and random weights."""
    folder, config = tmp_path / "untrained", json.loads(MINI_CONFIG.read_text())
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_switching_back_encodes_nothing_again(session, untrained, monkeypatch):
    before = last(session)
    session.switch(untrained, "")
    assert last(session).correct < before.correct
    monkeypatch.setattr(Session, "_encode", None)
    session.switch("hegraph-mini", "")
    assert last(session).correct == before.correct
    assert len([*(session.project.folder / ".hegraph").glob("features-*.safetensors")]) == 2


def test_answers_use_the_backbone_of_the_model(teacher, untrained):
    session, answers = teacher.session, teacher.answers()
    picture = session.view.trained_on[0]
    shutil.copy(session.project.folder / picture.path, teacher.uploads)
    before = answers({"path": str(teacher.uploads / picture.name)})
    session.switch(untrained, "")  # a model of the new backbone is not trained yet
    assert answers({"path": str(teacher.uploads / picture.name)}) == before
    last(session)
    assert answers({"path": str(teacher.uploads / picture.name)}) != before


def test_next_session_has_the_chosen_backbone(session, untrained):
    session.switch(untrained, "")
    assert command.find_encoder(session.project.folder / ".hegraph/encoder.json", "", "") == (untrained, "")


def test_comparison_equals_leave_one_out_of_the_page(session, untrained, monkeypatch):
    monkeypatch.setattr(module, "read_candidates", lambda: [Candidate(name=untrained)])
    view, results = last(session), session.compare(offline=True)
    assert [str(result.candidate) for result in results] == ["hegraph-mini", untrained]
    assert results[0].accuracy == pytest.approx(100 * view.correct / view.evaluated)
    assert session.name == "hegraph-mini"


def test_comparison_leaves_out_images_removed_meanwhile(session, monkeypatch):
    picture = session.project.read().classes["one"][0]
    monkeypatch.setattr(module, "read_candidates", lambda: session.project.move([picture], "") or [])
    [result] = session.compare(offline=True)
    assert (result.error, len(result.outcome)) == ("", 12)


def test_comparison_needs_two_classes(tmp_path, mini, refused):
    (tmp_path / "project").mkdir()
    with refused("classes.few"):
        Session(Project(tmp_path / "project"), mini, "hegraph-mini").compare(offline=True)
