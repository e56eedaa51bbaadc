"""The folder that is taught from: every change whole, on disk and undone; nothing outside it read or written."""

from __future__ import annotations

import json
import os
import shutil
import threading
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.datasets import images as images_module
from trainers.hegraph.demo.drawing import as_png
from trainers.hegraph.teach import journal
from trainers.hegraph.teach import project as module
from trainers.hegraph.teach.project import Picture, Project, file_name, new_name
from trainers.hegraph.utils.errors import UserError


def png(colour: str, size: tuple[int, int] = (4, 4)) -> bytes:
    return as_png(Image.new("RGB", size, colour))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but what the project keeps for itself."""
    inside = (path for path in folder.rglob("*") if path.is_file() and ".hegraph" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in inside}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def refused(said: str, act: Callable, *given: object) -> None:
    with pytest.raises(UserError, match=said):
        act(*given)


BEFORE = {
    "train/cat/a.png": png("red"), "train/cat/b.png": png("lime"), "train/dog/a.png": png("blue"),
    "unlabelled/old/u.png": png("gold"),
}  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Project:
    """Two classes, cat with two images and dog with one, and one image without a label."""
    write(tmp_path / "project", BEFORE)
    return Project(tmp_path / "project")


def undone(project: Project, before: dict[str, bytes] = BEFORE) -> bool:
    project.undo()
    return files_of(project.folder) == before


def picture(project: Project, path: str) -> Picture:
    [found] = [each for each in project.read().pictures() if each.path == path]
    return found


def counts(project: Project) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in project.read().classes.items()}


def test_plain_folders_are_read_with_what_is_left_out(project, tmp_path):
    folder = project.folder
    odd = ("train/loose.png", "train/cat/notes.txt", "train/cat/.hidden.png", "train/cat/deeper/a.png")
    write(folder, dict.fromkeys([*odd, f"unlabelled/{os.fsdecode(b'%s.png' % bytes([255]))}"], png("pink")))
    for link, target in (("train/cat/link.png", "train/dog/a.png"), ("train/elk", "train/dog"), ("unlabelled/out", "")):
        (folder / link).symlink_to(folder / target)
    contents = project.read()
    assert counts(project) == {"cat": 2, "dog": 1}
    assert [each.path for each in contents.unlabelled] == ["unlabelled/old/u.png"]
    assert contents.pictures()[picture(project, "train/dog/a.png")] == "dog"
    assert sorted(contents.left_out) == [
        *("train/cat/deeper", "train/cat/link.png", "train/cat/notes.txt", "train/elk", "train/loose.png"),
        *("unlabelled/\\udcff.png", "unlabelled/out"),
    ]  # fmt: skip
    assert (contents.images["none of these"], contents.undo, contents.kept) == ([], "", frozenset())
    assert project.data(picture(project, "train/cat/b.png")) == png("lime")


def test_classes_are_added_renamed_and_deleted_and_each_of_it_is_undone(project, tmp_path):
    assert project.add_class("  100%\nKatze ") == "100% Katze"
    assert project.rename_class("cat", "Cat") == "Cat", "another case of its own name"
    project.delete_class("dog")
    assert counts(project) == {"Cat": 2, "100% Katze": 0}
    done = ["the class dog deleted", "cat renamed to Cat", "the class 100% Katze added"]
    assert [project.undo() for _ in range(3)] == done
    assert files_of(project.folder) == BEFORE
    assert counts(project) == {"cat": 2, "dog": 1}
    refused("nothing to undo", project.undo)
    assert counts(Project(tmp_path / "a" / "b")) == {}


def test_what_no_folder_can_be_called_is_no_class_nor_is_another_spelling_of_one(project):
    forbidden = ["", " ", "..", ".hidden", "a.", "x\x1b", "x\ud800", "n" * 201, "é" * 101]
    for name in [*forbidden, *(f"a{c}b" for c in '/\\:*?"<>|')]:
        refused("is no name for a class", new_name, name, [])
    assert new_name("n" * 200, []) == "n" * 200
    composed, apart = "été", unicodedata.normalize("NFD", "été")
    (project.folder / "train" / apart).mkdir()
    before = sorted(os.listdir(project.folder / "train"))
    assert composed in project.read().classes
    refused("is no name for a class", project.rename_class, "cat", "a/b")
    for name in ("CAT", "Unlabelled", "None of these", composed, apart, composed.upper()):
        refused("already", project.add_class, name)
    assert sorted(os.listdir(project.folder / "train")) == before
    for name, said in (("Dog", "'dog' .*are one class"), ("unlabelled", "'unlabelled' is no name for a class")):
        (project.folder / "train" / name).mkdir()
        refused(said, project.read)
        (project.folder / "train" / name).rmdir()


def test_images_are_moved_and_removed_under_free_names_and_that_is_undone(project):
    moved = picture(project, "train/cat/a.png")
    project.move(moved, "cat")
    assert project.read().undo == ""
    project.move(moved, "dog")
    assert files_of(project.folder).keys() == BEFORE.keys() - {"train/cat/a.png"} | {"train/dog/a-1.png"}
    assert project.read().undo == "an image moved to dog"
    refused("not there any more", project.move, moved, "dog")
    refused("no class 'elk'", project.move, picture(project, "train/dog/a-1.png"), "elk")
    assert undone(project)
    project.move(picture(project, "unlabelled/old/u.png"), "none of these")
    project.move(picture(project, "none of these/u.png"), "")
    assert files_of(project.folder).keys() == BEFORE.keys() - {"unlabelled/old/u.png"}
    assert project.read().undo == "an image removed"
    project.undo()
    assert undone(project)
    write(project.folder, {"train/cat/a.png": png("pink")})
    refused("changed", project.move, moved, "dog")


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
    assert (project.read().kept, project.read().undo) == (frozenset(), "")


def test_files_become_images_of_a_class_and_what_is_none_is_told(project, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 10_000)
    huge = as_png(Image.new("1", (10_000, 8_000)))
    others = {
        "b.png": (png("lime"), "there already"), "large.png": (bytes(10_001), "MB"), "cut.png": (png("gold")[:40], ""),
        "notes.png": (b"no image", "is not an image"), "image.txt": (png("gray"), "ending of its name"),
        "huge.png": (huge[:9_000], "million pixels"), "again.png": (png("gold"), "there already"),
    }  # fmt: skip
    sent = {"../../x/a.png": png("gold"), "C:\\b?.png": png("teal")}
    added, problems = project.add("cat", [*sent.items(), *((name, data) for name, (data, _) in others.items())])
    assert added == 2
    assert files_of(project.folder) == BEFORE | dict(zip(("train/cat/a-1.png", "train/cat/b%3F.png"), sent.values()))
    for problem, (name, (_, said)) in zip(problems, others.items(), strict=True):
        assert problem.startswith(name) and said in problem
    assert not list((project.folder / ".hegraph/new").iterdir())
    assert project.read().undo == "2 images added to cat"
    assert undone(project)
    assert project.add("unlabelled", [("u.png", png("pink")), ("U.png", png("teal"))]) == (2, [])
    assert files_of(project.folder).keys() - BEFORE.keys() == {"unlabelled/u.png", "unlabelled/U-1.png"}
    refused("no class 'elk'", project.add, "elk", [])
    names = {"a/b\\c.JPG": "c.JPG", "..": "%2E%2E", "": "image", 'w"x|.png': "w%22x%7C.png", "u\0.png": "u%5Cx00.png"}
    assert {name: file_name(name) for name in names} == names
    assert file_name("\ud800" + "é" * 300 + ".png") == "%5Cud800" + "é" * 96 + ".png"


def test_the_same_image_in_two_classes_is_settled_in_one(project):
    digest = picture(project, "train/cat/a.png").digest
    assert project.add("dog", [("c.png", png("red"))]) == (1, [])
    assert project.read().classes_of()[digest] == ["cat", "dog"]
    refused("any more", project.settle, digest, "elk")
    project.settle(digest, "dog")
    assert files_of(project.folder).keys() == BEFORE.keys() - {"train/cat/a.png"} | {"train/dog/c.png"}
    project.undo()
    assert undone(project)


# Undo, and what others do meanwhile


def test_a_change_whose_files_are_gone_is_skipped_and_the_one_before_can_be_undone(project):
    project.add_class("elk")
    project.move(picture(project, "train/cat/a.png"), "dog")
    (project.folder / "train/dog/a-1.png").unlink()
    refused("cannot be undone: an image moved to dog: No such file", project.undo)
    assert project.undo() == "the class elk added"
    project.move(picture(project, "train/cat/b.png"), "dog")
    write(project.folder, {"train/cat/b.png": b"of another program"})
    refused("there already", project.undo)
    assert (project.folder / "train/cat/b.png").read_bytes() == b"of another program"
    assert (project.folder / "train/dog/b.png").read_bytes() == png("lime")


def test_only_so_many_changes_are_remembered_and_undo_removes_no_file_of_others(project, monkeypatch):
    monkeypatch.setattr(journal, "MOST_CHANGES", 2)
    for name in ("x", "y", "z"):
        project.add_class(name)
    write(project.folder, {"train/z/mine.png": b"mine"})
    assert [project.undo(), project.undo()] == ["the class z added", "the class y added"]
    assert project.read().undo == ""
    assert [path.read_bytes() for path in project.folder.rglob("mine.png")] == [b"mine"]


def test_two_tabs_do_not_lose_each_others_changes_and_wait_only_so_long(project, monkeypatch):
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
    assert counts(project) == {"cat": 2, "dog": 1} | {f"class {tab}": 3 for tab in range(3)}
    while project.read().undo:
        project.undo()
    assert counts(project) == {"cat": 2, "dog": 1}
    monkeypatch.setattr(journal, "PATIENCE", 0)
    with journal.FileLock(project.folder / ".hegraph/lock"):
        refused("another program", project.read)


@pytest.mark.parametrize("when", ["2", "journal.json"])
def test_a_change_that_is_killed_half_way_is_taken_back(project, monkeypatch, when):
    def killed(act):
        def run(old, new):
            if when in (Path(new).name, Path(new).stem) and (project.folder / "train/dog/1.png").exists():
                raise SystemExit
            act(old, new)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed(os.rename))
        patch.setattr(os, "replace", killed(os.replace))
        patch.setattr(Project, "_take_back", lambda *_: None)
        with pytest.raises(SystemExit):
            project.add("dog", [(f"{number}.png", png("navy", (number, 1))) for number in (1, 2)])
    assert (project.folder / "train/dog/1.png").is_file()
    assert counts(Project(project.folder)) == {"cat": 2, "dog": 1}
    assert files_of(project.folder) == BEFORE
    assert (project.read().undo, project.journal().begun) == ("", [])


def test_a_full_disk_or_a_removed_folder_is_one_line_and_nothing_is_lost(project, disk_full_after):
    image = picture(project, "train/cat/a.png")
    with disk_full_after(100):
        refused("cannot", project.add, "cat", [("large.png", png("navy", (300, 300)))])
        refused("cannot", project.move, image, "dog")
    assert files_of(project.folder) == BEFORE
    assert project.read().undo == ""
    project.add_class("elk")
    for size in (0, 100, 200):
        with disk_full_after(size):
            refused("cannot", project.undo)
    assert project.undo() == "the class elk added"
    shutil.move(project.folder, project.folder.with_name("elsewhere"))
    for act, *given in ((project.read,), (project.undo,), (project.add_class, "elk")):
        refused("not there any more", act, *given)
    assert not project.folder.exists()
    assert files_of(project.folder.with_name("elsewhere")) == BEFORE


# Nothing outside the folder


def test_no_link_and_no_journal_of_a_stranger_leads_out_of_the_folder(project, tmp_path):
    outside = tmp_path / "outside"
    write(outside, {"mine.png": b"mine"})
    (project.folder / "link").symlink_to(outside)
    for source, target in (
        ("../outside/mine.png", "../../outside/taken.png"), ("../outside/mine.png", str(outside / "taken.png")),
        ("nul\0/mine.png", "nul\0/taken.png"), ("link/mine.png", "link/taken.png"),
    ):  # fmt: skip
        value = {"changes": [{"what": "x", "moves": [(source, target)]}]}
        write(project.folder, {".hegraph/journal.json": json.dumps(value).encode()})
        refused("out of the folder", project.undo)
    for name in ("train", "unlabelled", ".hegraph"):
        shutil.rmtree(project.folder / name)
        (project.folder / name).symlink_to(outside)
        if name == "train":
            assert counts(project) == {}
            refused("out of the folder", project.add_class, "elk")
    refused("out of the folder", project.read)
    assert sorted(path.name for path in outside.iterdir()) == ["mine.png"]


@pytest.mark.parametrize(
    "text",
    [
        "{damaged", "[]", '{"begun": [["a"]]}', '{"begun": [["../x", "train/cat/0.png"]]}',
        '{"begun": [["/etc/x", "train/cat/0.png"]]}', '{"begun": [["train/cat/0.png", "../outside.png"]]}',
    ],
)  # fmt: skip
def test_unusable_journal_is_set_aside_with_warning(project, caplog, text):
    own = project.folder / ".hegraph/journal.json"
    write(project.folder, {".hegraph/journal.json": text.encode()})
    assert counts(project) == {"cat": 2, "dog": 1}
    assert "journal.json" in caplog.text and "cannot be undone" in caplog.text
    assert [path.read_text() for path in project.folder.glob(".hegraph/removed/*/journal.json")] == [text]
    project.add_class("elk")
    assert undone(project)
    assert own.is_file() and len(caplog.records) == 1


@pytest.mark.parametrize("place", ["unlabelled", "none of these"])
def test_pool_is_not_renamed_or_deleted_as_class(project, place):
    project.add(place, [("v.png", png("pink"))])
    before = files_of(project.folder)
    for act, *given in ((project.rename_class, "cow"), (project.delete_class,)):
        refused(f"'{place}' is not a class", act, place, *given)
    assert files_of(project.folder) == before
    assert "cow" not in counts(project)


def test_new_folder_is_made_when_it_is_read(tmp_path):
    project = Project(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert counts(project) == {}
    (tmp_path / "file").write_text("")
    refused("is a file", Project(tmp_path / "file").read)


# Class folders directly in the folder


FLAT = {"cat/a.png": png("red"), "cat/b.png": png("lime"), "dog/a.png": png("blue"), "unlabelled/u.png": png("gold")}


@pytest.fixture
def flat(tmp_path) -> Project:
    """A folder whose class folders are directly in it."""
    write(tmp_path / "flat", FLAT)
    return Project(tmp_path / "flat")


def test_class_folders_directly_in_the_folder_are_changed_in_place(flat):
    assert counts(flat) == {"cat": 2, "dog": 1}
    flat.add_class("elk")
    flat.rename_class("dog", "wolf")
    flat.add("elk", [("e.png", png("teal"))])
    flat.move(picture(flat, "unlabelled/u.png"), "cat")
    flat.move(picture(flat, "cat/a.png"), "none of these")
    expected = {"cat/b.png", "cat/u.png", "elk/e.png", "wolf/a.png", "none of these/a.png"}
    assert files_of(flat.folder).keys() == expected
    for _ in range(4):
        flat.undo()
    assert undone(flat, FLAT)


def test_flat_layout_lasts_while_classes_are_emptied_and_deleted(flat):
    for each in flat.read().classes["cat"]:
        flat.move(each, "")
    flat.delete_class("dog")
    assert counts(flat) == {"cat": 0}
    flat.delete_class("cat")
    flat.add_class("elk")
    assert counts(flat) == {"elk": 0}
    while flat.read().undo:
        flat.undo()
    assert counts(flat) == {"cat": 2, "dog": 1}
    assert files_of(flat.folder) == FLAT


def test_folders_of_splits_and_other_files_are_left_out_of_flat_layout(flat):
    others = ("train/x.txt", "test/cat/a.png", "notes/x.txt", "deep/er/a.png", "b.png", "run/config.json", "run/a.png")
    write(flat.folder, dict.fromkeys(others, b"x"))
    contents = flat.read()
    assert counts(flat) == {"cat": 2, "dog": 1}
    assert sorted(contents.left_out) == ["b.png", "deep", "notes", "run", "test", "train"]
    refused("would be a split", flat.add_class, "Test")
    write(flat.folder, {"train/train.png": png("teal")})
    refused("has the name of a split", flat.read)
    write(flat.folder, {"train/fox/a.png": png("teal")})
    assert counts(flat) == {"fox": 1}, "train with class folders wins"


def test_zip_of_flat_layout_opens_as_train_and_class(flat, tmp_path):
    flat.write_zip(tmp_path / "flat.zip")
    other = Project(tmp_path / "other")
    assert other.add_zip(tmp_path / "flat.zip") == (4, [])
    inside = {path if path.startswith("unlabelled") else f"train/{path}": data for path, data in FLAT.items()}
    assert files_of(other.folder) == inside
    assert flat.add_zip(tmp_path / "flat.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as file:
        file.writestr("train/fox/a.png", png("teal"))
    assert flat.add_zip(tmp_path / "more.zip") == (1, [])
    assert files_of(flat.folder).keys() == FLAT.keys() | {"fox/a.png"}


@pytest.mark.parametrize("around", ["", "my project/"])
def test_a_project_as_a_zip_file_opens_again_as_one_change(project, tmp_path, around):
    (project.folder / "train" / unicodedata.normalize("NFD", "été")).mkdir()
    project.move(picture(project, "train/cat/b.png"), "none of these")
    project.add("dog", [("twice.png", png("red"))])
    project.write_zip(tmp_path / "project.zip")
    with zipfile.ZipFile(tmp_path / "project.zip") as ours, zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ours.namelist():  # as macOS packs the folder
            packed.writestr(f"{around}{name}", ours.read(name))
            packed.writestr(f"__MACOSX/{around}{name}._x.png", b"")
    other = Project(tmp_path / "other")
    assert other.add_zip(tmp_path / "a.zip") == (5, [])
    assert counts(other) == {"cat": 1, "dog": 2, "été": 0}
    paths = ("train/cat/a.png", "train/dog/a.png", "train/dog/twice.png", "unlabelled/u.png", "none of these/b.png")
    assert files_of(other.folder) == dict(zip(paths, map(png, ("red", "blue", "red", "gold", "lime"))))
    assert other.read().undo == "5 images added from a zip file"
    assert undone(other, {})
    assert project.add_zip(tmp_path / "a.zip")[0] == 0
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
    monkeypatch.setattr(module, "MOST_BYTES", 10**5)
    monkeypatch.setattr(module, "MOST_FILES", 3)
    write(tmp_path, {"a.zip": b"no zip file"})
    if members:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
    refused(said, project.add_zip, tmp_path / "a.zip")
    assert files_of(tmp_path).keys() == {"a.zip", *(f"project/{path}" for path in BEFORE)}
    assert project.read().undo == ""
    assert not list((project.folder / ".hegraph").glob("new/*"))


def test_what_a_zip_file_holds_is_unpacked_up_to_the_size_of_an_image(project, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 1_000)
    monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    members = {"train/fox/bomb.png": bytes(10**6), "train/fox/a.png": png("teal"), "train/cat/b.png": png("red")}
    for name, packed in (("a.zip", zipfile.ZIP_DEFLATED), ("b.zip", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / name, "w", packed) as file:
            for member, data in members.items():
                file.writestr(member, data)
    count, problems = project.add_zip(tmp_path / "a.zip")
    assert (count, [problem[:12] for problem in problems]) == (1, ["bomb.png has", "b.png is the"])
    assert files_of(project.folder)["train/fox/a.png"] == png("teal")
    refused("no bounds", project.add_zip, tmp_path / "b.zip")
