"""Encoded images of a teach project: features on disk, unreadable images, and encoding that is interrupted."""

import re
import shutil

import pytest
import torch
from teach_files import last, updated

from trainers.hegraph import UserError
from trainers.hegraph.apps.teach import encoded_images as module, session as session_module
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.utils.files import write_tensors
from trainers.hegraph.utils.reading import read_tensors

WIDTH = 64  # of hegraph-mini


def test_stored_features_are_read_for_the_same_backbone(session, mini, monkeypatch):
    before = last(session)
    again = Session(session.project, mini, "hegraph-mini")
    monkeypatch.setattr(again.encoded_images, "encode", lambda pictures: 1 / 0)
    assert updated(again).suggestions == before.suggestions
    file = session.encoded_images.file
    monkeypatch.setattr(module, "hash_json", lambda value: "another")
    assert Session(session.project, mini, "hegraph-mini").encoded_images.features == {}
    thumbnails = again.encoded_images.thumbnails
    shutil.move(thumbnails, file.with_name("elsewhere"))
    thumbnails.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(UserError, match="leads out of the folder"):
        Session(session.project, mini, "hegraph-mini")


@pytest.mark.parametrize(("row", "message"), [
    (torch.zeros(WIDTH), "of norm 0"), (torch.full((WIDTH,), torch.nan), "of norm nan"),
    (torch.eye(WIDTH)[0].double(), "got float64"), (torch.eye(WIDTH)[0].int(), "got int32"),
    (torch.eye(WIDTH + 1)[0], r"got float32 \[65\]"), (torch.ones(WIDTH), "of norm 8"), (None, "damaged"),
])  # fmt: skip
def test_unusable_features_are_encoded_again_with_warning(session, mini, caplog, row, message):
    before, file = last(session), session.encoded_images.file
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
    reread = Session(session.project, mini, "hegraph-mini").encoded_images.features
    assert reread.keys() == again.encoded_images.features.keys()
    assert not caplog.records


def test_features_are_on_disk_when_a_tab_closes(session, mini, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(session_module, "UPDATE_SECONDS", 0)

    def on_disk() -> int:
        return len(Session(session.project, mini, "hegraph-mini").encoded_images.features)

    views = session.update()
    for _ in range(3):
        next(views)
    assert on_disk() > 0, "the first batch is written at once"
    views.close()
    assert on_disk() == len(session.encoded_images.features) == 12
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    views = session.update()
    assert [next(views).waiting, next(views).waiting] == [12, 8]
    assert on_disk() == 20, "written while images are encoded"
    session.encoded_images.encode(session.encoded_images.missing(session.view.contents.unlabelled)[:4])
    session.save()
    assert on_disk() == 24


def test_interrupted_comparison_keeps_encoded_images(session, mini, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    contents = session.project.read()
    pictures = [picture for pictures in contents.classes.values() for picture in pictures]
    encode = session.encoded_images.encode

    def encode_two_batches(batch):
        if len(session.encoded_images.features) == 8:
            raise KeyboardInterrupt
        encode(batch)

    monkeypatch.setattr(session.encoded_images, "encode", encode_two_batches)
    with pytest.raises(KeyboardInterrupt):
        session.encoded_support_set(sorted(contents.classes), contents, pictures)
    assert len(Session(session.project, mini, "hegraph-mini").encoded_images.features) == 8


def test_full_disk_while_encoding_is_reported(session, mini, disk_full_after):
    with disk_full_after(100), pytest.raises(UserError, match="cannot"):
        last(session)
    assert session.view.waiting == 0
    last(session)
    on_disk = Session(session.project, mini, "hegraph-mini").encoded_images.features
    assert len(on_disk) == len(session.encoded_images.features) == 24


def test_damaged_files_are_not_counted(session):
    folder = session.project.folder
    (folder / "train/one/cut.png").write_bytes((folder / "train/one/one-0.png").read_bytes()[:60])
    (folder / "unlabelled/cut.png").write_bytes(b"no image")
    view = last(session)
    assert (len(view.contents.classes["one"]), len(view.contents.unlabelled)) == (4, 11)
    assert sorted(problem.split()[0] for problem in view.problems) == ["train/one/cut.png", "unlabelled/cut.png"]


def test_moved_project_is_not_created_again_while_encoding(session, tmp_path):
    """The folder is moved between two batches; the session neither writes features nor thumbnails at the old place."""
    encode = session.encoded_images.encode

    def encode_and_move(pictures):
        if session.project.folder.exists():
            session.project.folder.rename(tmp_path / "moved away")
        encode(pictures)

    session.encoded_images.encode = encode_and_move
    with pytest.raises(UserError, match="was removed"):
        list(session.update())
    assert not session.project.folder.exists()
    (tmp_path / "moved away").rename(session.project.folder)  # it can be moved back
    session.encoded_images.encode = encode
    assert list(session.update())[-1].model is not None


def test_image_moved_while_encoding_is_encoded_later(session):
    picture = session.view.contents.unlabelled[0]
    session.project.move([picture], "six")
    session.encoded_images.encode([picture])
    assert (last(session).problems, len(session.view.contents.classes["six"])) == ([], 4)


def test_encoding_stops_and_resumes_labelled_first(session, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(session_module, "UPDATE_SECONDS", 0)
    views = session.update()
    assert [next(views).waiting, next(views).waiting] == [24, 20]
    session.stopping.set()
    assert [view.waiting for view in views] == [16]
    assert {p.path for p in session.view.contents.unlabelled if p.digest in session.encoded_images.features} == set()
    assert last(session).waiting == 16
    session.stopping.clear()
    assert [view.waiting for view in session.update()] == [16, 12, 8, 4, 0]


def test_unreadable_images_stay_known_with_another_backbone(session, untrained):
    (session.project.folder / "unlabelled/cut.png").write_bytes(b"no image")
    problems = last(session).problems
    session.switch(untrained, "")
    contents = session.project.read()
    assert session.encoded_images.problems(contents) == problems and len(problems) == 1
    missing = [picture.name for picture in session.encoded_images.missing(contents.unlabelled)]
    assert len(missing) == 11 and "cut.png" not in missing
