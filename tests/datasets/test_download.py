"""The downloader, with a faulty HTTP server, Google Drive, and archives."""

import gzip
import hashlib
import io
import logging
import random
import re
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from dataset_files import Server, before_silence, fall_silent, make, serve, status, tar_with

from trainers.hegraph.commands.datasets import main
from trainers.hegraph.datasets import download as module
from trainers.hegraph.datasets.download import CHUNK, LOCK, download, fetch
from trainers.hegraph.datasets.registry import ENTRIES, Source, stored_datasets
from trainers.hegraph.utils.errors import UserError

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
BODY, OTHER = random.Random(0).randbytes(300_000), random.Random(1).randbytes(350_000)
HALF = len(BODY) // 2
PAGE = b"  \n<!DOCTYPE html><html><title>Quota exceeded</title></html>"
FILES = {"set/images/a/1.jpg": b"1", "set/images/b/2.jpg": BODY, "set/labels.txt": b"l", "set/other.txt": b"o"}
UNPACK = {"images": "images", "labels.txt": "names.txt"}
UNPACKED = {"images", "images/a", "images/a/1.jpg", "images/b", "images/b/2.jpg", "names.txt"}


def one_file(*urls: str, file: str = "f.bin", **known: object) -> Source:
    return Source(file, urls, **known)


def archive(*urls: str, file: str = "x.archive", unpack: dict[str, str] = UNPACK, **known: object) -> Source:
    return Source(file, urls, unpack=unpack, **known)


def sum_of(body: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def names_in(folder: Path) -> set[str]:
    """Paths in a folder, without the lock file."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != LOCK}


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    """A zip, tar or tar.gz with these files."""
    if kind != "zip":
        return tar_with(*files.items(), mode="w:gz" if kind == "tar.gz" else "w")
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def arrived(folder: Path, body: bytes = BODY) -> bool:
    """Whether the folder has exactly this file."""
    return names_in(folder) == {"f.bin"} and (folder / "f.bin").read_bytes() == body


def refused(source: Source, folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch(source, folder)


def served(server: Server, body: bytes, **known: object) -> Source:
    """Source of an archive on the server."""
    return archive(server.url("/x", serve(body)), **known)


# --- transfers


@pytest.mark.parametrize("known", [{"size": len(BODY)}, {"checksum": sum_of(BODY)}, {"checksum": sum_of(BODY, "md5")}])
def test_first_mirror_with_the_right_file_is_used(server, tmp_path, known):
    bodies = {"/wrong": OTHER, "/empty": b"", "/page": PAGE, "/right": BODY}
    fetch(one_file(*(server.url(path, serve(body)) for path, body in bodies.items()), **known), tmp_path)
    assert arrived(tmp_path)


@pytest.mark.parametrize(("body", "known", "words"), [
    (OTHER, {"size": len(BODY)}, "expected 300,000 bytes, got 350,000"),
    (OTHER, {"checksum": sum_of(BODY)}, "expected the sha256 checksum"),
    (OTHER, {"checksum": sum_of(BODY, "md5")}, "expected the md5 checksum"),
    (b"", {}, "expected more than 0 bytes, got 0"), (PAGE, {}, "expected a file, got a web page"),
])  # fmt: skip
def test_wrong_file_is_refused(server, tmp_path, body, known, words):
    refused(one_file(server.url("/f", serve(body)), **known), tmp_path, words)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("stall", [False, True], ids=["the connection ends", "the server falls silent"])
def test_interrupted_transfer_continues(server, tmp_path, stall):
    breaks = [serve(BODY, stop_at=at, stall=stall and at == 3 * CHUNK) for at in range(2 * CHUNK, len(BODY), CHUNK)]
    first, *others = breaks
    fetch(one_file(server.url("/f", before_silence(first), *others, serve(BODY))), tmp_path)
    assert arrived(tmp_path)
    first, rest, *_ = [asked for _, asked in server.asked]
    assert first is None and CHUNK <= int(re.fullmatch(r"bytes=(\d+)-", rest)[1]) <= 2 * CHUNK


def broken_off(server: Server, folder: Path, **how: object) -> tuple[Source, Path]:
    """Source of an interrupted transfer, and its partial file."""
    source = one_file(server.url("/f", serve(BODY, stop_at=HALF, **how)))
    folder.mkdir(exist_ok=True)
    refused(source, folder, "/f: .*; save it as .* by hand")
    [part] = folder.glob("*.part")
    assert part.stat().st_size >= HALF - CHUNK and BODY.startswith(part.read_bytes())
    server.asked.clear()
    return source, part


@pytest.mark.parametrize("how", [{}, {"ETag": None, "Last_Modified": DATE}], ids=["ETag", "Last-Modified"])
def test_next_call_requests_only_the_rest(server, tmp_path, how):
    source, part = broken_off(server, tmp_path, **how)
    begin = part.stat().st_size
    server.answers["/f"] = [serve(BODY, **how)]
    fetch(source, tmp_path)
    assert arrived(tmp_path) and server.asked == [("/f", f"bytes={begin}-")]
    source, part = broken_off(server, tmp_path / "again", **how)
    part.write_bytes(BODY)
    server.answers["/f"] = [status(416)]
    fetch(source, tmp_path / "again")
    assert arrived(tmp_path / "again")


@pytest.mark.parametrize(("first", "version", "then"), [
    ('"1"', None, '"2"'), (None, None, None), ('W/"1"', None, 'W/"1"'),  # a weak one does not identify the content
    ('"\xe9"', None, '"2"'),  # headers are ASCII
    *(('"1"', version, '"2"') for version in (b"\xff\xfe", "\u7248\u672c".encode(), b'"1"\r\nX: y', b" \n")),
])  # fmt: skip
def test_part_of_another_version_is_downloaded_again(server, tmp_path, first, version, then):
    source, part = broken_off(server, tmp_path, ETag=first)
    if version is not None:
        part.with_name(f"{part.name}.version").write_bytes(version)
    server.answers["/f"] = [serve(OTHER, ETag=then)]
    fetch(source, tmp_path)
    assert arrived(tmp_path, OTHER)
    [(_, requested)] = server.asked
    assert bool(requested) == ((first, version) == ('"1"', None))


def test_part_that_is_a_folder_is_refused(server, tmp_path):
    source, part = broken_off(server, tmp_path)
    part.unlink()
    part.mkdir()
    with pytest.raises(UserError, match=f"^cannot write {part}: Is a directory"):
        download("Set", [source], tmp_path)


def test_part_is_not_continued_from_another_mirror(server, tmp_path):
    first = server.url("/first", serve(BODY, stop_at=HALF))
    second = server.url("/second", serve(OTHER[: len(BODY)]))  # of the same length, with the same ETag
    fetch(one_file(first, second), tmp_path)
    assert arrived(tmp_path, OTHER[: len(BODY)])


def test_download_continues_after_a_full_disk(server, tmp_path, disk_full_after):
    source = one_file(server.url("/f", serve(BODY)))
    with disk_full_after(2 * CHUNK), pytest.raises(UserError, match=r"^cannot write .*: File too large"):
        download("Set", [source], tmp_path)
    download("Set", [source], tmp_path)
    assert arrived(tmp_path) and server.asked[-1] == ("/f", f"bytes={2 * CHUNK}-")


def test_error_lists_the_reason_of_each_mirror(server, tmp_path, caplog):
    busy, gone = server.url("/busy", status(503)), server.url("/gone", before_silence(status(410)))
    silent, nobody = server.url("/silent", fall_silent), "http://127.0.0.1:9/f.bin"
    words = (
        rf"{busy}: too many 503 error responses; {gone}: 410 Client Error: Gone; {silent}: .*timed out.*; {nobody}: "
    )
    words += rf".*Connection refused.* save it as {tmp_path / 'f.bin'} by hand and run the same command again"
    refused(one_file(busy, gone, silent, nobody), tmp_path, words)
    assert [path for path, _ in server.asked] == ["/busy"] * 3 + ["/gone"] + ["/silent"] * 3
    assert any(r.getMessage().startswith(f"{gone}: 410") for r in caplog.records if r.levelno == logging.WARNING)
    assert names_in(tmp_path) == set()


def test_busy_server_is_asked_again(server, tmp_path):
    packed = gzip.compress(BODY)  # some servers call a file's compression an encoding
    busy = server.url("/busy", status(429), status(408), serve(packed, Content_Encoding="x-gzip"))
    fetch(one_file(server.url("/gone", status(410)), busy), tmp_path)
    assert arrived(tmp_path, packed)


# --- whole data sets


def test_one_failed_source_does_not_stop_others(server, tmp_path):
    split = Source("split.json", (server.url("/split", status(404)),))
    images = archive(server.url("/images", serve(pack("tar.gz", FILES))), unpack={"images": "images"})
    with pytest.raises(UserError, match=r"^OxfordPets is not complete: cannot download split\.json \(.*404 Client"):
        download("OxfordPets", (split, images), tmp_path)
    assert (tmp_path / "images").is_dir()
    server.answers["/images"] = [status(404)]
    rich = archive(
        server.url("/rich", serve(pack("zip", {**FILES, "set/split.json": b"{}"}))),
        unpack={**UNPACK, "split.json": "split.json"},
    )
    download("OxfordPets", (split, replace(images, otherwise=(rich,))), tmp_path / "rich")  # it came after all
    assert {"split.json", "images"} < names_in(tmp_path / "rich")


@pytest.mark.parametrize(("answer", "code", "words"), [
    (status(500), 2, r"(?m)^error: .*too many 500 error responses"),
    (serve(b"n01440764 tench\n"), 1, r"(?m)^ImageNet +not ready +missing images: "),
])  # fmt: skip
def test_command_shows_what_is_missing(server, tmp_path, monkeypatch, capsys, answer, code, words):
    names = one_file(server.url("/" + "n" * 60, answer), file="classnames.txt")
    monkeypatch.setitem(ENTRIES, "ImageNet", replace(ENTRIES["ImageNet"], sources=(names,)))
    assert main(["download", "imagenet", "--root", str(tmp_path)]) == code
    assert re.search(words, "".join(capsys.readouterr()))
    assert (tmp_path / "imagenet" / "classnames.txt").exists() == (code == 1)


def test_failed_data_set_does_not_stop_others(server, tmp_path, monkeypatch, capsys):
    for name, answer in (("DescribableTextures", status(404)), ("ImageNet", serve(b"n01440764 tench\n"))):
        source = one_file(server.url(f"/{name}", answer), file="classnames.txt")
        monkeypatch.setitem(ENTRIES, name, replace(ENTRIES[name], sources=(source,)))
    assert main(["download", "dtd", "imagenet", "--root", str(tmp_path)]) == 2
    assert "DescribableTextures is not complete: " in capsys.readouterr().err
    assert (tmp_path / "imagenet" / "classnames.txt").exists()


def test_sources_provide_images_and_split_files():
    for name, entry in stored_datasets().items():
        targets = [target for source in entry.sources for target in source.targets]
        needed = {"cars_train" if name == "StanfordCars" else entry.images, entry.split_file} - {""}
        needed |= {"classnames.txt"} if "imagenet" in entry.folder else set()
        assert needed - set(targets) == ({"images"} if entry.by_hand else set()), name
        assert len(targets) == len(set(targets)), name
        for source in [source for first in entry.sources for source in (first, *first.otherwise)]:
            assert source.urls and all(re.fullmatch(r"https://[\w./~=?-]+", url) for url in source.urls), name
            assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", source.checksum), name
            assert all(set(source.targets) <= set(other.targets) for other in source.otherwise), name


# --- Google Drive, by the real gdown


def test_google_drive_download_continues(server, tmp_path, monkeypatch):
    request = requests.Session.request

    def local(self, method, url, *arguments, **options):  # the address is fixed in gdown, but not the request's
        here = f"http://127.0.0.1:{server.server_address[1]}"
        return request(self, method, url.replace("https://drive.google.com", here), *arguments, **options)

    monkeypatch.setattr(requests.Session, "request", local)
    import gdown  # noqa: F401

    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies.txt"))
    monkeypatch.setattr(module, "RETRIES", 0)
    monkeypatch.setattr(module, "TIMEOUTS", (60, 2))
    big, name = BODY * 8, {"Content_Disposition": 'attachment; filename="on drive.bin"'}  # several of gdown's chunks
    source = one_file("https://drive.google.com/uc?id=1AbCdEfGhIjKlMnOpQrStUvWxYz012345", checksum=sum_of(big))
    server.url("/uc", serve(big, stop_at=len(big) // 2, stall=True, **name))
    folder = tmp_path / "set"
    folder.mkdir()
    refused(source, folder, "gdown: .*timed out")
    (part,) = folder.iterdir()
    size = part.stat().st_size
    assert 0 < size <= len(big) // 2
    server.answers["/uc"] = [serve(big, **name)]
    fetch(source, folder)
    assert arrived(folder, big) and server.asked[-1] == ("/uc", f"bytes={size}-")
    page = b'<html><p class="uc-error-subcaption">Too many users have viewed this file recently.</p></html>'
    server.url("/uc", serve(page, Content_Type="text/html; charset=utf-8"))
    refused(replace(source, file="g.bin"), folder, "012345: gdown: .*Too many users have viewed")


# --- archives


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archive_is_unpacked_and_removed(server, tmp_path, kind):
    (tmp_path / "kept" / "images").mkdir(parents=True)
    (tmp_path / "kept" / "images/mine.jpg").write_bytes(b"mine")
    source = served(server, pack(kind, FILES))
    download("Set", [source], tmp_path / "new")
    assert (names_in(tmp_path / "new"), (tmp_path / "new" / "images/b/2.jpg").read_bytes()) == (UNPACKED, BODY)
    assert (tmp_path / "new" / "names.txt").read_bytes() == b"l"
    fetch(source, tmp_path / "kept")  # an existing target is unchanged, and the missing one is added
    assert names_in(tmp_path / "kept") == {"images", "images/mine.jpg", "names.txt"}
    server.asked.clear()
    download("Set", [source], tmp_path / "kept")
    assert server.asked == []


def test_dangling_target_is_refused(server, tmp_path):
    link = tmp_path / "images"
    link.symlink_to(tmp_path / "unmounted" / "images")
    source = served(server, pack("zip", FILES))
    with pytest.raises(UserError, match=rf"{link} is a link to {tmp_path}/unmounted/images, which does not exist; "):
        download("Set", [source], tmp_path)
    assert link.is_symlink() and server.asked == []
    rich = archive(server.url("/rich", serve(pack("zip", FILES))), file="rich", unpack={**UNPACK, "other.txt": "o"})
    fetch(replace(source, unpack={"labels.txt": "names.txt"}, otherwise=(rich,), urls=()), tmp_path)
    assert link.is_symlink() and names_in(tmp_path) == {"images", "names.txt", "o"}


def test_member_nearest_to_the_root_is_used(server, tmp_path):
    files = {"a/b/images/1.jpg": b"1", "a/b/images/images/2.jpg": b"2", "__MACOSX/images/3.jpg": b"3"}
    fetch(served(server, pack("zip", files), unpack={"images": "deep/x"}), tmp_path)
    assert names_in(tmp_path / "deep/x") == {"1.jpg", "images", "images/2.jpg"}
    two = served(server, pack("zip", {"a/images/1.jpg": b"1", "b/images/1.jpg": b"2"}), unpack={"images": "y"})
    refused(two, tmp_path, "contains two images: a/images and b/images")


def test_inner_archive_is_unpacked(server, tmp_path):
    inner = pack("tar.gz", {"101/a/1.jpg": b"1"})
    outer = pack("zip", {"caltech/101.tar.gz": inner, "caltech/more.txt": b"m", "__MACOSX/caltech/101.tar.gz": b"x"})
    url = server.url("/x", serve(outer))
    fetch(archive(url, unpack={"101": "images"}, inner="101.tar.gz"), tmp_path)
    assert names_in(tmp_path) == {"images", "images/a", "images/a/1.jpg"}
    refused(archive(url, unpack={"101": "more"}, inner="102.tar.gz"), tmp_path, r"does not contain 102\.tar\.gz")
    plain = pack("tar", {"names/a.txt": b"a", "names/b.zip": pack("zip", {"names/c.txt": b"c"})})
    fetch(served(server, plain, unpack={"names": "names"}), tmp_path)  # which is no zip, though it ends with one
    assert names_in(tmp_path / "names") == {"a.txt", "b.zip"}


def test_local_archive_is_checked_and_used(server, tmp_path):
    body = pack("zip", FILES)
    source = served(server, body, checksum=sum_of(body))
    (tmp_path / "x.archive").write_bytes(BODY)
    refused(source, tmp_path, r"x\.archive is unusable: expected the sha256 checksum .* delete it and run")
    assert names_in(tmp_path) == {"x.archive"}
    (tmp_path / "x.archive").write_bytes(body)
    fetch(source, tmp_path)
    assert (names_in(tmp_path), server.asked) == (UNPACKED, [])


def test_full_disk_while_unpacking_leaves_no_target(server, tmp_path, disk_full_after):
    (tmp_path / "images").mkdir()  # an empty one does not count as unpacked
    source = served(server, pack("zip", {**FILES, "set/images/big.jpg": bytes(1_000_000)}))
    with disk_full_after(500_000), pytest.raises(OSError, match="File too large"):
        fetch(source, tmp_path)
    assert names_in(tmp_path) == {"x.archive", "images"}
    server.asked.clear()
    make(tmp_path, ".x.archive.unpacking/outer/stale.jpg")  # left by a killed process
    fetch(source, tmp_path)
    assert (names_in(tmp_path), server.asked) == ({*UNPACKED, "images/big.jpg"}, [])


@pytest.mark.parametrize("remains", [
    ["images/1.jpg", "names.txt", "x.archive", ".x.archive.unpacking/outer/set/other.txt"],
    ["images/1.jpg", "names.txt", ".x.archive.unpacking/outer/set/other.txt"],
    ["images/1.jpg", "x.archive", ".x.archive.unpacking/outer/set/labels.txt"],
    ["x.archive", "x.archive.0123456789abcdef.part.version"],
    ["images/1.jpg", "names.txt", "x.archive.0123456789abcdef.part.version"],
    ["x.archive.0123456789abcdef.part", "x.archive.0123456789abcdef.part.version"],
    ["images/1.jpg", "names.txt", "x.archive"],  # a file of the user, which stays
])  # fmt: skip
def test_download_removes_files_of_killed_downloads(server, tmp_path, remains):
    make(tmp_path, *remains)
    mine = remains[2:] == ["x.archive"]
    if "x.archive" in remains and not mine:
        (tmp_path / "x.archive").write_bytes(pack("zip", FILES))
    fetch(served(server, pack("zip", FILES)), tmp_path)
    whole = {"images/1.jpg", "images", "names.txt"} if "images/1.jpg" in remains else UNPACKED
    assert names_in(tmp_path) == whole | ({"x.archive"} if mine else set())


def test_archive_without_required_members_is_replaced(server, tmp_path):
    url = server.url("/x", serve(pack("zip", {"set/pictures/1.jpg": b"1"})))
    rich = {**UNPACK, "other.txt": "other.txt", "absent.txt": "absent.txt"}  # has further files
    other = archive(server.url("/other", serve(pack("tar", FILES))), file="other.tar", unpack=rich)
    refused(archive(url), tmp_path, r"x\.archive does not contain images")
    assert names_in(tmp_path) == set()
    fetch(archive(url, otherwise=(other,)), tmp_path)
    assert names_in(tmp_path) == {*UNPACKED, "other.txt"}


GZ, A, SYM, LNK = pack("tar.gz", FILES), ("images/a", b"a"), tarfile.SYMTYPE, tarfile.LNKTYPE


# Names of tests must not contain zip files, which contain the time: it differs between the processes of pytest-xdist
UNUSABLE = {
    "no archive": BODY,
    "damaged zip": pack("zip", FILES).replace(BODY[HALF : HALF + 8], bytes(8)),  # stored uncompressed
    "short tar.gz": GZ[:-100],
    "checksum": GZ[:-8] + bytes(4) + GZ[-4:],
    "outside": tar_with(A, ("images/../../../escaped", b"x")),
    "symbolic link": tar_with(A, ("images/inside", b"", SYM, "a")),
    "hard link": tar_with(A, ("images/hard", b"", LNK, "../escaped")),
    "file as folder, tar": tar_with(A, ("images/a/1.jpg", b"a")),
    "file as folder, zip": pack("zip", {"images/a": b"a", "images/a/1.jpg": b"a"}),
    "folder as file": pack("zip", {"images/a/1.jpg": b"a", "images/a": b"a"}),
    "long name": pack("zip", {f"images/{'a' * 300}": b"a"}),
}


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE)
def test_damaged_or_unsafe_archive_is_replaced(server, tmp_path, body):
    folder = tmp_path / "root" / "set"
    folder.mkdir(parents=True)
    odd = dict.fromkeys(("/escaped", "C:/escaped", "images\\..\\..\\escaped", "../../../escaped"), b"x")
    bad, whole = server.url("/bad", serve(body)), server.url("/whole", serve(pack("zip", {**FILES, **odd})))
    source = archive(bad, unpack={"images": "images"})
    refused(source, folder, "the archive is damaged or unsafe")
    assert names_in(tmp_path) == {"root", "root/set"}
    fetch(replace(source, urls=(bad, whole)), folder)  # all members are written inside the folder
    assert names_in(tmp_path / "root") == {"set"} | {f"set/{name}" for name in UNPACKED - {"names.txt"}}
    assert not Path("/escaped").exists()


def test_python_without_safe_unpacking_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    refused(served(server, pack("tar.gz", FILES)), tmp_path, "cannot unpack it safely; use 3.10.12")
    assert names_in(tmp_path) == {"x.archive"}
