"""Folder of a teach project: changes are atomic and can be undone, and nothing outside it is read or written."""

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
from teach_files import FLAT, NESTED, files_of, png, write

from trainers.hegraph.apps.demo.drawing import as_png
from trainers.hegraph.apps.teach import journal, project as module, uploads
from trainers.hegraph.apps.teach.contents import Picture, normalize_class_name
from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.uploads import safe_file_name
from trainers.hegraph.datasets import images as images_module
from trainers.hegraph.utils.errors import UserError


def refused(message: str, act: Callable, *arguments: object) -> None:
    with pytest.raises(UserError, match=message):
        act(*arguments)


@pytest.fixture
def project(tmp_path) -> Project:
    """Two classes, cat with two images and dog with one, and one unlabelled image."""
    write(tmp_path / "project", NESTED)
    return Project(tmp_path / "project")


@pytest.fixture
def flat(tmp_path) -> Project:
    """The same with class folders directly in the project folder."""
    write(tmp_path / "flat", FLAT)
    return Project(tmp_path / "flat")


def picture(project: Project, path: str) -> Picture:
    [found] = [each for each in project.read().pictures() if each.path == path]
    return found


def counts(project: Project) -> dict[str, int]:
    return {name: len(pictures) for name, pictures in project.read().classes.items()}


# Reading


def test_links_and_other_files_are_skipped(project):
    folder = project.folder
    odd = ("train/loose.png", "train/cat/notes.txt", "train/cat/.hidden.png", "train/cat/deeper/a.png")
    write(folder, dict.fromkeys([*odd, f"unlabelled/{os.fsdecode(b'%s.png' % bytes([255]))}"], png("pink")))
    for link, target in (("train/cat/link.png", "train/dog/a.png"), ("train/elk", "train/dog"), ("unlabelled/out", "")):
        (folder / link).symlink_to(folder / target)
    contents = project.read()
    assert counts(project) == {"cat": 2, "dog": 1}
    assert [each.path for each in contents.unlabelled] == ["unlabelled/old/u.png"]
    assert sorted(contents.skipped) == [
        *("train/cat/deeper", "train/cat/link.png", "train/cat/notes.txt", "train/elk", "train/loose.png"),
        *("unlabelled/\\udcff.png", "unlabelled/out"),
    ]  # fmt: skip
    assert project.read_bytes(picture(project, "train/cat/b.png")) == png("lime")


def test_splits_and_outputs_are_skipped_in_flat_layout(flat):
    others = ("train/x.txt", "test/cat/a.png", "notes/x.txt", "deep/er/a.png", "b.png", "run/config.json", "run/a.png")
    write(flat.folder, dict.fromkeys(others, b"x"))
    assert counts(flat) == {"cat": 2, "dog": 1}
    assert sorted(flat.read().skipped) == ["b.png", "deep", "notes", "run", "test", "train"]
    refused("the name of a split", flat.add_class, "Test")
    write(flat.folder, {"train/train.png": png("teal")})
    refused("has the name of a split", flat.read)
    write(flat.folder, {"train/fox/a.png": png("teal")})
    assert counts(flat) == {"fox": 1}, "train with class folders wins"


@pytest.mark.parametrize(("name", "message"), [
    ("Dog", "'dog' .*differ only in case"), ("dog ", "'dog' and 'dog ' differ only in case, spaces"),
    ("unlabelled", "'unlabelled' is no valid class name"),
])  # fmt: skip
def test_two_folders_of_one_name_are_refused(project, name, message):
    (project.folder / "train" / name).mkdir()
    refused(message, project.read)


def test_missing_folder_is_created_and_file_refused(tmp_path):
    project = Project(tmp_path / "a" / "new")
    assert not (tmp_path / "a").exists() and counts(project) == {}
    (tmp_path / "file").write_text("")
    refused("expected a folder", Project(tmp_path / "file").read)


# Names


INVALID = ["", " ", "..", ".hidden", "a.", "x\x1b", "x\ud800", "n" * 201, "é" * 101, *map("a{}b".format, '/\\:*?"<>|')]


@pytest.mark.parametrize("name", INVALID)
def test_name_no_folder_can_have_is_refused(name):
    refused("expected a class name", normalize_class_name, name, [])


@pytest.mark.parametrize("name", ["CAT", "Unlabelled", "None of these", "été", unicodedata.normalize("NFD", "ÉTÉ")])
def test_name_that_differs_in_case_is_refused(name):
    refused("exists already", normalize_class_name, name, ["cat", "unlabelled", "none of these", "été"])


def test_class_name_is_normalized(project):
    assert (normalize_class_name("n" * 200, []), project.add_class("  100%\nKatze ")) == ("n" * 200, "100% Katze")
    (project.folder / "train" / unicodedata.normalize("NFD", "été")).mkdir()
    assert "été" in project.read().classes


@pytest.mark.parametrize(("sent", "safe"), [
    ("a/b\\c.JPG", "c.JPG"), ("..", "%2E%2E"), ("", "image"), ('w"x|.png', "w%22x%7C.png"),
    ("u\0.png", "u%5Cx00.png"), ("\ud800" + "é" * 300 + ".png", "%5Cud800" + "é" * 87 + "~0c2e5029c0f9a5b4.png"),
])  # fmt: skip
def test_uploaded_file_gets_safe_name(sent, safe):
    assert safe_file_name(sent) == safe


# Changes


def test_undo_names_the_change(project):
    image = picture(project, "train/cat/a.png")
    project.add_class("elk")
    project.rename_class("cat", "Cat")
    project.delete_class("elk")
    project.move([picture(project, "train/Cat/a.png")], "dog")
    project.move([picture(project, "train/dog/a-1.png")], "")
    project.confirm(picture(project, "train/dog/a.png"))
    project.add("dog", [("c.png", png("lime"))])
    project.keep_in_one_class(picture(project, "train/dog/c.png").digest, "dog")
    assert [project.undo() for _ in range(8)] == [
        "an image kept in dog only", "1 image added to dog", "a label confirmed", "an image removed",
        "an image moved to dog", "the class elk deleted", "cat renamed to Cat", "the class elk added",
    ]  # fmt: skip
    refused("nothing to undo", project.undo)
    assert files_of(project.folder) == NESTED and picture(project, "train/cat/a.png") == image


def test_change_of_stale_view_is_refused(project):
    image = picture(project, "train/cat/a.png")
    project.move([image], "dog")
    refused("was removed or changed", project.move, [image], "dog")
    refused("the class 'elk' was removed", project.move, [picture(project, "train/dog/a-1.png")], "elk")
    refused("the class 'elk' was removed", project.add, "elk", [])
    refused("the image was removed", project.keep_in_one_class, image.digest, "elk")
    write(project.folder, {"train/cat/a.png": png("pink")})
    refused("was removed or changed", project.move, [image], "dog")


@pytest.mark.parametrize("place", ["unlabelled", "none of these"])
def test_pool_is_not_renamed_or_deleted_as_class(project, place):
    refused(f"'{place}' is not a class", project.rename_class, place, "cow")
    refused(f"'{place}' is not a class", project.delete_class, place)


@pytest.mark.parametrize(("name", "data", "problem"), [
    ("b.png", png("lime"), "exists already"), ("large.png", bytes(10_001), "MB"), ("cut.png", png("gold")[:40], ""),
    ("notes.png", b"no image", "not an image"), ("image.txt", png("gray"), "extension"),
    ("huge.png", as_png(Image.new("1", (10_000, 8_000)))[:9_000], "million pixels"),
])  # fmt: skip
def test_unusable_upload_is_reported(project, monkeypatch, name, data, problem):
    monkeypatch.setattr(images_module, "MAX_BYTES", 10_000)
    count, [line] = project.add("cat", [(name, data)])
    assert count == 0 and line.startswith(name) and problem in line
    assert files_of(project.folder) == NESTED and not list(project.folder.glob(".hegraph/new/*"))


def test_added_images_get_free_names(project):
    project.add("cat", [("../../x/a.png", png("gold")), ("C:\\b?.png", png("teal"))])
    assert files_of(project.folder) == NESTED | {"train/cat/a-1.png": png("gold"), "train/cat/b%3F.png": png("teal")}
    assert project.add("unlabelled", [("u.png", png("pink")), ("U.png", png("teal"))]) == (2, [])
    assert {"unlabelled/u.png", "unlabelled/U-1.png"} < files_of(project.folder).keys()


# Undo, and other programs


def test_undo_drops_change_whose_files_are_missing(project):
    project.add_class("elk")
    project.move([picture(project, "train/cat/a.png")], "dog")
    (project.folder / "train/dog/a-1.png").unlink()
    refused("cannot be undone: an image moved to dog: No such file", project.undo)
    assert project.undo() == "the class elk added"


def test_undo_overwrites_no_file_of_others(project, monkeypatch):
    project.move([picture(project, "train/cat/b.png")], "dog")
    write(project.folder, {"train/cat/b.png": b"of another program"})
    refused("exists already", project.undo)
    assert (project.folder / "train/cat/b.png").read_bytes() == b"of another program"
    assert (project.folder / "train/dog/b.png").read_bytes() == png("lime")
    project.add_class("z")
    write(project.folder, {"train/z/mine.png": b"mine"})
    project.undo()
    assert [path.read_bytes() for path in project.folder.rglob("mine.png")] == [b"mine"]


def test_number_of_stored_changes_is_limited(project, monkeypatch):
    monkeypatch.setattr(journal, "MAX_CHANGES", 2)
    for name in ("x", "y", "z"):
        project.add_class(name)
    assert [project.undo(), project.undo()] == ["the class z added", "the class y added"]
    assert project.read().undo == ""


def test_concurrent_tabs_lose_no_change(project):
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


def test_locked_folder_is_refused_after_a_while(project, monkeypatch):
    monkeypatch.setattr(journal, "LOCK_SECONDS", 0)
    project.read()
    with journal.FileLock(project.folder / ".hegraph/lock"):
        refused("another program", project.read)


def test_full_disk_changes_nothing(project, disk_full_after):
    with disk_full_after(100):
        refused("cannot", project.add, "cat", [("large.png", png("navy", (300, 300)))])
        refused("cannot", project.move, [picture(project, "train/cat/a.png")], "dog")
    assert (files_of(project.folder), project.read().undo) == (NESTED, "")
    project.add_class("elk")
    for size in (0, 100, 200):
        with disk_full_after(size):
            refused("cannot", project.undo)
    assert project.undo() == "the class elk added"


def test_removed_folder_is_not_created_again(project):
    project.read()
    shutil.move(project.folder, project.folder.with_name("elsewhere"))
    for act, *arguments in ((project.read,), (project.undo,), (project.add_class, "elk")):
        refused("was removed", act, *arguments)
    assert not project.folder.exists() and files_of(project.folder.with_name("elsewhere")) == NESTED


# Hostile files


@pytest.mark.parametrize(("source", "target"), [
    ("../outside/mine.png", "../../outside/taken.png"), ("../outside/mine.png", "/taken.png"),
    ("nul\0/mine.png", "nul\0/taken.png"), ("link/mine.png", "link/taken.png"),
])  # fmt: skip
def test_undo_stays_in_the_folder(project, tmp_path, source, target):
    write(tmp_path / "outside", {"mine.png": b"mine"})
    (project.folder / "link").symlink_to(tmp_path / "outside")
    value = {"changes": [{"what": "x", "moves": [(source, target)]}]}
    write(project.folder, {".hegraph/journal.json": json.dumps(value).encode()})
    refused("out of the folder", project.undo)
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["mine.png"]


def test_links_lead_to_no_change_outside(project, tmp_path):
    outside = tmp_path / "outside"
    write(outside, {"mine.png": b"mine"})
    project.read()
    for name in ("train", "unlabelled", ".hegraph"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
        (project.folder / name).symlink_to(outside)
        if name == "train":
            assert counts(project) == {}
            refused("out of the folder", project.add_class, "elk")
    refused("out of the folder", project.read)
    assert [path.name for path in outside.iterdir()] == ["mine.png"]


@pytest.mark.parametrize("text", [
    "{damaged", "[]", '{"begun": [["a"]]}', '{"begun": [["../x", "train/cat/0.png"]]}',
    '{"begun": [["/etc/x", "train/cat/0.png"]]}', '{"begun": [["train/cat/0.png", "../outside.png"]]}',
])  # fmt: skip
def test_unusable_journal_is_set_aside_with_warning(project, caplog, text):
    write(project.folder, {".hegraph/journal.json": text.encode()})
    assert counts(project) == {"cat": 2, "dog": 1}
    assert "journal.json" in caplog.text and "cannot be undone" in caplog.text
    assert [path.read_text() for path in project.folder.glob(".hegraph/removed/*/journal.json")] == [text]
    project.add_class("elk")
    assert (project.undo(), len(caplog.records)) == ("the class elk added", 1)


# Zip files


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("around", ["", "my project/"])
def test_zip_file_packed_by_macos_is_one_change(project, tmp_path, around):
    (project.folder / "train" / unicodedata.normalize("NFD", "été")).mkdir()
    project.move([picture(project, "train/cat/b.png")], "none of these")
    project.add("dog", [("twice.png", png("red"))])
    project.write_zip(tmp_path / "project.zip")
    with zipfile.ZipFile(tmp_path / "project.zip") as file:
        members = {f"{around}{name}": file.read(name) for name in file.namelist()}
    path = zipped(tmp_path / "a.zip", members | {f"__MACOSX/{name}._x.png": b"" for name in members})
    other = Project(tmp_path / "other")
    assert (other.add_zip(path), counts(other)) == ((5, []), {"cat": 1, "dog": 2, "été": 0})
    paths = ("train/cat/a.png", "train/dog/a.png", "train/dog/twice.png", "unlabelled/u.png", "none of these/b.png")
    assert files_of(other.folder) == dict(zip(paths, map(png, ("red", "blue", "red", "gold", "lime"))))
    assert (other.undo(), files_of(other.folder)) == ("5 images added from a zip file", {})
    assert project.add_zip(path)[0] == 0


def test_zip_file_is_added_to_flat_layout(flat, tmp_path):
    flat.write_zip(tmp_path / "flat.zip")
    assert {*zipfile.ZipFile(tmp_path / "flat.zip").namelist()} >= {"train/cat/a.png", "unlabelled/u.png"}
    assert flat.add_zip(tmp_path / "flat.zip")[0] == 0
    assert flat.add_zip(zipped(tmp_path / "more.zip", {"train/fox/a.png": png("teal")})) == (1, [])
    assert files_of(flat.folder).keys() == FLAT.keys() | {"fox/a.png"}


@pytest.mark.parametrize(("members", "message"), [
    ({"train/fox/a.png": png("teal"), "../../outside.png": png("teal")}, "out of the folder"),
    ({"train/fox/a.png": png("teal"), "/outside.png": png("teal")}, "out of the folder"),
    ({"train/fox/a.png": png("teal"), "train/a:b/a.png": png("teal")}, "expected a class name"),
    ({"train/fox/a.png": png("teal"), "train/fox/bomb.png": bytes(10**6)}, "more than 3 files or 0 GB"),
    (dict.fromkeys(("train/fox/a.png", "b", "c", "d"), png("teal")), "more than 3 files"),
    ({"fox/a.png": png("teal")}, "expected a folder train/<class>"),
    ({}, "damaged"),
])  # fmt: skip
def test_hostile_zip_file_writes_nothing(project, tmp_path, monkeypatch, members, message):
    monkeypatch.setattr(module, "MAX_ZIP_BYTES", 10**5)
    monkeypatch.setattr(module, "MAX_ZIP_FILES", 3)
    write(tmp_path, {"a.zip": b"no zip file"})
    if members:
        zipped(tmp_path / "a.zip", members)
    refused(message, project.add_zip, tmp_path / "a.zip")
    assert files_of(tmp_path).keys() == {"a.zip", *(f"project/{path}" for path in NESTED)}
    assert project.read().undo == "" and not list((project.folder / ".hegraph").glob("new/*"))


def test_zip_members_are_unpacked_up_to_image_size(project, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 1_000)
    monkeypatch.setattr(uploads, "MAX_BYTES", 1_000)
    members = {"train/fox/bomb.png": bytes(10**6), "train/fox/a.png": png("teal"), "train/cat/b.png": png("red")}
    count, problems = project.add_zip(zipped(tmp_path / "a.zip", members))
    assert (count, [problem[:12] for problem in problems]) == (1, ["bomb.png has", "b.png exists"])
    assert files_of(project.folder)["train/fox/a.png"] == png("teal")
    refused("another compression", project.add_zip, zipped(tmp_path / "b.zip", members, zipfile.ZIP_LZMA))
