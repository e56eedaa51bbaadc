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
from trainers.hegraph.teach.project import Contents, Picture, Project, file_name, new_name
from trainers.hegraph.utils.errors import UserError

COLOURS = ("red", "lime", "blue", "gold")


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
    (folder / "unlabelled" / os.fsdecode(b"\xff.png")).write_bytes(png("pink"))
    contents = project.read()
    assert counts(contents) == {"cat": 2, "dog": 1}
    assert [each.path for each in contents.unlabelled] == ["unlabelled/old/u.png"]
    assert contents.pictures()[picture(project, "train/dog/a.png")] == "dog"
    assert sorted(contents.left_out) == [
        *("train/cat/deeper", "train/cat/link.png", "train/cat/notes.txt", "train/elk", "train/loose.png"),
        *("unlabelled/\\udcff.png", "unlabelled/out"),
    ]  # fmt: skip
    assert (contents.images["none of these"], contents.undo, contents.kept) == ([], "", frozenset())
    assert project.data(picture(project, "train/cat/b.png")) == png("lime")


def test_classes_are_added_renamed_and_deleted_and_each_of_it_is_undone(project, tmp_path):
    before = files_of(project.folder)
    assert project.add_class("  100%\nKatze ") == "100% Katze"
    assert (project.folder / "train" / "100% Katze").is_dir()
    assert project.rename_class("cat", "Cat") == "Cat", "another case of its own name"
    project.delete_class("dog")
    assert counts(project.read()) == {"Cat": 2, "100% Katze": 0}
    done = ["the class dog deleted", "cat renamed to Cat", "the class 100% Katze added"]
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
        with pytest.raises(UserError, match="is no name for a class"):
            new_name(name, [])
    for act in (project.add_class, lambda name: project.rename_class("cat", name)):
        with pytest.raises(UserError, match="is no name for a class"):
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
    for name, said in (("Dog", "'dog' .*are one class"), ("unlabelled", "'unlabelled' is no name for a class")):
        (project.folder / "train" / name).mkdir()
        with pytest.raises(UserError, match=said):
            project.read()
        (project.folder / "train" / name).rmdir()


def test_images_are_moved_and_removed_under_free_names_and_that_is_undone(project):
    before = files_of(project.folder)
    moved = picture(project, "train/cat/a.png")
    project.move(moved, "cat")
    assert project.read().undo == ""
    project.move(moved, "dog")
    assert files_of(project.folder).keys() == before.keys() - {"train/cat/a.png"} | {"train/dog/a-1.png"}
    assert project.read().undo == "an image moved to dog"
    with pytest.raises(UserError, match="not there any more"):
        project.move(moved, "dog")
    with pytest.raises(UserError, match="no class 'elk'"):
        project.move(picture(project, "train/dog/a-1.png"), "elk")
    assert undone(project, before)
    project.move(picture(project, "unlabelled/old/u.png"), "none of these")
    project.move(picture(project, "none of these/u.png"), "")
    assert files_of(project.folder) == {path: data for path, data in before.items() if path != "unlabelled/old/u.png"}
    assert project.read().undo == "an image removed"
    project.undo()
    assert undone(project, before)
    (project.folder / "train/cat/a.png").write_bytes(png("pink"))
    with pytest.raises(UserError, match="changed"):
        project.move(moved, "dog")


def test_a_confirmed_label_is_confirmed_until_the_image_is_moved(project):
    image = picture(project, "train/cat/a.png")
    project.keep(image)
    project.keep(image)
    assert project.read().kept == {image.digest}
    project.move(image, "dog")
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
        "notes.png": (b"no image", "no image"), "image.txt": (png("gray"), "ending of its name"),
        "huge.png": (huge.getvalue()[:9_000], "million pixels"), "again.png": (png("gold"), "there already"),
    }  # fmt: skip
    sent = {"../../x/a.png": png("gold"), "C:\\b?.png": png("teal")}
    added, problems = project.add("cat", [*sent.items(), *((name, data) for name, (data, _) in refused.items())])
    assert added == 2
    assert files_of(project.folder) == before | dict(zip(("train/cat/a-1.png", "train/cat/b%3F.png"), sent.values()))
    for problem, (name, (_, said)) in zip(problems, refused.items(), strict=True):
        assert problem.startswith(name) and said in problem
    assert not list((project.folder / ".hegraph/new").iterdir())
    assert project.read().undo == "2 images added to cat"
    assert undone(project, before)
    assert project.add("unlabelled", [("u.png", png("pink")), ("U.png", png("teal"))], "drawn") == (2, [])
    assert files_of(project.folder).keys() - before.keys() == {"unlabelled/u.png", "unlabelled/U-1.png"}
    with pytest.raises(UserError, match="no class 'elk'"):
        project.add("elk", [])


def test_names_of_files_are_made_safe():
    names = {"a/b\\c.JPG": "c.JPG", "..": "%2E%2E", "": "image", 'w"x|.png': "w%22x%7C.png", "u\0.png": "u%5Cx00.png"}
    assert {name: file_name(name) for name in names} == names
    assert file_name("\ud800" + "é" * 300 + ".png") == "%5Cud800" + "é" * 96 + ".png"


def test_the_same_image_in_two_classes_is_settled_in_one(project):
    image = picture(project, "train/cat/a.png")
    before = files_of(project.folder)
    assert project.add("dog", [("c.png", png("red"))]) == (1, [])
    assert project.read().classes_of()[image.digest] == ["cat", "dog"]
    project.settle(image.digest, "dog")
    assert files_of(project.folder).keys() == before.keys() - {"train/cat/a.png"} | {"train/dog/c.png"}
    project.undo()
    assert undone(project, before)
    for digest, name in ((image.digest, "elk"), ("0" * 64, "dog")):
        with pytest.raises(UserError, match="any more"):
            project.settle(digest, name)


# Undo, and what others do meanwhile


def test_a_change_whose_files_are_gone_is_skipped_and_the_one_before_can_be_undone(project):
    project.add_class("elk")
    project.move(picture(project, "train/cat/a.png"), "dog")
    (project.folder / "train/dog/a-1.png").unlink()
    with pytest.raises(UserError, match="cannot be undone: an image moved to dog: No such file"):
        project.undo()
    assert project.undo() == "the class elk added"
    project.move(picture(project, "train/cat/b.png"), "dog")
    (project.folder / "train/cat/b.png").write_bytes(b"of another program")
    with pytest.raises(UserError, match="there already"):
        project.undo()
    assert (project.folder / "train/cat/b.png").read_bytes() == b"of another program"
    assert (project.folder / "train/dog/b.png").read_bytes() == png("lime")


def test_only_so_many_changes_are_remembered_and_undo_removes_no_file_of_others(project, monkeypatch):
    monkeypatch.setattr(journal, "MOST_CHANGES", 2)
    for name in ("x", "y", "z"):
        project.add_class(name)
    (project.folder / "train/z/mine.png").write_bytes(b"mine")
    assert [project.undo(), project.undo()] == ["the class z added", "the class y added"]
    assert project.read().undo == ""
    assert [path.read_bytes() for path in project.folder.rglob("mine.png")] == [b"mine"]


def test_two_tabs_do_not_lose_each_others_changes(project):
    def teach(tab: int) -> None:
        other = Project(project.folder)
        other.add_class(f"class {tab}")
        for number in range(3):
            other.add(f"class {tab}", [(f"{number}.png", png("red", (tab + 1, number + 1)))])

    tabs = [threading.Thread(target=teach, args=(tab,)) for tab in range(3)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert counts(project.read()) == {"cat": 2, "dog": 1} | {f"class {tab}": 3 for tab in range(3)}
    while project.read().undo:
        project.undo()
    assert counts(project.read()) == {"cat": 2, "dog": 1}


def test_one_that_holds_the_lock_is_waited_for_only_so_long(project, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0)
    with journal.FileLock(project.folder / ".hegraph/lock"), pytest.raises(UserError, match="another program"):
        project.read()


@pytest.mark.parametrize("when", ["2", "journal.json"])
def test_a_change_that_is_killed_half_way_is_taken_back(project, monkeypatch, when):
    before = files_of(project.folder)
    new = [(f"{number}.png", png("navy", (number, 1))) for number in (1, 2)]

    def killed(act):
        def run(old, new):
            if (Path(new).name == when or Path(new).stem == when) and (project.folder / "train/dog/1.png").exists():
                raise SystemExit
            act(old, new)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed(os.rename))
        patch.setattr(os, "replace", killed(os.replace))
        patch.setattr(Project, "_take_back", lambda *_: None)
        with pytest.raises(SystemExit):
            project.add("dog", new)
    assert (project.folder / "train/dog/1.png").is_file()
    assert counts(Project(project.folder).read()) == {"cat": 2, "dog": 1}
    assert files_of(project.folder) == before
    assert (project.read().undo, project.journal().begun) == ("", [])


def test_a_full_disk_or_a_removed_folder_is_one_line_and_nothing_is_lost(project, disk_full_after):
    before, image = files_of(project.folder), picture(project, "train/cat/a.png")
    with disk_full_after(100):
        for act in (
            lambda: project.add("cat", [("large.png", png("navy", (300, 300)))]),
            lambda: project.move(image, "dog"),
        ):
            with pytest.raises(UserError, match="cannot"):
                act()
    assert files_of(project.folder) == before
    assert project.read().undo == ""
    project.add_class("elk")
    for size in (0, 100, 200):
        with disk_full_after(size), pytest.raises(UserError, match="cannot"):
            project.undo()
    assert project.undo() == "the class elk added"
    shutil.move(project.folder, project.folder.with_name("elsewhere"))
    for act in (project.read, project.undo, lambda: project.add_class("elk"), lambda: project.add("cat", [])):
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
        ["nul\0/mine.png", "nul\0/taken.png"],
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
                project.add_class("elk")
    with pytest.raises(UserError, match="link"):
        project.read()
    assert sorted(path.name for path in outside.iterdir()) == ["mine.png"]


def test_a_project_as_a_zip_file_opens_again_as_one_change(project, tmp_path):
    (project.folder / "train" / unicodedata.normalize("NFD", "été")).mkdir()
    project.move(picture(project, "train/cat/b.png"), "none of these")
    project.add("dog", [("twice.png", png("red"))])
    project.write_zip(tmp_path / "project.zip")
    other = Project(tmp_path / "other")
    assert other.add_zip(tmp_path / "project.zip") == (5, [])
    assert counts(other.read()) == counts(project.read()) == {"cat": 1, "dog": 2, "été": 0}
    assert {p.digest: place for p, place in other.read().pictures().items()} == {
        p.digest: place for p, place in project.read().pictures().items()
    }
    assert files_of(other.folder).keys() == {
        *("train/cat/a.png", "train/dog/a.png", "train/dog/twice.png"), "unlabelled/u.png", "none of these/b.png"
    }  # fmt: skip
    assert other.read().undo == "5 images added from a zip file"
    assert undone(other, {})
    assert project.add_zip(tmp_path / "project.zip")[0] == 0
    assert not list((project.folder / ".hegraph/new").iterdir())


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"train/fox/a.png": png("teal"), "../../outside.png": png("teal")}, "out of the folder"),
        ({"train/fox/a.png": png("teal"), "/outside.png": png("teal")}, "out of the folder"),
        ({"train/fox/a.png": png("teal"), "train/a:b/a.png": png("teal")}, "no name for a class"),
        ({"train/fox/a.png": png("teal"), "train/fox/bomb.png": bytes(10**6)}, "more than 3 files or 0 GB"),
        (dict.fromkeys(("train/fox/a.png", "b", "c", "d"), png("teal")), "more than 3 files"),
        ({"fox/a.png": png("teal")}, "no folder train/<class>"),
        ({}, "damaged"),
    ],
)
def test_a_zip_file_of_a_stranger_writes_nothing(project, tmp_path, monkeypatch, members, said):
    before = files_of(tmp_path)
    monkeypatch.setattr(module, "MOST_BYTES", 10**5)
    monkeypatch.setattr(module, "MOST_FILES", 3)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    if not members:
        path.write_bytes(b"no zip file")
    with pytest.raises(UserError, match=said):
        project.add_zip(path)
    path.unlink()
    assert files_of(tmp_path) == before
    assert project.read().undo == ""
    assert not list((project.folder / ".hegraph").glob("new/*"))


def test_what_a_zip_file_holds_is_unpacked_up_to_the_size_of_an_image(project, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 1_000)
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/fox/bomb.png", bytes(10**6))
        file.writestr("train/fox/a.png", png("teal"))
        file.writestr("train/cat/again.png", png("red"))
        file.writestr("readme.txt", b"")
    count, problems = project.add_zip(tmp_path / "a.zip")
    assert (count, [problem[:13] for problem in problems]) == (1, ["bomb.png has ", "again.png is "])
    assert files_of(project.folder)["train/fox/a.png"] == png("teal")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("train/fox/b.png", png("pink"))
    with pytest.raises(UserError, match="no bounds"):
        project.add_zip(tmp_path / "b.zip")
