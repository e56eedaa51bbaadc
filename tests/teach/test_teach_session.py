"""What a model makes of a project, and the page's handlers: numbers of the model itself, names as text, clear lines."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.datasets.images import open_image
from trainers.hegraph.demo.drawing import PNG, SIDE, as_png
from trainers.hegraph.estimator.training import learn
from trainers.hegraph.labels.__main__ import parse_arguments
from trainers.hegraph.labels.issues import find_label_issues
from trainers.hegraph.labels.suggest import suggest
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.teach import __main__ as command
from trainers.hegraph.teach import session as module
from trainers.hegraph.teach.project import Project
from trainers.hegraph.teach.session import Session, View, write_sample
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import write_tensors
from trainers.hegraph.utils.reading import read_tensors

NAMES = ("zero", "one", "two", "six")


@pytest.fixture(scope="session")
def mini():
    return load_backbone("hegraph-mini")


@pytest.fixture
def session(mini, tmp_path) -> Session:
    """Four classes of three scans each, one more that is labelled wrongly, and eleven scans without a label."""
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


def test_the_guesses_are_those_of_the_model_on_the_files_and_in_the_order_of_suggest(session, mini, tmp_path):
    view = last(session)
    assert (len(view.guesses), view.waiting, view.problems) == (11, 0, [])
    assert view.model.classnames == tuple(sorted(NAMES))
    loaded = ImageModel(view.model, mini)
    paths = [session.project.folder / guess.picture.path for guess in view.guesses]
    for guess, row in zip(view.guesses, loaded.probabilities(paths)):
        assert guess.probability == pytest.approx(row.max().item(), abs=1e-6)
        assert guess.label == view.model.classnames[int(row.argmax())]
    everything = sorted((session.project.folder / "unlabelled").iterdir())
    order = suggest(view.model, loaded.features(everything), 24)
    assert paths == [everything[place] for place in order]
    session.project.move(view.guesses[0].picture, "six")
    assert len(last(session).guesses) == 10
    assert session.view.judged == view.judged + 1


def test_images_are_judged_by_a_model_without_them_and_a_wrong_label_is_the_most_suspicious(session):
    view = last(session)
    pictures = [(picture, name) for name in sorted(NAMES) for picture in view.contents.classes[name]]
    support_set, taken = view.model.support_set, []
    for place, (picture, name) in enumerate(pictures):
        cfg = session._configuration(NAMES, int(support_set.counts.max()))
        other = learn(support_set.without(torch.arange(len(pictures)) == place), session.origin, cfg, "cpu")
        feature = session.features[picture.digest][None]
        taken.append((name, other.classnames[int(other.classifier.logits(feature).argmax())]))
    assert (view.right, view.judged) == (sum(name == found for name, found in taken), 13)
    assert {(a, b): count for a, b, count in view.confused} == Counter((a, b) for a, b in taken if a != b)
    picture, issue = view.doubts[0]
    assert (picture.path, issue.label, issue.suggested) == ("train/one/zero-3.png", "one", "zero")
    assert issue.score > 0
    session.project.keep(picture)
    assert picture not in [other for other, _ in last(session).doubts]
    session.project.move(picture, "zero")
    assert last(session).right > view.right


def test_check_lists_the_labels_that_label_check_lists(mini, tmp_path):
    write_sample(tmp_path / "sample")
    session = Session(Project(tmp_path / "sample"), mini, "hegraph-mini")
    view = last(session)
    support_set = view.model.support_set
    bank = (
        support_set.keys(),
        support_set.labels,
        support_set.positive,
        session.origin.logit_scale,
        list(support_set.names),
    )
    scores = [issue.score for issue in find_label_issues(*bank)]
    above = parse_arguments(["check", "--root", "DIR"]).above
    expected = [score for score in scores if score > above]
    assert 0 < len(expected) < sum(score > 0 for score in scores)
    assert [issue.score for _, issue in view.doubts] == pytest.approx(expected)


def test_names_alone_make_a_model_of_two_classes_and_images_of_two_classes_are_judged(mini, tmp_path):
    session = Session(Project(tmp_path), mini, "hegraph-mini")
    session.project.add_class("zero")
    assert last(session).model is None
    session.project.add_class("{one}")
    assert last(session).model.classnames == ("zero", "{one}")
    assert (session.view.judged, session.view.doubts) == (0, [])
    for name, colour in (("zero", "red"), ("{one}", "blue")):
        assert last(session).judged == 0
        Image.new("RGB", (8, 8), colour).save(tmp_path / "train" / name / "a.png")
    (tmp_path / "train/zero/notes.png").write_text("no image")
    session.project.add_class("two")
    assert (last(session).judged, len(session.view.model.classnames)) == (2, 3)
    [problem] = session.view.problems
    assert problem.startswith("train/zero/notes.png is not an image")


def test_features_are_kept_on_disk_and_only_those_of_this_backbone_are_taken(session, mini, monkeypatch):
    before = last(session)
    again = Session(session.project, mini, "hegraph-mini")
    monkeypatch.setattr(again, "_encode", lambda pictures: 1 / 0)
    assert last(again).guesses == before.guesses
    file = session.project.folder / ".hegraph" / "features.safetensors"
    monkeypatch.setattr(module, "hash_json", lambda value: "another")
    assert Session(session.project, mini, "hegraph-mini").features == {}
    shutil.move(again.thumbnails, file.with_name("elsewhere"))
    again.thumbnails.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(UserError, match="leads out of the folder"):
        Session(session.project, mini, "hegraph-mini")


WIDTH = 64  # of hegraph-mini


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (torch.zeros(WIDTH), "norm 1, got 0"), (torch.full((WIDTH,), torch.nan), "norm 1, got nan"),
        (torch.eye(WIDTH)[0].double(), "got float64"), (torch.eye(WIDTH)[0].int(), "got int32"),
        (torch.eye(WIDTH + 1)[0], r"got float32 \[65\]"), (torch.ones(WIDTH), "norm 1, got 8"), (None, "damaged"),
    ],
)  # fmt: skip
def test_unusable_features_are_encoded_again_with_warning(session, mini, caplog, row, said):
    before, file = last(session), session.project.folder / ".hegraph/features.safetensors"
    if row is None:
        file.write_bytes(b"damaged")
    else:
        rows, metadata = read_tensors(file, "features")
        write_tensors(file, rows | {min(rows): row}, metadata)
    again = Session(session.project, mini, "hegraph-mini")
    [record] = caplog.records
    assert re.search(f"features.safetensors.*{said}.*are encoded again", record.message)
    assert last(again).guesses == before.guesses
    caplog.clear()
    assert Session(session.project, mini, "hegraph-mini").features.keys() == again.features.keys()
    assert not caplog.records


def test_features_are_on_disk_when_a_tab_closes(session, mini, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)

    def on_disk() -> int:
        return len(Session(session.project, mini, "hegraph-mini").features)

    views = session.update()
    for _ in range(3):
        next(views)
    assert on_disk() > 0, "the first batch is written at once"
    views.close()
    assert on_disk() == len(session.features) == 12
    monkeypatch.setattr(module, "SECONDS", 0)
    views = session.update()
    assert [next(views).waiting, next(views).waiting] == [12, 8]
    assert on_disk() == 20, "written while images are encoded"
    session._encode(session._missing(session.view.contents.unlabelled)[:4])
    session.save()
    assert on_disk() == 24


def test_full_disk_while_encoding_is_reported_in_the_end(session, mini, disk_full_after):
    with disk_full_after(100), pytest.raises(UserError, match="cannot"):
        last(session)
    assert session.view.waiting == 0
    last(session)
    assert len(Session(session.project, mini, "hegraph-mini").features) == len(session.features) == 24


def test_mini_takes_only_digits_for_digits(mini, tmp_path):
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


def test_damaged_files_are_not_counted_as_images(session):
    folder = session.project.folder
    (folder / "train/one/cut.png").write_bytes((folder / "train/one/one-0.png").read_bytes()[:60])
    (folder / "unlabelled/cut.png").write_bytes(b"no image")
    view = last(session)
    assert len(view.contents.classes["one"]) == 4
    assert len(view.contents.unlabelled) == 11
    assert sorted(problem.split()[0] for problem in view.problems) == ["train/one/cut.png", "unlabelled/cut.png"]


def test_encoding_can_be_stopped_and_goes_on_and_what_is_labelled_comes_first(session, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
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
def teacher(session, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    from trainers.hegraph.teach.page import Teacher

    (tmp_path / "uploads").mkdir()
    last(session)
    return Teacher(session, tmp_path / "uploads")


def test_names_are_text_and_the_boards_say_what_there_is(teacher):
    from trainers.hegraph.teach.page import BOARDS

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
        assert "<img src=x" not in html
        assert 'alert(1)>".png' not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown["classes"]
    assert all(text in shown["check"] for text in ("Labelled <b>one</b>", "Move to zero", "Classes that are confused"))
    judged = f"({session.view.right} of 14)"
    for said in ("Encode the other 1 images", "Known by name alone: empty", 'data-to="two">It is two', judged):
        assert said in shown["status"]
    teacher.do({"do": "settle", "digest": session.view.contents.classes["two"][0].digest, "to": "two"})
    last(session)
    assert 'data-do="settle"' not in teacher.boards()[0]


def counts(teacher) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in teacher.session.project.read().classes.items()}


def test_each_button_does_what_it_says(teacher):
    before = counts(teacher)
    picture = teacher.session.view.contents.classes["one"][0]
    image = {"image": picture.path, "digest": picture.digest}
    for data, said in (
        ({"do": "add-class", "name": "cat"}, "Class cat added; drop images on it"),
        ({"do": "rename", "place": "cat", "name": "dog"}, "Class cat is called dog now"),
        ({"do": "move", "to": "dog", **image}, ""), ({"do": "delete", "place": "dog"}, ""),
        ({"do": "undo"}, "Taken back: the class dog deleted"),
    ):  # fmt: skip
        assert teacher.do(data) == (said, "")
    assert counts(teacher) == before | {"one": 3, "dog": 1}
    teacher.do({"do": "undo"})
    teacher.do({"do": "keep", **image})
    assert teacher.session.project.read().kept == {picture.digest}
    for what, stopped, said in (("stop", True, ""), ("go-on", False, ""), ("fly", False, "This button does nothing.")):
        *_, (status, *_, number) = teacher.act(None, SimpleNamespace(_data={"do": what}))
        assert said in status and number == teacher.session.view.number
        assert teacher.session.stopping.is_set() == stopped
    with pytest.raises(UserError, match="nothing is drawn"):
        teacher.do({"do": "draw", "place": "one"})


def sent(teacher, *files: Path) -> str:
    """What the page's script says of files that were uploaded."""
    return json.dumps([{"path": shutil.copy(file, teacher.uploads), "name": file.name} for file in files])


def test_files_that_came_are_added_and_no_other_file_of_this_machine(teacher):
    folder = teacher.session.project.folder
    files = [folder / f"{name}.png" for name in ("train/one/one-0", "unlabelled/two-4", "unlabelled/two-5")]
    said, problem = teacher.do({"do": "add", "place": "one", "files": sent(teacher, *files), "failed": '["d.png"]'})
    assert said == "2 images added"
    assert problem == "Not added: d.png did not arrive, or is too large; one-0.png is there already"
    assert not any(teacher.uploads.iterdir())
    assert (counts(teacher)["one"], len(last(teacher.session).guesses)) == (6, 9), "what is labelled is not asked again"
    for names in ('[{"path": "/etc/hostname", "name": "x.png"}]', "[7]", "{", "null", "[" * 10_000):
        with pytest.raises(UserError, match="send them again"):
            teacher.do({"do": "add", "place": "two", "files": names, "failed": "[]"})
    shown = list(teacher.shown(lambda: teacher.do({"do": "add", "place": "two", "files": "{"})))
    assert "Error: the files came damaged" in shown[-1][0]
    shutil.rmtree(folder)
    assert "not there any more" in list(teacher.shown())[-1][0]


def test_refused_uploads_are_named_as_sent(teacher, tmp_path):
    (tmp_path / "Notes.zip").write_text("no zip file")
    shutil.make_archive(str(tmp_path / "good"), "zip", teacher.session.project.folder, "train")
    files = sent(teacher, tmp_path / "Notes.zip", tmp_path / "good.zip")
    said, problem = teacher.do({"do": "zip", "files": files, "failed": "[]"})
    assert problem.startswith("Not added: Notes.zip is damaged or not a project's zip file")
    assert "six-0.png is there already" in problem
    assert str(teacher.uploads) not in problem
    teacher.session.view = View(0, teacher.session.view.contents)
    teacher.do({"do": "add-class", "name": "cat"})
    events = {"do": "rename", "place": "cat", "name": "Mouse"}, {"do": "rename", "place": "unlabelled", "name": "Mouse"}
    said, problem = (list(teacher.act(None, SimpleNamespace(_data=data)))[-1][0] for data in events)
    assert "Class cat is called Mouse now." in said
    assert "Error: &#39;unlabelled&#39; is not a class" in problem
    deep: list = []
    for _ in range(2_000):
        deep = [deep]
    assert "does nothing" in list(teacher.act(None, SimpleNamespace(_data={"do": deep})))[-1][0]


def test_damaged_file_has_no_broken_thumbnail(teacher):
    (teacher.session.project.folder / "train/one/cut.png").write_bytes(b"no image")
    first, *_, end = (each[1] for each in teacher.shown())
    assert "<span" in first and 'file="' not in first
    assert "cut.png of one" not in end
    assert "cut.png is not an image" in end


def test_a_drawing_becomes_an_image_and_what_is_tried_is_explained(teacher):
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(255, (130, 40, 160, 240))
    drawing = PNG + base64.b64encode(as_png(canvas)).decode()
    assert teacher.do({"do": "draw", "place": "two"}, drawing) == ("1 image added", "")
    session, model = teacher.session, last(teacher.session).model
    [drawn] = [each for each in session.view.contents.classes["two"] if each.name.startswith("drawing-")]
    shutil.copy(session.project.folder / drawn.path, teacher.uploads)
    feature = session.features[drawn.digest]
    for found in (teacher(drawing), teacher({"path": str(teacher.uploads / drawn.name)})):
        html, adapted, zero_shot, pictures = found
        assert adapted == pytest.approx(dict(zip(model.classnames, model.probabilities(feature[None])[0].tolist())))
        assert f"The images say <b>{next(iter(adapted))}</b>; the names of the classes alone say" in html
        assert f"<b>{next(iter(zero_shot))}</b>" in html.partition("alone say")[2]
        assert pictures[0] == (str(session.thumbnail(drawn)), "two: cosine 1.00")
        cosines = [float(caption.rpartition(" ")[2]) for _, caption in pictures]
        assert cosines == sorted(cosines, reverse=True) and len(cosines) == 5
    Image.new("RGB", (20, 10)).save(teacher.uploads / "photo.png")
    assert teacher({"path": str(teacher.uploads / "photo.png")})[1], "an upload is taken as it is, not as a scan"


def test_what_is_taken_along_opens_again(teacher, tmp_path):
    session, project = teacher.session, teacher.session.project
    shutil.unpack_archive(teacher.take("model.zip")[1], tmp_path)
    features = torch.stack([*session.features.values()])
    expected = session.view.model.probabilities(features)
    taken = load_model(tmp_path / "model")
    torch.testing.assert_close(taken.probabilities(features), expected)
    assert taken.prompts is not None, "from which a class can be added to it"
    assert taken.trained_on.seed == 1
    project.move(session.view.contents.unlabelled[0], "")
    project.add_class("empty")
    _, path = teacher.take("project.zip")
    shutil.unpack_archive(path, tmp_path / "other")
    assert Project(tmp_path / "other").read().images == project.read().images
    assert not (tmp_path / "other" / ".hegraph/removed").exists(), "what was removed stays here"
    project.delete_class("six")
    said, problem = teacher.do({"do": "zip", "files": sent(teacher, Path(path)), "failed": '["b.zip"]'})
    assert said == "3 images added", "those that were not there any more"
    assert problem.startswith("Not added: b.zip did not arrive, or is too large; one-0.png is there already; ")
    session.view = View(0, session.view.contents)
    assert "There is no model yet" in teacher.take("model.zip")[0]


def test_the_onnx_file_gives_the_probabilities_of_the_page(teacher):
    pytest.importorskip("onnx", reason="onnx is not installed, which makes the file")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, which runs the file")
    problem, path = teacher.take("model.onnx")
    assert problem == ""
    session, guesses = teacher.session, teacher.session.view.guesses
    pixels = [session.backbone.preprocess(open_image(session.project.data(guess.picture))) for guess in guesses]
    run = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = run.run(["probabilities"], {run.get_inputs()[0].name: torch.stack(pixels).numpy()})
    assert found.max(axis=1) == pytest.approx([guess.probability for guess in guesses], abs=1e-5)


def test_the_page_is_built_and_shows_only_what_has_changed(teacher):
    from trainers.hegraph.teach.page import build_page

    page = build_page(teacher.session, teacher.uploads)
    ids = [getattr(each, "elem_id", "") for each in page.blocks.values()]
    assert [ids.count(name) for name in ("status", "classes", "check", "label", "zip", "sketch", "drawing")] == [1] * 7
    number = teacher.session.view.number
    assert teacher.look(number)[0] == {"__type__": "update"}
    assert teacher.look(number - 1)[-1] == number


# The command


def test_what_encodes_images_is_what_was_said_last(tmp_path, capsys):
    file = tmp_path / "encoder.json"
    assert command.find_encoder(file, "", "") == ("ViT-B-16-quickgelu", "openai")
    assert command.find_encoder(file, "hegraph-mini", "") == command.find_encoder(file, "mini", "")
    assert command.find_encoder(file, "mini", "") == ("hegraph-mini", "")
    file.write_text('{"backbone": "RN50", "pretrained": "openai"}')
    assert command.find_encoder(file, "", "") == ("RN50", "openai")
    assert command.find_encoder(file, "", "yfcc15m") == ("RN50", "yfcc15m")
    file.write_text('{"backbone": 3}')
    with pytest.raises(UserError, match=r"encoder\.json"):
        command.find_encoder(file, "", "")
    assert (command.parse_arguments([]).host, command.parse_arguments([]).folder) == ("127.0.0.1", None)
    assert command.main([str(tmp_path), "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot listen")


def test_no_folder_is_left_without_a_backbone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    assert command.main([str(tmp_path / "nothere"), "--backbone", "no-backbone"]) == 2
    assert "no-backbone" in capsys.readouterr().err
    assert not (tmp_path / "nothere").exists()


def test_ended_program_keeps_encoded_features(session, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    sessions: list[Session] = []

    def serve(page, *given, **options):
        sessions.append(page.args[0])
        sessions[0]._encode(session._missing(session.view.contents.unlabelled))

    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "serve", serve)
    assert command.main([str(session.project.folder), "--backbone", "hegraph-mini"]) == 0
    on_disk, _ = read_tensors(session.project.folder / ".hegraph/features.safetensors", "features")
    assert on_disk.keys() == sessions[0].features.keys() and len(on_disk) == 11


def test_the_command_serves_a_folder_or_the_sample_and_keeps_what_encodes_it(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    served = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(command, "serve", lambda page, *given, **options: served.append((page.args[0], given, options)))
    sample = tmp_path / "output/teach-digits"
    for arguments in (["mine", "--backbone", "hegraph-mini", "--port", "7861"], ["mine"], [], []):
        assert sample.exists() == (len(served) > 2), "the sample is written where no FOLDER is given"
        assert command.main(arguments) == 0
    assert [session.project.folder for session, _, _ in served] == [tmp_path / "mine"] * 2 + [sample] * 2
    contents = Project(sample).read()
    assert [len(pictures) for pictures in contents.classes.values()] == [3] * 10
    assert len(contents.unlabelled) == 150
    assert {session.name for session, _, _ in served} == {"hegraph-mini"}
    _, (host, port, css), options = served[0]
    assert (host, port, ".card" in css) == ("127.0.0.1", 7861, True)
    assert options == {"max_file_size": 2**33, "allowed_paths": [str(tmp_path / "mine/.hegraph/thumbnails")]}
