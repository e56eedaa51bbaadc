"""Requests of the teach page: parts, actions, uploads, exports and the comparison of backbones."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from teach_files import NAMES, last, png, updated

from trainers.hegraph.apps.demo.answer import compute_answer
from trainers.hegraph.apps.demo.drawing import SIDE, data_url
from trainers.hegraph.apps.teach import backbone_table
from trainers.hegraph.apps.teach.backbone_table import compare_backbones
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.apps.teach.view import View
from trainers.hegraph.apps.teach.worker import Worker
from trainers.hegraph.datasets.images import open_image
from trainers.hegraph.estimator.incremental import image_ids
from trainers.hegraph.estimator.labels.issues import LabelIssue
from trainers.hegraph.estimator.model_selection import backbones
from trainers.hegraph.estimator.model_selection.candidates import Candidate
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import TextTrustRecord


@pytest.fixture
def teacher(session, tmp_path, gradio):
    from trainers.hegraph.apps.teach.handlers import Teacher

    (tmp_path / "uploads").mkdir()
    last(session)
    return Teacher(Worker(session), tmp_path / "uploads")


def ask(teacher, function: str, /, **values) -> dict:
    """Answer to a request of the page."""
    functions = {each.__name__: each for each in teacher.functions()}
    return functions[f"teach_{function}"](values)


def act(teacher, do: str, **values) -> tuple[str, str]:
    """Message and problem of an action."""
    answer = ask(teacher, "act", do=do, **values)
    return answer.get("message", ""), answer["problem"]


def parts(teacher) -> dict[str, object]:
    """All parts of the page."""
    return ask(teacher, "changes", number=-1)["parts"]


def images_of(teacher, place: str) -> str:
    """HTML of the images of a place."""
    return "\n".join(ask(teacher, "thumbs", place=place)["cards"].values())


def counts(teacher) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in teacher.session.project.read().classes.items()}


def sent(teacher, *files: Path) -> list[list[str]]:
    """Upload files as the script of the page does; returns its description of them."""
    return [[shutil.copy(file, teacher.uploads), file.name] for file in files]


# Parts


def test_parts_escape_names_and_show_the_view(teacher):
    session, evil = teacher.session, "<img src=x onerror=alert(1)>"
    folder = session.project.folder / "train"
    (folder / evil).mkdir()
    Image.new("RGB", (8, 8)).save(folder / evil / f'{evil}".png')
    (folder / "empty").mkdir()
    shutil.copy(folder / "one/one-0.png", folder / "two/copy.png")
    session.stopping.set()
    last(session)
    shown = parts(teacher)
    lists = [key for key in shown if key.startswith("list:")]  # keys, which the script never reads as HTML
    for html in [str(value) for key, value in shown.items() if key not in lists] + [images_of(teacher, evil)]:
        assert "<img src=x" not in html and 'alert(1)>".png' not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown[f"card:classes/{evil}"]
    issues = "".join(str(value) for key, value in shown.items() if key.startswith("card:issues"))
    assert "against <b>one</b>" in issues and "Move to zero" in issues
    assert "Confused classes" in shown["slot:confusions"]
    [digest] = shown["list:duplicates"]
    assert 'data-to="two">Keep in two only' in shown[f"card:duplicates/{digest}"]
    assert "Encode 1 more image" in shown["slot:messages"]
    assert " to check</span>" in shown["slot:facts"] and "(no image)" in shown["slot:facts"]
    act(teacher, "keep-in", digest=digest, to="two")
    assert parts(teacher)["list:duplicates"] == []


def test_page_before_the_first_model_asks_for_nothing(session, tmp_path, gradio):
    from trainers.hegraph.apps.teach.handlers import Teacher

    shown = parts(Teacher(Worker(session), tmp_path))["slot:facts"]
    assert "Preparing the model" in shown and "Add two classes" not in shown


@pytest.mark.parametrize(("score", "odds"), [(2.0, "about 7 to 1"), (6.9, "about 992 to 1"), (6.91, "over 1000 to 1")])
def test_odds_against_a_label_are_rounded(teacher, score, odds):
    picture = teacher.session.view.contents.classes["one"][0]
    teacher.session._publish(suspicious=[(picture, LabelIssue(0, "one", "zero", score=score))])
    assert f"the model gives odds of {odds}\nagainst <b>one</b>" in parts(teacher)[f"card:issues/{picture.digest}"]


def test_only_changed_parts_are_sent(teacher):
    first = ask(teacher, "changes", number=-1)
    assert {"list:classes", "card:classes/one", "slot:facts", "thumbs:one"} <= first["parts"].keys()
    assert ask(teacher, "changes", number=first["number"])["parts"] == {}
    picture = teacher.session.view.contents.classes["one"][0]
    answer = ask(teacher, "act", do="move", to="two", images=[picture], number=first["number"])
    assert {"thumbs:one", "thumbs:two", "slot:score/one", "slot:score/two"} <= answer["parts"].keys()
    assert not {"card:classes/one", "thumbs:six", "slot:score/six", "list:classes"} & answer["parts"].keys()
    assert "2 images" in answer["parts"]["slot:score/one"] or "3 images" in answer["parts"]["slot:score/one"]


def test_images_of_a_class_are_sent_on_request(teacher):
    assert "data-image" not in str([value for key, value in parts(teacher).items() if "classes" in key])
    answer = ask(teacher, "thumbs", place="one", limit=3)
    assert (len(answer["keys"]), answer["more"]) == (3, 1)
    assert answer["keys"] == [picture.path for picture in teacher.session.view.contents.classes["one"][:3]]


def test_accepted_image_disappears_before_the_training(teacher):
    first, second = teacher.session.view.suggestions[:2]
    before = ask(teacher, "changes", number=-1)
    answer = ask(teacher, "act", do="move", to="six", images=[first.picture], number=before["number"])
    keys = answer["parts"]["list:suggestions"]
    assert first.picture.digest not in keys and second.picture.digest in keys


def test_page_of_an_earlier_process_gets_everything(teacher):
    from trainers.hegraph.apps.teach.board import Board

    number = ask(teacher, "changes", number=-1)["number"]
    later = Board(teacher.worker)
    later._number = max(later._number, number)
    assert later.changes(number)["parts"].keys() == parts(teacher).keys()


def test_names_that_the_encoder_does_not_know_are_listed(teacher):
    session = teacher.session
    trust = TextTrustRecord(weights=(0.1, 0.9, 0.2, 0.9), scale=1.0, share=0.9)  # of one, six, two and zero
    model = session.view.model.model_copy(update={"text_trust": trust})
    session.view = replace(session.view, model=model)
    assert "By images alone: <b>one, two</b>" in parts(teacher)["slot:facts"]


def test_accuracy_is_the_mean_of_the_classes(session):
    scores = {"a": (90, 100), "b": (1, 10), "empty": (0, 0)}
    view = View(1, session.view.contents, scores=scores, correct=91, evaluated=110)
    assert view.accuracy == pytest.approx((0.9 + 0.1) / 2)


def test_first_view_announces_the_model(mini, session, tmp_path, gradio):
    from trainers.hegraph.apps.teach.board import Board

    board = Board(Worker(session))
    assert "Preparing the model" in board.changes(-1)["parts"]["slot:facts"]
    updated(session)
    assert "Preparing" not in board.changes(-1)["parts"]["slot:facts"]


def test_header_names_the_encoder_and_its_knowledge(teacher):
    assert "<b>mini</b>: digits and letters only" in parts(teacher)["slot:facts"]


def test_missing_suggestions_are_explained(teacher):
    session, folder = teacher.session, teacher.session.project.folder
    assert "Most useful images first" in parts(teacher)["slot:label"]
    shutil.rmtree(folder / "unlabelled")
    last(session)
    assert "No unlabelled images" in parts(teacher)["slot:label"]
    shutil.copytree(folder / "train/six", folder / "unlabelled")
    last(session)
    assert "copies of images in the classes" in parts(teacher)["slot:label"]
    Image.new("RGB", (20, 20)).save(folder / "unlabelled/new.png")
    session.stopping.set()
    last(session)
    assert "appear when the images are encoded" in parts(teacher)["slot:label"]


def test_damaged_file_has_no_thumbnail(teacher):
    (teacher.session.project.folder / "train/one/cut.png").write_bytes(b"no image")
    teacher.session.refresh()
    card = ask(teacher, "thumbs", place="one")["cards"]["train/one/cut.png"]
    assert '<span class="grey">cut.png' in card and "file=" not in card
    last(teacher.session)
    assert "train/one/cut.png" not in ask(teacher, "thumbs", place="one")["keys"]
    assert "cut.png is not an image" in parts(teacher)["slot:rest"]


# Actions


def test_each_button_performs_its_action(teacher):
    before = counts(teacher)
    picture = teacher.session.view.contents.classes["one"][0]
    for do, values, message in (
        ("add-class", {"name": "cat"}, "Class cat added; drop images on it"),
        ("rename", {"place": "cat", "name": "dog"}, "Class cat renamed to dog"),
        ("move", {"to": "dog", "images": [picture]}, ""),
        ("delete", {"place": "dog"}, ""),
        ("undo", {}, "Undone: the class dog deleted"),
    ):
        assert act(teacher, do, **values) == (message, "")
    assert counts(teacher) == before | {"one": 3, "dog": 1}
    act(teacher, "undo")
    act(teacher, "confirm", image=picture.path, digest=picture.digest)
    assert teacher.session.project.read().confirmed == {picture.digest}
    for do, stopped, problem in (("stop", True, ""), ("resume", False, ""), ("fly", False, "Unknown action")):
        assert act(teacher, do) == ("", problem)
        assert teacher.session.stopping.is_set() == stopped
    assert act(teacher, "draw", place="one") == ("", "Error: the canvas is empty")


def test_confident_predictions_are_one_change(teacher):
    session = teacher.session
    acceptable = session.view.acceptable
    assert 0 < len(acceptable) < 11
    assert f"Accept all above 95 % ({len(acceptable)} image" in parts(teacher)["slot:label"]
    before = counts(teacher)
    message, problem = act(teacher, "accept")
    assert (message.split()[0], problem) == (str(len(acceptable)), "")
    expected = {name: before[name] + [label for _, label in acceptable].count(name) for name in NAMES}
    assert counts(teacher) == expected
    act(teacher, "undo")
    assert counts(teacher) == before


def test_only_probable_and_usual_images_are_accepted(session):
    view = last(session)
    by_picture = {each.picture: each for each in view.suggestions}
    expected = {p for p, each in by_picture.items() if each.probability >= 0.95 and not each.is_unusual}
    assert {picture for picture, _ in view.acceptable} == expected


def test_example_fills_an_empty_project(mini, tmp_path, gradio):
    from trainers.hegraph.apps.teach.handlers import Teacher

    session = Session(Project(tmp_path / "new"), mini, "hegraph-mini")
    teacher = Teacher(Worker(session), tmp_path)
    assert "Open the example" in parts(teacher)["slot:example"] and parts(teacher)["flag:empty"]
    assert act(teacher, "sample") == ("180 images added", "")
    contents = session.project.read()
    assert [len(pictures) for pictures in contents.classes.values()] == [3] * 10 and len(contents.unlabelled) == 150
    assert not parts(teacher)["flag:empty"]
    act(teacher, "undo")
    assert session.project.read().classes == {}


# Uploads


def test_dropped_folders_become_classes(teacher, tmp_path):
    names = (
        "photos/cat/a.png", "photos/cat/b.png", "photos/train/dog/c.png", "photos/test/cat/d.png",
        "photos/unlabelled/old/e.png", "f.png", "photos/bad:name/g.png",
    )  # fmt: skip
    files = []
    for number, name in enumerate(names):
        path = teacher.uploads / f"{number}.png"
        path.write_bytes(png("red", (number + 1, 2)))
        files.append([str(path), name])
    message, problem = act(teacher, "add", files=files)
    assert message == "5 images added"
    assert "without / \\ : *" in problem and "got 'bad:name'" in problem
    contents = teacher.session.project.read()
    added = {name: sorted(picture.name for picture in contents.images[name]) for name in ("cat", "dog")}
    assert added == {"cat": ["a.png", "b.png"], "dog": ["c.png"]}
    assert {"e.png", "f.png"} <= {picture.name for picture in contents.unlabelled}
    assert act(teacher, "undo") == ("Undone: 5 images added from folders", "")
    assert counts(teacher).keys() == {*NAMES}


def test_only_uploaded_files_are_added(teacher):
    folder = teacher.session.project.folder
    files = [folder / f"{name}.png" for name in ("train/one/one-0", "unlabelled/two-4", "unlabelled/two-5")]
    message, problem = act(teacher, "add", place="one", files=sent(teacher, *files), failed=["d.png"])
    assert message == "2 images added"
    assert problem == "Not added: d.png did not arrive, or is too large; one-0.png exists already"
    assert not any(teacher.uploads.iterdir())
    assert (counts(teacher)["one"], len(last(teacher.session).suggestions)) == (6, 9), (
        "a labelled image is not suggested"
    )
    assert "upload it again" in act(teacher, "add", place="two", files=[["/etc/hostname", "x.png"]])[1]
    for value in ([7], None, "[", {"path": 3}):
        for key in ("files", "images"):
            assert ask(teacher, "act", do="add", place="two", **{key: value})["problem"].startswith(
                "Error: the request"
            )
    shutil.rmtree(folder)
    assert "was removed" in act(teacher, "add-class", name="cat")[1]


def test_refused_uploads_are_named_as_sent(teacher, tmp_path):
    (tmp_path / "Notes.zip").write_text("no zip file")
    shutil.make_archive(str(tmp_path / "good"), "zip", teacher.session.project.folder, "train")
    files = sent(teacher, tmp_path / "Notes.zip", tmp_path / "good.zip")
    _, problem = act(teacher, "zip", files=files)
    assert problem.startswith("Not added: Notes.zip is damaged or not a project's zip file")
    assert "six-0.png exists already" in problem and str(teacher.uploads) not in problem
    assert act(teacher, "rename", place="unlabelled", name="Mouse")[1].startswith("Error: 'unlabelled' is not a class")
    deep: list = []
    for _ in range(2_000):
        deep = [deep]
    assert ask(teacher, "act", do=deep)["problem"].startswith("Error: the request")


# Try, export, backbones


def test_drawing_is_added_and_prediction_explained(teacher):
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(255, (130, 40, 160, 240))
    drawing = data_url(canvas)
    assert act(teacher, "draw", place="two", drawing=drawing) == ("1 image added", "")
    session, model = teacher.session, last(teacher.session).model
    [drawn] = [each for each in session.view.contents.classes["two"] if each.name.startswith("drawing-")]
    shutil.copy(session.project.folder / drawn.path, teacher.uploads)
    pictures = session.view.trained_on
    features = torch.stack([session.encoded_images.features[picture.digest] for picture in pictures])
    torch.testing.assert_close(model.support_set.keys(), features)
    answers, expected = teacher.answers(), compute_answer(model, session.encoded_images.features[drawn.digest][None])
    for request in ({"drawing": drawing}, {"path": str(teacher.uploads / drawn.name)}):
        html = answers(request)
        assert f"--share: {expected.scores[0].adapted:.4f}" in html
        for position, _ in expected.neighbours:
            assert f"gradio_api/file={session.encoded_images.thumbnail(pictures[position])}" in html
    Image.new("RGB", (20, 10)).save(teacher.uploads / "photo.png")
    assert "chart" in answers({"path": str(teacher.uploads / "photo.png")}), "an upload is not converted into a scan"


def exported(teacher, name: str) -> str:
    """Path of an exported file."""
    return ask(teacher, "export", name=name)["url"].removeprefix("gradio_api/file=")


def test_exported_model_and_project_open_again(teacher, tmp_path):
    session, project = teacher.session, teacher.session.project
    shutil.unpack_archive(exported(teacher, "model.zip"), tmp_path)
    features = torch.stack([*session.encoded_images.features.values()])
    expected = session.view.model.probabilities(features)
    taken = load_model(tmp_path / "model")
    torch.testing.assert_close(taken.probabilities(features), expected)
    assert taken.prompts is not None, "needed to add a class"
    assert taken.trained_on.seed == 1
    labelled = [project.folder / picture.path for picture in session.view.trained_on]
    assert taken.image_ids == tuple(image_ids(labelled).tolist()), "train-more skips images of the project"
    project.move([session.view.contents.unlabelled[0]], "")
    project.add_class("empty")
    path = exported(teacher, "project.zip")
    shutil.unpack_archive(path, tmp_path / "other")
    assert Project(tmp_path / "other").read().images == project.read().images
    assert not (tmp_path / "other" / ".hegraph/removed").exists(), "removed files are not exported"
    project.delete_class("six")
    message, problem = act(teacher, "zip", files=sent(teacher, Path(path)), failed=["b.zip"])
    assert message == "3 images added", "images that were missing"
    assert problem.startswith("Not added: b.zip did not arrive, or is too large; one-0.png exists already; ")
    session.view = View(0, session.view.contents)
    assert "there is no model yet" in ask(teacher, "export", name="model.zip")["problem"]
    assert "no such file" in ask(teacher, "export", name="../x")["problem"]


def test_onnx_file_gives_the_probabilities_of_the_page(teacher):
    pytest.importorskip("onnx", reason="onnx is not installed, which makes the file")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, which runs the file")
    path = exported(teacher, "model.onnx")
    session, suggestions = teacher.session, teacher.session.view.suggestions
    pixels = [session.backbone.preprocess(open_image(session.project.read_bytes(each.picture))) for each in suggestions]
    run = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = run.run(["probabilities"], {run.get_inputs()[0].name: torch.stack(pixels).numpy()})
    assert found.max(axis=1) == pytest.approx([each.probability for each in suggestions], abs=1e-5)


def test_page_has_all_parts(teacher):
    from trainers.hegraph.apps.teach.page import build_page

    page = build_page(teacher.worker, teacher.uploads)
    values = {each.elem_id: str(getattr(each, "value", "")) for each in page.blocks.values() if each.elem_id}
    html = values["top"] + values["teach"]
    of_cards = ("slot:score/", "thumbs:", "card:", "flag:", "model:")
    for key in parts(teacher):
        if not key.startswith(of_cards):
            kind, name = key.split(":")
            assert html.count(f'data-{kind}="{name}"') == 1, key


def test_answers_use_the_backbone_of_the_model(teacher, untrained):
    session, answers = teacher.session, teacher.answers()
    picture = session.view.trained_on[0]
    shutil.copy(session.project.folder / picture.path, teacher.uploads)
    before = answers({"path": str(teacher.uploads / picture.name)})
    session.switch(untrained, "")  # a model of the new backbone is not trained yet
    assert answers({"path": str(teacher.uploads / picture.name)}) == before
    last(session)
    assert answers({"path": str(teacher.uploads / picture.name)}) != before


def test_comparison_has_the_accuracy_of_the_page(session, untrained, monkeypatch, gradio):
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [Candidate(name=untrained)])
    view, results = last(session), compare_backbones(session, offline=True)
    assert [str(result.candidate) for result in results] == ["hegraph-mini", untrained]
    assert results[0].accuracy == pytest.approx(100 * view.correct / view.evaluated)
    assert session.name == "hegraph-mini"


def test_comparison_leaves_out_images_removed_meanwhile(session, monkeypatch):
    picture = session.project.read().classes["one"][0]
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: session.project.move([picture], "") or [])
    [result] = compare_backbones(session, offline=True)
    assert (result.error, len(result.outcome)) == ("", 12)


def test_comparison_needs_two_classes(tmp_path, mini, refused):
    (tmp_path / "project").mkdir()
    with refused("classes.few"):
        compare_backbones(Session(Project(tmp_path / "project"), mini, "hegraph-mini"), offline=True)


def test_table_of_backbones_names_sizes_and_errors(teacher, monkeypatch):
    missing = Candidate(name="ViT-B-16-quickgelu", tag="openai", megabytes=599, licence="mit")
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [missing])
    html = ask(teacher, "compare", offline=True)["html"]
    for text in ("<h2>mini</h2>", "<h2>CLIP ViT-B/16 (OpenAI)</h2>", "599 MB to download", "are not on this machine"):
        assert text in html
    assert "No backbone is recommended: hegraph-mini is the only one that was compared." in html
    assert "Recommended" not in html
    assert html.count("parameters") == 1, "not shown for a backbone that is not on this machine"


def test_backbones_near_chance_get_no_recommendation(teacher, untrained, monkeypatch):
    """One of 13 images is right, and always naming the class of 4 images is right for 4 of 13, 30.8 %."""
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [Candidate(name=untrained)])
    one_right = lambda encoded: (0.0, np.arange(len(encoded.labels)) == 0)  # noqa: E731
    monkeypatch.setattr(backbones, "held_out_outcome", one_right)
    html = ask(teacher, "compare", offline=True)["html"]
    assert "No backbone is recommended: none is clearly better than always naming the largest class (30.8 %)." in html


def test_usable_backbones_get_a_recommendation(teacher, untrained, monkeypatch):
    monkeypatch.setattr(backbone_table, "read_candidates", lambda: [Candidate(name=untrained)])
    speed = lambda backbone, images: 10.0 if backbone.name.startswith("hegraph-mini") else 1.0  # noqa: E731
    monkeypatch.setattr(backbones, "measure_speed", speed)
    html = ask(teacher, "compare", offline=True)["html"]
    assert "Recommended: <b>hegraph-mini</b>" in html and f'data-do="switch" data-to="{untrained}"' in html
    assert act(teacher, "switch", to=untrained)[0] == f"The backbone is {untrained}"
    assert teacher.session.name == untrained
