"""Unpacking archives, also hostile ones: whole or not at all, and never outside the targets."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable

import pytest
from file_server import (
    BODY,
    FILES,
    HASTY,
    UNPACK,
    UNPACKED,
    A,
    archive,
    names_in,
    pack,
    serve,
    status,
    sum_of,
    tar_with,
    zip_with,
)

from trainers.hegraph.datasets.fetch import archives
from trainers.hegraph.datasets.fetch.download import fetch
from trainers.hegraph.datasets.fetch.failures import Unreachable
from trainers.hegraph.datasets.fetch.sources import Member
from trainers.hegraph.utils.errors import UserError


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_unpacked_to_its_targets_and_removed(server, tmp_path, kind):
    # whatever its name says: ImageNetV2's .tar.gz is a plain tar
    url = server.url("/x", serve(pack(kind, FILES)))
    fetch(archive(url, file="x.tar.gz"), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED
    assert (tmp_path / "images/b/2.jpg").read_bytes() == BODY
    assert (tmp_path / "names.txt").read_bytes() == b"l"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "images/a/1.jpg").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "images").stat().st_mode) == 0o777 & ~umask


def test_the_member_nearest_to_the_root_is_taken_however_many_folders_wrap_it(server, tmp_path):
    files = {"a/b/images/1.jpg": b"1", "a/b/images/images/2.jpg": b"2", "__MACOSX/images/3.jpg": b"3"}
    fetch(archive(server.url("/x", serve(pack("zip", files))), unpack=UNPACK[:1]), tmp_path, HASTY)
    assert names_in(tmp_path) == {"images", "images/1.jpg", "images/images", "images/images/2.jpg"}


def test_an_archive_within_an_archive_is_unpacked(server, tmp_path):
    inner = pack("tar.gz", {"101/a/1.jpg": b"1"})
    outer = pack("zip", {"caltech/101.tar.gz": inner, "caltech/more.txt": b"m", "__MACOSX/caltech/._101.tar.gz": b"x"})
    source = archive(server.url("/x", serve(outer)), unpack=(Member("101", "images"),), inner="101.tar.gz")
    fetch(source, tmp_path, HASTY)
    assert names_in(tmp_path) == {"images", "images/a", "images/a/1.jpg"}


def test_links_and_double_entries_that_stay_inside_are_unpacked(server, tmp_path):
    body = tar_with(
        ("./images/", b"", tarfile.DIRTYPE),
        ("./images/1.jpg", b"old"),
        ("./images/1.jpg", b"new"),
        ("./images/deep/soft.jpg", b"", tarfile.SYMTYPE, "../1.jpg"),
        ("./images/hard.jpg", b"", tarfile.LNKTYPE, "./images/1.jpg"),
        ("./images/late.jpg", b"", tarfile.LNKTYPE, "./images/1.jpg"),
        ("./images/late.jpg", b"late"),
        ("./labels.txt", b"l"),
    )
    fetch(archive(server.url("/x", serve(body))), tmp_path, HASTY)
    for name in ("1.jpg", "deep/soft.jpg", "hard.jpg"):
        assert (tmp_path / "images" / name).read_bytes() == b"new"
    assert (tmp_path / "images/deep/soft.jpg").is_symlink()
    assert (tmp_path / "images/late.jpg").read_bytes() == b"late"


def test_a_target_that_exists_is_left_alone_and_the_missing_one_is_added(server, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.jpg").write_bytes(b"mine")
    fetch(archive(server.url("/x", serve(pack("zip", FILES)))), tmp_path, HASTY)
    assert names_in(tmp_path) == {"images", "images/mine.jpg", "names.txt"}


def test_an_empty_folder_does_not_count_as_unpacked(server, tmp_path):
    (tmp_path / "images").mkdir()
    fetch(archive(server.url("/x", serve(pack("tar", FILES)))), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED


def test_an_archive_put_there_by_hand_is_used_and_nothing_is_asked_for(server, tmp_path):
    body = pack("zip", FILES)
    (tmp_path / "x.archive").write_bytes(body)
    fetch(archive(server.url("/x", serve(body)), checksum=sum_of(body)), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED
    assert server.asked == []


def test_an_archive_put_there_by_hand_that_is_not_the_right_one_is_an_error_and_is_kept(server, tmp_path):
    (tmp_path / "x.archive").write_bytes(pack("zip", FILES))
    with pytest.raises(UserError, match=r"x\.archive is of no use: its sha256 sum is .* delete it and run"):
        fetch(archive(server.url("/x", serve(BODY)), checksum=sum_of(BODY)), tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}


def test_an_interruption_while_unpacking_leaves_no_target_and_the_next_call_needs_no_server(
    server, tmp_path, monkeypatch
):
    source = archive(server.url("/x", serve(pack("tar.gz", FILES))))
    copy, copied = archives.shutil.copyfileobj, []

    def interrupted(*arguments):
        copied.append(1)
        if len(copied) == 2:
            raise KeyboardInterrupt
        copy(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives.shutil, "copyfileobj", interrupted)
        fetch(source, tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}
    stale = tmp_path / ".x.archive.unpacking" / "members" / "0" / "stale.jpg"  # what a kill leaves
    stale.parent.mkdir(parents=True)
    stale.touch()
    server.asked.clear()
    fetch(source, tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED
    assert server.asked == []


def test_a_target_that_appears_while_the_archive_is_unpacked_is_left_alone(server, tmp_path, monkeypatch):
    copy = archives.shutil.copyfileobj

    def meanwhile(*arguments):
        (tmp_path / "names.txt").write_bytes(b"mine")
        copy(*arguments)

    monkeypatch.setattr(archives.shutil, "copyfileobj", meanwhile)
    fetch(archive(server.url("/x", serve(pack("zip", FILES)))), tmp_path, HASTY)
    assert (tmp_path / "names.txt").read_bytes() == b"mine"


def test_rubbish_behind_a_gzip_file_does_no_harm(server, tmp_path):
    fetch(archive(server.url("/x", serve(pack("tar.gz", FILES) + b"rubbish"))), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED


def test_a_disk_that_fills_up_while_unpacking_leaves_no_target_and_keeps_the_archive(server, tmp_path, disk_full_after):
    body = pack("zip", {**FILES, "set/images/big.jpg": bytes(1_000_000)})  # packs to less than it unpacks to
    source = archive(server.url("/x", serve(body)))
    with disk_full_after(500_000), pytest.raises(UserError, match=r"cannot write .*big\.jpg: File too large"):
        fetch(source, tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}


def test_a_damaged_archive_is_removed_and_the_next_mirror_has_its_turn(server, tmp_path, caplog):
    body = pack("tar.gz", FILES)
    damaged, whole = server.url("/damaged", serve(body[: len(body) // 2])), server.url("/whole", serve(body))
    fetch(archive(damaged, whole), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED
    assert "the archive is damaged" in caplog.text


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("body", [BODY, None], ids=["no archive", "a flipped byte"])
def test_what_is_no_good_archive_is_an_error_and_is_removed(server, tmp_path, kind, body):
    if body is None:
        body = bytearray(pack(kind, FILES))
        body[len(body) // 2] ^= 255
    with pytest.raises(Unreachable, match="the archive is damaged"):
        fetch(archive(server.url("/x", serve(bytes(body)))), tmp_path, HASTY)
    assert names_in(tmp_path) == set()


def test_an_archive_without_what_is_needed_is_kept_and_another_one_has_its_turn(server, tmp_path):
    url = server.url("/x", serve(pack("zip", {"set/pictures/1.jpg": b"1"})))
    with pytest.raises(Unreachable, match=r"x\.archive holds no images"):
        fetch(archive(url), tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}
    (tmp_path / "x.archive").unlink()
    other = archive(server.url("/other", serve(pack("tar", FILES))), file="other.tar")
    fetch(archive(url, otherwise=other), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED


def test_an_archive_in_which_two_members_may_be_meant_is_an_error(server, tmp_path):
    url = server.url("/x", serve(pack("zip", {"a/images/1.jpg": b"1", "b/images/1.jpg": b"2", "labels.txt": b"l"})))
    with pytest.raises(Unreachable, match=r"holds two images: a/images and b/images"):
        fetch(archive(url), tmp_path, HASTY)


def test_another_archive_brings_what_else_is_missing_but_need_not(server, tmp_path):
    rich = archive(
        server.url("/rich", serve(pack("zip", FILES))), file="rich.zip",
        unpack=(*UNPACK, Member("other.txt", "other.txt"), Member("absent.txt", "absent.txt")),
    )  # fmt: skip
    fetch(archive(server.url("/gone", status(404)), unpack=UNPACK[:1], otherwise=rich), tmp_path, HASTY)
    assert names_in(tmp_path) == {*UNPACKED, "other.txt"}


SYM, LNK = tarfile.SYMTYPE, tarfile.LNKTYPE
# Name -> the members of a tar, or a zip, given an absolute path outside; and the member that is to blame
UNSAFE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "tar ..": (lambda out: tar_with(A, ("images/../../escaped", b"x")), "images/../../escaped"),
    "tar absolute": (lambda out: tar_with(A, (f"{out}/escaped", b"x")), "{out}/escaped"),
    "tar beside the members": (lambda out: tar_with(A, ("../escaped", b"x")), "../escaped"),
    "tar link out": (lambda out: tar_with(A, ("images/out", b"", SYM, "../../..")), "images/out"),
    "tar absolute link": (lambda out: tar_with(A, ("images/out", b"", SYM, out)), "images/out"),
    "tar through a link out": (
        lambda out: tar_with(("images/out", b"", SYM, out), ("images/out/escaped", b"x")), "images/out"
    ),
    "tar through a link inside": (
        lambda out: tar_with(("images/a/1", b"1"), ("images/b", b"", SYM, "a"), ("images/b/2", b"2")), "images/b/2"
    ),
    "tar link through a link": (  # by its text alone it leads to images/a
        lambda out: tar_with(
            ("images/a/b/1", b"1"), ("images/up", b"", SYM, "."), ("images/a/b/out", b"", SYM, "../../up/../a")
        ),
        "images/a/b/out",
    ),
    "tar link out and back": (  # where it goes, the folder above may have another name
        lambda out: tar_with(A, ("images/up", b"", SYM, "../images/a")), "images/up"
    ),
    "tar link to what stays behind": (  # where it goes, it would lead out of the data set's folder
        lambda out: tar_with(("a/b/images/x", b"", SYM, "../../c"), ("a/c", b"c")), "a/b/images/x"
    ),
    "tar link in place of a member": (
        lambda out: tar_with(("a/images", b"", SYM, "c"), ("a/c/1", b"1")), "a/images"
    ),
    "tar link replaced by a file": (
        lambda out: tar_with(("images/a", b"", SYM, f"{out}/escaped"), ("images/a", b"x")), "images/a"
    ),
    "tar hard link out": (lambda out: tar_with(A, ("images/hard", b"", LNK, "../escaped")), "images/hard"),
    "tar hard link to nothing": (lambda out: tar_with(A, ("images/hard", b"", LNK, "images/b")), "images/hard"),
    "tar pipe": (lambda out: tar_with(A, ("images/pipe", b"", tarfile.FIFOTYPE)), "images/pipe"),
    "tar device": (lambda out: tar_with(A, ("images/null", b"", tarfile.CHRTYPE)), "images/null"),
    "zip ..": (lambda out: zip_with("images/../../escaped"), "images/../../escaped"),
    "zip absolute": (lambda out: zip_with(f"{out}/escaped"), "{out}/escaped"),
    "zip backslashes": (lambda out: zip_with("images\\..\\..\\escaped"), "images\\..\\..\\escaped"),
    "zip drive": (lambda out: zip_with("C:/escaped"), "C:/escaped"),
    "zip link": (lambda out: zip_with("images/b", b"a.jpg", stat.S_IFLNK | 0o777), "images/b"),
    "zip link out": (lambda out: zip_with("images/out", b"../../..", stat.S_IFLNK | 0o777), "images/out"),
    "zip link without end": (lambda out: zip_with("images/out", b"x" * 5000, stat.S_IFLNK | 0o777), "images/out"),
    "zip device": (lambda out: zip_with("images/null", b"", stat.S_IFCHR | 0o666), "images/null"),
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "within another archive"])
@pytest.mark.parametrize("case", UNSAFE)
def test_an_archive_with_an_unsafe_member_is_refused_whole_and_writes_nothing_anywhere(server, tmp_path, case, nested):
    make, member = UNSAFE[case]
    body = make(str(tmp_path))
    if nested:
        body = pack("zip", {"inner.archive": body})
    folder = tmp_path / "root" / "set"
    source = archive(server.url("/x", serve(body)), unpack=UNPACK[:1], inner="inner.archive" if nested else "")
    with pytest.raises(UserError) as error:
        fetch(source, folder, HASTY)
    assert not isinstance(error.value, Unreachable)
    assert f"is refused, as its member {member.format(out=tmp_path)!r} is " in str(error.value)
    assert names_in(tmp_path) == {"root", "root/set", "root/set/x.archive"}


@pytest.mark.parametrize(
    "link", [("images/b", b"", SYM, "a"), ("images/b", b"", LNK, "images/a")], ids=["soft", "hard"]
)
def test_a_python_that_cannot_check_links_refuses_them_and_unpacks_what_has_none(server, tmp_path, monkeypatch, link):
    monkeypatch.delattr(tarfile, "data_filter")
    source = archive(server.url("/x", serve(tar_with(A, link))), unpack=UNPACK[:1])
    with pytest.raises(UserError, match=r"its member 'images/b' is a link or a device, which this Python cannot check"):
        fetch(source, tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}
    (tmp_path / "x.archive").unlink()
    fetch(archive(server.url("/x", serve(pack("tar.gz", FILES)))), tmp_path, HASTY)
    assert names_in(tmp_path) == UNPACKED


@pytest.mark.parametrize("case", UNSAFE)
def test_a_python_without_the_data_filter_refuses_the_same_archives(server, tmp_path, monkeypatch, case):
    monkeypatch.delattr(tarfile, "data_filter")
    folder = tmp_path / "root" / "set"
    with pytest.raises(UserError, match="is refused, as its member "):
        fetch(archive(server.url("/x", serve(UNSAFE[case][0](str(tmp_path)))), unpack=UNPACK[:1]), folder, HASTY)
    assert names_in(tmp_path) == {"root", "root/set", "root/set/x.archive"}
