"""The folder that is taught from: every change whole, on disk and undone; nothing outside it read or written."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.datasets import images as images_module
from trainers.hegraph.teach import journal
from trainers.hegraph.teach import project as module
from trainers.hegraph.teach.project import Added, Contents, File, Picture, Project, file_name, new_name, read_zip
from trainers.hegraph.utils.errors import UserError

COLOURS = ("red", "lime", "blue", "gold", "teal", "pink", "navy", "gray")


def png(colour: str, size: tuple[int, int] = (4, 4)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but what the project keeps for itself."""
    inside = (path for path in folder.rglob("*") if path.is_file() and ".hegraph" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in inside}


def undone(project: Project, before: dict[str, bytes]) -> bool:
    project.undo()
    return files_of(project.folder) == before


@pytest.fixture
def project(tmp_path) -> Project:
    """Two classes, cat with two images and dog with one, and one image without a label."""
    for number, path in enumerate(("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "unlabelled/old/u.png")):
        (tmp_path / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / path).write_bytes(png(COLOURS[number]))
    return Project(tmp_path / "project")


def picture(project: Project, path: str) -> Picture:
    [found] = [each for each in project.read().pictures() if each.path == path]
    return found


def counts(contents: Contents) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in contents.classes.items()}


def test_plain_folders_are_read_with_what_is_left_out(project, tmp_path):
    folder = project.folder
    (folder / "train" / "loose.png").write_bytes(png("pink"))
    (folder / "train" / "cat" / "deeper").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(png("pink"))
    (folder / "train" / "cat" / "link.png").symlink_to(folder / "train" / "dog" / "a.png")
    (folder / "train" / "elk").symlink_to(folder / "train" / "dog")
    (folder / "unlabelled" / "out").symlink_to(tmp_path)
    contents = project.read()
    assert counts(contents) == {"cat": 2, "dog": 1}
    assert [each.path for each in contents.unlabelled] == ["unlabelled/old/u.png"]
    assert contents.pictures()[picture(project, "train/dog/a.png")] == "dog"
    assert sorted(contents.left_out) == [
        *("train/cat/deeper", "train/cat/link.png", "train/cat/notes.txt", "train/elk", "train/loose.png"),
        "unlabelled/out",
    ]  # fmt: skip
    assert (contents.none, contents.undo, contents.kept) == ([], "", frozenset())
    assert project.data(picture(project, "train/cat/b.png")) == png("lime")


def test_classes_are_added_renamed_and_deleted_and_each_of_it_is_undone(project, tmp_path):
    before = files_of(project.folder)
    assert project.add_class("  Große\nKatze ") == "Große Katze"
    assert (project.folder / "train" / "Große Katze").is_dir()
    assert project.rename_class("cat", "Cat") == "Cat", "another case of its own name"
    project.delete_class("dog")
    assert counts(project.read()) == {"Cat": 2, "Große Katze": 0}
    done = ["the class dog deleted", "cat renamed to Cat", "the class Große Katze added"]
    assert [project.undo() for _ in range(3)] == done
    assert files_of(project.folder) == before
    assert counts(project.read()) == {"cat": 2, "dog": 1}
    with pytest.raises(UserError, match="nothing to undo"):
        project.undo()
    assert counts(Project(tmp_path / "a" / "b").read()) == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Project(tmp_path / "file")


def test_what_no_folder_can_be_called_is_no_class(project):
    before = sorted(os.listdir(project.folder / "train"))
    forbidden = ["", " ", "..", ".hidden", "a.", "x\x1b", "x\ud800", "n" * 201, "é" * 101]
    for name in [*forbidden, *(f"a{c}b" for c in '/\\:*?"<>|')]:
        with pytest.raises(UserError, match="name"):
            new_name(name, [])
    for act in (project.add_class, lambda name: project.rename_class("cat", name)):
        with pytest.raises(UserError, match="name"):
            act("a/b")
    assert sorted(os.listdir(project.folder / "train")) == before
    assert new_name("n" * 200, []) == "n" * 200


def test_two_classes_of_one_name_by_case_or_unicode_form_are_refused_here_and_on_disk(project):
    composed, apart = "été", unicodedata.normalize("NFD", "été")
    (project.folder / "train" / apart).mkdir()
    assert composed in project.read().classes
    for name in ("CAT", "Unlabelled", "None of these", composed, apart, composed.upper()):
        with pytest.raises(UserError, match="already"):
            project.add_class(name)
    (project.folder / "train" / "Dog").mkdir()
    with pytest.raises(UserError, match="'Dog' and 'dog' are one class"):
        project.read()


def test_images_are_moved_and_removed_under_free_names_and_that_is_undone(project):
    before = files_of(project.folder)
    moved = [picture(project, path) for path in ("train/cat/a.png", "unlabelled/old/u.png")]
    project.move(moved, "dog")
    assert files_of(project.folder).keys() == {"train/cat/b.png", *(f"train/dog/{n}.png" for n in ("a", "a-1", "u"))}
    assert project.read().undo == "2 images moved to dog"
    with pytest.raises(UserError, match="not there any more"):
        project.move(moved[:1], "dog")
    with pytest.raises(UserError, match="no class 'elk'"):
        project.move([picture(project, "train/dog/u.png")], "elk")
    assert undone(project, before)
    project.move(moved[1:], "none of these")
    assert [each.path for each in project.read().none] == ["none of these/u.png"]
    project.move([picture(project, "none of these/u.png")], "")
    assert files_of(project.folder) == {path: data for path, data in before.items() if path != "unlabelled/old/u.png"}
    project.undo()
    assert undone(project, before)
    (project.folder / "train/cat/a.png").write_bytes(png("pink"))
    with pytest.raises(UserError, match="changed"):
        project.move(moved[:1], "dog")


def test_a_confirmed_label_is_confirmed_until_the_image_is_moved(project):
    image = picture(project, "train/cat/a.png")
    project.keep(image)
    project.keep(image)
    assert project.read().kept == {image.digest}
    project.move([image], "dog")
    assert not project.read().kept
    project.undo()
    assert project.read().kept == {image.digest}
    project.undo()
    assert not project.read().kept
    assert project.read().undo == ""


def test_files_become_images_of_a_class_and_what_is_none_is_told(project, monkeypatch):
    before = files_of(project.folder)
    monkeypatch.setattr(images_module, "MAX_BYTES", 10_000)
    huge = io.BytesIO()
    Image.new("1", (20_000, 15_000)).save(huge, "PNG")
    refused = {
        "b.png": (png("lime"), "there already"), "large.png": (bytes(10_001), "MB"), "cut.png": (png("gold")[:40], ""),
        "notes.png": (b"no image", "no image"), "notes.txt": (b"no image", "no image"),
        "huge.png": (huge.getvalue()[:9_000], "million pixels"),
    }  # fmt: skip
    sent = [
        File("cat", "../../x/a.png", png("gold")), File("elk", "C:\\b?.png", png("teal")), File("owl"),
        File("unlabelled", "new.png", png("gray")), File("elk", "again.png", png("teal")),
        *(File("cat", name, data) for name, (data, _) in refused.items()),
    ]  # fmt: skip
    added = project.add(sent)
    places = ["train/cat/a-1.png", "train/elk/b_.png", "unlabelled/new.png"]
    assert [each.path for each in added.pictures] == places
    assert counts(project.read()) == {"cat": 3, "dog": 1, "elk": 1, "owl": 0}
    for name, (_, said) in (refused | {"again.png": (b"", "there already")}).items():
        assert any(problem.startswith(name) and said in problem for problem in added.problems), (name, added.problems)
    assert len(added.problems) == 7
    assert project.read().undo == "3 images added"
    assert undone(project, before)
    assert counts(project.read()) == {"cat": 2, "dog": 1}


def test_names_of_files_are_made_safe():
    names = {"a/b\\c.JPG": "c.JPG", "..": "image", ".png": "png", 'w"x|y.png': "w_x_y.png", "u\x00\n.png": "u__.png"}
    assert {name: file_name(name) for name in names} == names
    assert len(file_name("é" * 300 + ".png").encode()) <= 204


def test_the_same_image_in_another_class_is_asked_about_and_settled(project):
    image = picture(project, "train/cat/a.png")
    before = files_of(project.folder)
    added = project.add([File("dog", "c.png", png("red"))])
    assert added == Added(
        [], ["c.png is in cat already, and was not added to dog: choose below"], {image.digest: "dog"}
    )
    assert files_of(project.folder) == before
    project.settle(image.digest, "dog")
    assert counts(project.read()) == {"cat": 1, "dog": 2}
    assert undone(project, before)
    shutil.copy(project.folder / "train/cat/a.png", project.folder / "train/dog/copy.png")
    assert project.read().classes_of()[image.digest] == ["cat", "dog"]
    project.settle(image.digest, "dog")
    assert [each.path for each in project.read().classes["dog"]] == ["train/dog/a.png", "train/dog/copy.png"]
    for digest, name in ((image.digest, "elk"), ("0" * 64, "dog")):
        with pytest.raises(UserError, match="any more"):
            project.settle(digest, name)
    both = project.add([File("elk", "1.png", png("pink")), File("owl", "2.png", png("pink"))])
    assert [*both.questions.values()] == ["owl"], "also within what is dropped at once"


# Undo, and what others do meanwhile


def test_a_change_whose_files_are_gone_is_skipped_and_the_one_before_can_be_undone(project):
    project.add_class("elk")
    project.move([picture(project, "train/cat/a.png")], "dog")
    (project.folder / "train/dog/a-1.png").unlink()
    with pytest.raises(UserError, match="cannot be undone"):
        project.undo()
    assert project.undo() == "the class elk added"
    project.move([picture(project, "train/cat/b.png")], "dog")
    (project.folder / "train/cat/b.png").write_bytes(b"of another program")
    with pytest.raises(UserError, match="there already"):
        project.undo()
    assert (project.folder / "train/cat/b.png").read_bytes() == b"of another program"
    assert (project.folder / "train/dog/b.png").read_bytes() == png("lime")


def test_undo_removes_no_file_that_was_not_there_when_the_class_was_added(project):
    project.add_class("elk")
    (project.folder / "train/elk/mine.png").write_bytes(b"mine")
    project.undo()
    assert [path.read_bytes() for path in project.folder.rglob("mine.png")] == [b"mine"]


def test_only_so_many_changes_are_remembered(project, monkeypatch):
    monkeypatch.setattr(journal, "MOST_CHANGES", 2)
    for name in ("x", "y", "z"):
        project.add_class(name)
    assert [project.undo(), project.undo()] == ["the class z added", "the class y added"]
    assert project.read().undo == ""


def test_two_tabs_do_not_lose_each_others_changes(project):
    def teach(tab: int) -> None:
        other = Project(project.folder)
        for number in range(4):
            other.add([File(f"class {tab}", f"{number}.png", png("red", (tab + 1, number + 1)))])

    tabs = [threading.Thread(target=teach, args=(tab,)) for tab in range(3)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    contents = project.read()
    assert counts(contents) == {"cat": 2, "dog": 1} | {f"class {tab}": 4 for tab in range(3)}
    while project.read().undo:
        project.undo()
    assert counts(project.read()) == {"cat": 2, "dog": 1}


def test_one_that_holds_the_lock_is_waited_for_only_so_long(project, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0)
    with journal.FileLock(project.folder / ".hegraph/lock"), pytest.raises(UserError, match="another program"):
        project.read()


@pytest.mark.parametrize("when", ["b.png", "journal.json"])
def test_a_change_that_is_killed_half_way_is_taken_back(project, monkeypatch, when):
    before = files_of(project.folder)
    moved = [picture(project, f"train/cat/{name}.png") for name in "ab"]

    def killed(act):
        def run(old, new):
            if Path(old if when == "b.png" else new).name == when and (project.folder / "train/dog/a-1.png").exists():
                raise SystemExit
            act(old, new)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed(os.rename))
        patch.setattr(os, "replace", killed(os.replace))
        patch.setattr(Project, "_take_back", lambda *_: None)
        with pytest.raises(SystemExit):
            project.move(moved, "dog")
    assert (project.folder / "train/dog/a-1.png").is_file()
    assert counts(Project(project.folder).read()) == {"cat": 2, "dog": 1}
    assert files_of(project.folder) == before
    assert (project.read().undo, project.journal().begun) == ("", [])


def test_a_full_disk_or_a_removed_folder_is_one_line_and_nothing_is_lost(project, disk_full_after):
    before = files_of(project.folder)
    with disk_full_after(100):
        for act in (
            lambda: project.add([File("cat", "large.png", png("navy", (300, 300)))]),
            lambda: project.move([picture(project, f"train/cat/{name}.png") for name in "ab"], "dog"),
        ):
            with pytest.raises(UserError, match="cannot"):
                act()
    assert files_of(project.folder) == before
    assert project.read().undo == ""
    shutil.move(project.folder, project.folder.with_name("elsewhere"))
    for act in (project.read, project.undo, lambda: project.add_class("elk"), lambda: project.add([File("elk")])):
        with pytest.raises(UserError, match="not there any more"):
            act()
    assert not project.folder.exists()
    shutil.move(project.folder.with_name("elsewhere"), project.folder)
    assert files_of(project.folder) == before
    assert counts(project.read()) == {"cat": 2, "dog": 1}


# Nothing outside the folder


def test_no_link_and_no_journal_of_a_stranger_leads_out_of_the_folder(project, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.png").write_bytes(b"mine")
    (project.folder / "link").symlink_to(outside)
    own = project.folder / ".hegraph"
    for move in (
        ["../outside/mine.png", "../../outside/taken.png"],
        ["../outside/mine.png", str(outside / "taken.png")],
        ["link/mine.png", "link/taken.png"],
    ):
        for value in ({"changes": [{"what": "x", "moves": [move]}]}, {"begun": [move[::-1]]}):
            (own / "journal.json").write_text(json.dumps(value))
            with pytest.raises(UserError, match="out of the folder"):
                project.undo()
    for value in ("{damaged", "[]", '{"begun": [["a"]]}'):
        (own / "journal.json").write_text(value)
        assert counts(project.read()) == {"cat": 2, "dog": 1}
    for name in ("train", "unlabelled", ".hegraph"):
        shutil.rmtree(project.folder / name)
        (project.folder / name).symlink_to(outside)
        if name == "train":
            assert counts(project.read()) == {}
            with pytest.raises(UserError, match="out of the folder"):
                project.add([File("cat", "x.png", png("red"))])
    with pytest.raises(UserError, match="link"):
        project.read()
    assert sorted(path.name for path in outside.iterdir()) == ["mine.png"]


# Zip files


def test_a_project_as_a_zip_file_opens_again(project, tmp_path):
    project.add_class("empty")
    project.move([picture(project, "train/cat/b.png")], "none of these")
    project.write_zip(tmp_path / "project.zip")
    other = Project(tmp_path / "other")
    added = other.add(read_zip(tmp_path / "project.zip"), "from a zip file")
    assert (len(added.pictures), added.problems, other.read().undo) == (4, [], "4 images from a zip file")
    assert counts(other.read()) == counts(project.read()) == {"cat": 1, "dog": 1, "empty": 0}
    assert files_of(other.folder).keys() == {
        "train/cat/a.png", "train/dog/a.png", "unlabelled/u.png", "none of these/b.png"
    }  # fmt: skip
    assert not any(".hegraph" in name for name in zipfile.ZipFile(tmp_path / "project.zip").namelist())
    assert undone(other, {})


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_a_zip_file_writes_nothing_outside_and_a_bomb_is_stopped(project, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    monkeypatch.setattr(images_module, "MAX_BYTES", 10_000)
    members = {
        "../../outside.png": png("red"), "/train/../../outside.png": png("red"),
        "x/train/fox/../../../slip.png": png("gold"),
        "x/train/fox/a.png": png("teal"), "x/train/fox/bomb.png": bytes(10**7), "__MACOSX/train/fox/._a.png": b"",
        "x/.hegraph/journal.json": b"{}", "x/readme.txt": b"", "x/unlabelled/deep/u.png": png("pink"),
    }  # fmt: skip
    added = project.add(read_zip(zip_of(tmp_path / "evil.zip", members)))
    assert [each.path for each in added.pictures] == ["train/fox/a.png", "unlabelled/u.png"]
    assert len(added.problems) == 1
    assert "bomb.png has more than" in added.problems[0]
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside == {"project", "evil.zip"}
    before = files_of(project.folder)
    monkeypatch.setattr(module, "MOST_BYTES", 15_000)
    many = zip_of(tmp_path / "many.zip", {f"train/fox/{i}.png": bytes(9_000) for i in range(3)})
    few = zip_of(tmp_path / "few.zip", {"train/a:b/x.png": png("red")})
    for file, said in ((many, "more than"), (few, "no name for a class")):
        with pytest.raises(UserError, match=said):
            project.add(read_zip(file))
    monkeypatch.setattr(module, "MOST_FILES", 2)
    with pytest.raises(UserError, match="more than 2 files"):
        project.add(read_zip(many))
    for content in (b"no zip", many.read_bytes()[:-30], b""):
        (tmp_path / "damaged.zip").write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.zip"):
            project.add(read_zip(tmp_path / "damaged.zip"))
    with pytest.raises(UserError, match="no folder"):
        project.add(read_zip(zip_of(tmp_path / "other.zip", {"a/b.png": png("red")})))
    assert files_of(project.folder) == before
    assert not list((project.folder / ".hegraph/new").iterdir()) or project.read().undo
