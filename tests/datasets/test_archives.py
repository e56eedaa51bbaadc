"""Unpacking: whole or not at all, and never outside the targets."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from file_server import (
    BODY,
    FILES,
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

from trainers.hegraph.datasets import archives
from trainers.hegraph.datasets.download import Unreachable, fetch
from trainers.hegraph.datasets.entry import Member
from trainers.hegraph.utils.errors import UserError


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_unpacked_into_its_targets_and_removed(server, tmp_path, kind):
    fetch(archive(server.url("/x", serve(pack(kind, FILES)))), tmp_path)
    assert names_in(tmp_path) == UNPACKED
    assert (tmp_path / "images/b/2.jpg").read_bytes() == BODY
    assert (tmp_path / "names.txt").read_bytes() == b"l"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "names.txt").stat().st_mode) == 0o666 & ~umask


def test_the_member_nearest_to_the_root_is_taken_however_many_folders_wrap_it(server, tmp_path):
    files = {"a/b/images/1.jpg": b"1", "a/b/images/images/2.jpg": b"2", "__MACOSX/images/3.jpg": b"3"}
    fetch(archive(server.url("/x", serve(pack("zip", files))), unpack=UNPACK[:1]), tmp_path)
    assert names_in(tmp_path) == {"images", "images/1.jpg", "images/images", "images/images/2.jpg"}


def test_an_archive_within_an_archive_is_unpacked(server, tmp_path):
    inner = pack("tar.gz", {"101/a/1.jpg": b"1"})
    outer = pack("zip", {"caltech/101.tar.gz": inner, "caltech/more.txt": b"m", "__MACOSX/caltech/._101.tar.gz": b"x"})
    source = archive(server.url("/x", serve(outer)), unpack=(Member("101", "images"),), inner="101.tar.gz")
    fetch(source, tmp_path)
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
    fetch(archive(server.url("/x", serve(body))), tmp_path)
    for name in ("1.jpg", "deep/soft.jpg", "hard.jpg"):
        assert (tmp_path / "images" / name).read_bytes() == b"new"
    assert (tmp_path / "images/deep/soft.jpg").is_symlink()
    assert (tmp_path / "images/late.jpg").read_bytes() == b"late"


def test_a_target_that_exists_is_left_alone_and_the_missing_one_is_added(server, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.jpg").write_bytes(b"mine")
    fetch(archive(server.url("/x", serve(pack("zip", FILES)))), tmp_path)
    assert names_in(tmp_path) == {"images", "images/mine.jpg", "names.txt"}


def test_an_archive_put_there_by_hand_is_used_and_nothing_is_asked_for(server, tmp_path):
    body = pack("zip", FILES)
    (tmp_path / "x.archive").write_bytes(body)
    fetch(archive(server.url("/x", serve(body)), checksum=sum_of(body)), tmp_path)
    assert names_in(tmp_path) == UNPACKED
    assert server.asked == []


def test_an_archive_put_there_by_hand_that_is_not_the_right_one_is_an_error_and_is_kept(server, tmp_path):
    (tmp_path / "x.archive").write_bytes(pack("zip", FILES))
    with pytest.raises(UserError, match=r"x\.archive is of no use: its sha256 sum is .* delete it and run"):
        fetch(archive(server.url("/x", serve(BODY)), checksum=sum_of(BODY)), tmp_path)
    assert names_in(tmp_path) == {"x.archive"}


def test_an_interruption_while_unpacking_leaves_no_target_and_the_next_call_needs_no_server(
    server, tmp_path, monkeypatch
):
    (tmp_path / "images").mkdir()  # an empty one does not count as unpacked
    source = archive(server.url("/x", serve(pack("zip", FILES))))
    copy, copied = archives.shutil.copyfileobj, []

    def interrupted(*arguments):
        copied.append(1)
        if len(copied) == 2:
            raise KeyboardInterrupt
        copy(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives.shutil, "copyfileobj", interrupted)
        fetch(source, tmp_path)
    assert names_in(tmp_path) == {"x.archive", "images"}
    stale = tmp_path / ".x.archive.unpacking" / "members" / "stale.jpg"  # what a kill leaves
    stale.parent.mkdir(parents=True)
    stale.touch()
    server.asked.clear()
    fetch(source, tmp_path)
    assert names_in(tmp_path) == UNPACKED
    assert server.asked == []


def test_rubbish_behind_a_gzip_file_does_no_harm(server, tmp_path):
    fetch(archive(server.url("/x", serve(pack("tar.gz", FILES) + b"rubbish"))), tmp_path)
    assert names_in(tmp_path) == UNPACKED


def test_a_disk_that_fills_up_while_unpacking_leaves_no_target_and_keeps_the_archive(server, tmp_path, disk_full_after):
    body = pack("zip", {**FILES, "set/images/big.jpg": bytes(1_000_000)})  # packs to less than it unpacks to
    source = archive(server.url("/x", serve(body)))
    with disk_full_after(500_000), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        fetch(source, tmp_path)
    assert names_in(tmp_path) == {"x.archive"}


def test_a_damaged_archive_is_removed_and_the_next_mirror_has_its_turn(server, tmp_path, caplog):
    body = pack("tar.gz", FILES)
    damaged, whole = server.url("/damaged", serve(body[: len(body) // 2])), server.url("/whole", serve(body))
    fetch(archive(damaged, whole), tmp_path)
    assert names_in(tmp_path) == UNPACKED
    assert "the archive is damaged" in caplog.text


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("body", [BODY, None, tar_with(A, ("labels.txt", b"", tarfile.LNKTYPE, "none"))])
def test_what_is_no_good_archive_is_an_error_and_is_removed(server, tmp_path, kind, body):
    if body is None:
        body = bytearray(pack(kind, FILES))
        body[len(body) // 2] ^= 255
    with pytest.raises(Unreachable, match="the archive is damaged"):
        fetch(archive(server.url("/x", serve(bytes(body)))), tmp_path)
    assert names_in(tmp_path) == set()


def test_an_archive_without_what_is_needed_is_kept_and_another_one_has_its_turn(server, tmp_path):
    url = server.url("/x", serve(pack("zip", {"set/pictures/1.jpg": b"1"})))
    with pytest.raises(Unreachable, match=r"x\.archive holds no images"):
        fetch(archive(url), tmp_path)
    assert names_in(tmp_path) == {"x.archive"}
    (tmp_path / "x.archive").unlink()
    other = archive(server.url("/other", serve(pack("tar", FILES))), file="other.tar")
    fetch(archive(url, otherwise=(other,)), tmp_path)
    assert names_in(tmp_path) == UNPACKED


def test_an_archive_in_which_two_members_may_be_meant_is_an_error(server, tmp_path):
    url = server.url("/x", serve(pack("zip", {"a/images/1.jpg": b"1", "b/images/1.jpg": b"2", "labels.txt": b"l"})))
    with pytest.raises(Unreachable, match=r"holds two images: a/images and b/images"):
        fetch(archive(url), tmp_path)


def test_another_archive_brings_what_else_is_missing_but_need_not(server, tmp_path):
    rich = archive(
        server.url("/rich", serve(pack("zip", FILES))), file="rich.zip",
        unpack=(*UNPACK, Member("other.txt", "other.txt"), Member("absent.txt", "absent.txt")),
    )  # fmt: skip
    fetch(archive(server.url("/gone", status(404)), unpack=UNPACK[:1], otherwise=(rich,)), tmp_path)
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
        lambda out: tar_with(("images/out", b"", SYM, out), ("images/out/escaped", b"x")), "images/out/escaped"
    ),
    "tar through a link inside": (
        lambda out: tar_with(("images/a/1", b"1"), ("images/b", b"", SYM, "a"), ("images/b/2", b"2")), "images/b/2"
    ),
    "tar link through a link": (  # by its text alone it leads to images/a
        lambda out: tar_with(
            ("images/a/b/1", b"1"), ("images/up", b"", SYM, "."), ("images/a/b/out", b"", SYM, "../../up/../a")
        ),
        "a/b/out",
    ),
    "tar link out and back": (  # where it goes, the folder above may have another name
        lambda out: tar_with(A, ("images/up", b"", SYM, "../images/a")), "up"
    ),
    "tar link to what stays behind": (  # where it goes, it would lead out of the data set's folder
        lambda out: tar_with(("a/b/images/x", b"", SYM, "../../c"), ("a/c", b"c")), "x"
    ),
    "tar link in place of a member": (
        lambda out: tar_with(("a/images", b"", SYM, "c"), ("a/c/1", b"1")), "."
    ),
    "tar hard link out": (lambda out: tar_with(A, ("images/hard", b"", LNK, "../escaped")), "images/hard"),
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


def refused(server, folder: Path, body: bytes, inner: str = "") -> str:
    """What is said of the archive, which is left as the only file."""
    source = archive(server.url("/x", serve(body)), unpack=UNPACK[:1], inner=inner)
    with pytest.raises(UserError, match="is refused, as its member ") as error:
        fetch(source, folder / "root" / "set")
    assert not isinstance(error.value, Unreachable)
    assert names_in(folder) == {"root", "root/set", "root/set/x.archive"}
    return str(error.value)


@pytest.mark.parametrize("case", UNSAFE)
def test_an_archive_with_an_unsafe_member_is_refused_whole_and_writes_nothing_anywhere(server, tmp_path, case):
    make, member = UNSAFE[case]
    said = refused(server, tmp_path, make(str(tmp_path)))
    assert f"is refused, as its member {member.format(out=tmp_path)!r} is " in said


def test_so_is_one_within_another_archive(server, tmp_path):
    body = pack("zip", {"inner.archive": tar_with(A, ("images/out", b"", SYM, "../../.."))})
    refused(server, tmp_path, body, inner="inner.archive")


@pytest.mark.parametrize("case", ["tar ..", "tar link out", "tar hard link out", "tar pipe", "zip link"])
def test_a_python_without_the_data_filter_refuses_every_link_and_unpacks_what_has_none(
    server, tmp_path, monkeypatch, case
):
    monkeypatch.delattr(tarfile, "data_filter")
    refused(server, tmp_path / "a", UNSAFE[case][0](str(tmp_path)))
    refused(server, tmp_path / "b", tar_with(A, ("images/b", b"", SYM, "a")))
    fetch(archive(server.url("/y", serve(pack("tar.gz", FILES)))), tmp_path / "c")
    assert names_in(tmp_path / "c") == UNPACKED
