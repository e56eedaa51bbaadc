"""The downloader, against a HTTP server that stalls, breaks off, lies and changes its mind; and Google Drive."""

from __future__ import annotations

import gzip
import logging
import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
import requests
from file_server import (
    BODY,
    FILES,
    HALF,
    OTHER,
    PAGE,
    UNPACK,
    UNPACKED,
    Answer,
    Handler,
    Server,
    archive,
    names_in,
    one_file,
    pack,
    serve,
    status,
    sum_of,
)

from trainers.hegraph.datasets import web
from trainers.hegraph.datasets.__main__ import main
from trainers.hegraph.datasets.download import Unreachable, download, fetch
from trainers.hegraph.datasets.entry import Member, Source
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.datasets.web import CHUNK
from trainers.hegraph.utils.errors import MAX_MESSAGE, UserError

DRIVE_ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"
DRIVE_PAGE = f"https://drive.google.com/file/d/{DRIVE_ID}/view"


def arrived(folder: Path, body: bytes = BODY) -> bool:
    """Whether the file is there, and nothing else."""
    return names_in(folder) == {"f.bin"} and (folder / "f.bin").read_bytes() == body


def chunked(body: bytes) -> Answer:
    """Announces no length."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Transfer_Encoding="chunked")
        for start in range(0, len(body), 70_000):
            piece = body[start : start + 70_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def without_if_range(answer: Answer) -> Answer:
    def ignoring(handler: Handler) -> None:
        del handler.headers["If-Range"]
        answer(handler)

    return ignoring


# --- transfers


@pytest.mark.parametrize(
    "known", [{}, {"size": len(BODY)}, {"checksum": sum_of(BODY)}, {"checksum": sum_of(BODY, "md5")}]
)
def test_a_file_arrives_whole_and_leaves_nothing_else(server, tmp_path, known):
    fetch(one_file(server.url("/f", serve(BODY)), **known), tmp_path)
    assert arrived(tmp_path)


def test_a_file_without_an_announced_length_is_compared_with_the_known_one(server, tmp_path):
    url = server.url("/f", chunked(BODY[:HALF]), chunked(BODY))  # too short: another try may help
    fetch(one_file(url, size=len(BODY)), tmp_path)
    assert arrived(tmp_path)
    with pytest.raises(Unreachable, match=r"it has 300,000 bytes where 100,000 are expected"):
        fetch(one_file(url, file="g.bin", size=100_000), tmp_path)
    assert arrived(tmp_path)


@pytest.mark.parametrize("stall", [False, True], ids=["the connection ends", "the server falls silent"])
def test_a_transfer_that_breaks_goes_on_where_it_broke_off(server, tmp_path, stall):
    first, *further = range(2 * CHUNK, len(BODY), CHUNK)
    assert 1 + len(further) > web.RETRIES  # which count tries without progress
    breaks = [serve(BODY, stop_at=first, stall=stall), *(serve(BODY, stop_at=at) for at in further)]
    fetch(one_file(server.url("/f", *breaks, serve(BODY))), tmp_path)
    assert arrived(tmp_path)
    assert server.endured == []
    begin, second, *_ = server.asked
    assert begin[1:] == (None, None)
    assert CHUNK <= int(re.fullmatch(r"bytes=(\d+)-", second[1])[1]) <= 2 * CHUNK
    assert second[2] == '"1"'


def broken_off(server: Server, folder: Path, **how: object) -> tuple[Source, bytes]:
    """The source of a transfer that broke off half-way in an earlier call, and what that left."""
    url = server.url("/f", serve(BODY, stop_at=HALF, **how))
    with pytest.raises(Unreachable, match="gave up after 2 more tries"):
        fetch(one_file(url), folder)
    left = (folder / "f.bin.part").read_bytes()
    assert len(left) >= HALF - CHUNK and BODY.startswith(left)
    server.asked.clear()
    return one_file(url), left


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("how", "validator"), [({}, '"1"'), ({"etag": None, "modified": DATE}, DATE)], ids=["ETag", "Last-Modified"]
)
def test_the_next_call_asks_only_for_the_rest(server, tmp_path, how, validator):
    source, left = broken_off(server, tmp_path, **how)
    server.answers["/f"] = [serve(BODY, **how)]
    fetch(source, tmp_path)
    assert arrived(tmp_path)
    assert server.asked == [("/f", f"bytes={len(left)}-", validator)]


@pytest.mark.parametrize(
    ("answer", "asks_for_all"),
    [
        (serve(OTHER, etag='"2"'), False),
        (serve(OTHER, ranges=False), False),
        (without_if_range(serve(OTHER[: len(BODY)], etag='"2"')), True),
        (without_if_range(serve(OTHER, etag=None)), True),
        (without_if_range(serve(OTHER[:1000])), True),
        (lambda handler: handler.begin(206, Content_Range="bytes 0-9/300000", Content_Length=0, ETag='"1"'), True),
        (lambda handler: handler.begin(206, Content_Length=0, ETag='"1"'), True),
    ],
    ids=["changed", "no ranges", "another ETag", "another length", "shorter", "another part", "no position"],
)
def test_a_file_that_is_another_one_by_now_is_fetched_anew(server, tmp_path, answer, asks_for_all):
    source, _ = broken_off(server, tmp_path)
    server.answers["/f"] = [answer, serve(OTHER, etag='"2"')]
    fetch(source, tmp_path)
    assert (tmp_path / "f.bin").read_bytes() == OTHER
    assert len(server.ranges) == 1 + asks_for_all
    assert not asks_for_all or server.ranges[1] is None


@pytest.mark.parametrize("etag", [None, 'W/"1"'], ids=["none", "weak"])
def test_without_a_strong_validator_nothing_is_appended(server, tmp_path, etag):
    source, _ = broken_off(server, tmp_path, etag=etag)
    server.answers["/f"] = [serve(OTHER, etag=etag)]
    fetch(source, tmp_path)
    assert arrived(tmp_path, OTHER)
    assert server.ranges == [None]


def test_the_part_of_one_mirror_is_not_continued_from_another(server, tmp_path):
    first = server.url("/first", serve(BODY, stop_at=HALF))
    second = server.url("/second", serve(OTHER[: len(BODY)]))  # of the same length, with the same ETag
    fetch(one_file(first, second), tmp_path)
    assert arrived(tmp_path, OTHER[: len(BODY)])
    assert server.asked[-1] == ("/second", None, None)


def test_a_damaged_note_beside_a_part_means_from_the_beginning(server, tmp_path):
    source, _ = broken_off(server, tmp_path)
    (tmp_path / "f.bin.part.json").write_text("{")
    server.answers["/f"] = [serve(BODY)]
    fetch(source, tmp_path)
    assert arrived(tmp_path)
    assert server.ranges == [None]


def test_a_part_that_is_complete_is_checked_without_asking_again(server, tmp_path):
    source, _ = broken_off(server, tmp_path)
    (tmp_path / "f.bin.part").write_bytes(BODY)
    fetch(replace(source, checksum=sum_of(BODY)), tmp_path)
    assert arrived(tmp_path)
    assert server.asked == []


def test_what_a_killed_process_left_goes_once_the_file_is_there(server, tmp_path):
    source, _ = broken_off(server, tmp_path)
    (tmp_path / "f.bin").write_bytes(BODY)  # by hand
    (tmp_path / ".f.bin.unpacking").mkdir()
    fetch(source, tmp_path)
    assert arrived(tmp_path)
    assert server.asked == []


# --- mirrors


def test_the_next_mirror_has_its_turn_after_a_404_and_the_reason_is_logged(server, tmp_path, caplog):
    first, second = server.url("/first", status(404)), server.url("/second", status(503), status(429), serve(BODY))
    with caplog.at_level(logging.WARNING):
        fetch(one_file(first, second), tmp_path)
    assert arrived(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [f"{first}: HTTP 404 Not Found"]
    assert len(server.asked) == 4  # a 404 is not tried again, a busy server is


def test_pauses_between_tries_grow_up_to_a_minute(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(web, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(web, "RETRIES", 4)
    monkeypatch.setattr(web, "PAUSE", 25)
    with pytest.raises(Unreachable):
        fetch(one_file(server.url("/f", status(500))), tmp_path)
    assert pauses == [25, 50, 60, 60]
    assert len(server.asked) == 5


def test_when_all_mirrors_fail_one_error_says_why_for_each_and_what_to_do_by_hand(server, tmp_path):
    busy, gone = server.url("/busy", status(503)), server.url("/gone", status(410))
    nobody = "http://127.0.0.1:9/f.bin"
    with pytest.raises(Unreachable) as error:
        fetch(one_file(busy, gone, nobody), tmp_path)
    message = str(error.value)
    assert f"{busy}: HTTP 503 Service Unavailable (gave up after 2 more tries); {gone}: HTTP 410 Gone; " in message
    assert re.search(rf"{nobody}: \[Errno \d+\] Connection refused", message)
    assert message.endswith(f"open {busy}, save it as {tmp_path / 'f.bin'} and run the same command again")
    assert names_in(tmp_path) == set()


def test_a_server_that_never_answers_is_left_after_the_timeout(server, tmp_path):
    with pytest.raises(Unreachable, match=r"no answer within 0\.4 s"):
        fetch(one_file(server.url("/f", lambda handler: handler.fall_silent())), tmp_path)
    assert len(server.asked) == 3
    assert server.endured == []


@pytest.mark.parametrize("known", [{"checksum": sum_of(BODY)}, {"checksum": sum_of(BODY, "md5")}, {"size": len(BODY)}])
def test_a_file_that_is_not_the_expected_one_is_removed_and_the_next_mirror_has_its_turn(server, tmp_path, known):
    wrong, right = server.url("/wrong", serve(OTHER)), server.url("/right", serve(BODY))
    fetch(one_file(wrong, right, **known), tmp_path)
    assert arrived(tmp_path)
    with pytest.raises(Unreachable, match=r"its (sha256|md5) sum is|it has 350,000 bytes where 300,000 are expected"):
        fetch(one_file(wrong, file="g.bin", **known), tmp_path)
    assert arrived(tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_announces_more_than_it_has_is_given_up(server, tmp_path, ranges):
    url = server.url("/f", serve(BODY, announce=len(OTHER), ranges=ranges))
    with pytest.raises(Unreachable, match=r"the connection broke off|not the part"):
        fetch(one_file(url), tmp_path)
    assert not (tmp_path / "f.bin").exists()


@pytest.mark.parametrize(
    ("page", "content_type"), [(b"Quota exceeded", "text/html; charset=utf-8"), (PAGE, "application/octet-stream")]
)
def test_a_web_page_is_recognised_and_costs_nothing_that_came_before(server, tmp_path, page, content_type):
    source, before = broken_off(server, tmp_path)
    server.answers["/f"] = [serve(page, content_type=content_type, etag='"page"')]
    with pytest.raises(Unreachable, match="it sent a web page instead of the file"):
        fetch(source, tmp_path)
    assert (tmp_path / "f.bin.part").read_bytes() == before


def test_an_empty_file_is_no_file(server, tmp_path):
    with pytest.raises(Unreachable, match="it is empty"):
        fetch(one_file(server.url("/f", serve(b""))), tmp_path)
    assert names_in(tmp_path) == set()


def test_the_bytes_on_disk_are_the_files_own_even_if_the_server_calls_its_compression_an_encoding(server, tmp_path):
    packed = gzip.compress(BODY)
    url = server.url("/f", serve(packed, Content_Encoding="x-gzip"))
    fetch(one_file(url, file="f.tar.gz", checksum=sum_of(packed)), tmp_path)
    assert (tmp_path / "f.tar.gz").read_bytes() == packed
    with pytest.raises(Unreachable, match="encoded as x-gzip"):
        fetch(one_file(url, file="f.json"), tmp_path)


# --- the disk


def test_what_is_in_place_is_not_asked_for(server, tmp_path):
    (tmp_path / "f.bin").write_bytes(b"mine")
    fetch(one_file(server.url("/f", serve(BODY)), checksum=sum_of(BODY)), tmp_path)
    assert arrived(tmp_path, b"mine")
    assert server.asked == []


def test_a_target_that_is_a_link_to_nothing_is_an_error(server, tmp_path):
    (tmp_path / "f.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"f\.bin is a link to nothing"):
        fetch(one_file(server.url("/f", serve(BODY))), tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_room_is_asked_for_before_the_transfer(server, tmp_path):
    url = server.url("/f", serve(BODY, announce=10**18, stop_at=0, stall=True))
    with pytest.raises(UserError, match=r"has no room: 888PB more are needed and .+B are free") as error:
        fetch(one_file(url), tmp_path)
    assert not isinstance(error.value, Unreachable)  # the next mirror would not help
    assert names_in(tmp_path) == set()


def test_a_full_disk_is_an_error_and_the_next_call_goes_on(server, tmp_path, disk_full_after):
    source = one_file(server.url("/f", serve(BODY)))
    with disk_full_after(2 * CHUNK), pytest.raises(UserError, match=r"cannot write .*f\.bin\.part: File too large"):
        fetch(source, tmp_path)
    fetch(source, tmp_path)
    assert arrived(tmp_path)
    assert server.ranges == [None, f"bytes={2 * CHUNK}-"]


# --- whole data sets


def set_sources(monkeypatch: pytest.MonkeyPatch, name: str, *sources: Source) -> None:
    monkeypatch.setitem(ENTRIES, name, replace(ENTRIES[name], sources=sources))


def pets(server: Server, *, split: Answer, images: Answer) -> tuple[Source, Source]:
    return (
        Source("split.json", (server.url("/split", split),)),
        Source("images.tar.gz", (server.url("/images", images),), unpack=(Member("images", "images"),)),
    )


def test_a_data_set_is_fetched_into_its_folder_and_a_second_call_asks_nothing(server, tmp_path, monkeypatch):
    set_sources(monkeypatch, "OxfordPets", *pets(server, split=serve(b"{}"), images=serve(pack("tar.gz", FILES))))
    download("OxfordPets", tmp_path)
    assert names_in(tmp_path / "oxford_pets") == {"split.json", *UNPACKED} - {"names.txt"}
    server.asked.clear()
    download("OxfordPets", str(tmp_path))
    assert server.asked == []


def test_what_can_be_fetched_is_there_even_if_something_else_cannot(server, tmp_path, monkeypatch):
    set_sources(monkeypatch, "OxfordPets", *pets(server, split=status(404), images=serve(pack("tar.gz", FILES))))
    with pytest.raises(UserError, match=r"^OxfordPets is not complete: cannot fetch split\.json \(.*HTTP 404"):
        download("OxfordPets", tmp_path)
    assert (tmp_path / "oxford_pets" / "images").is_dir()


def test_what_failed_and_then_came_with_another_archive_is_no_error(server, tmp_path, monkeypatch):
    split, images = pets(server, split=status(404), images=status(404))
    body = pack("zip", {**FILES, "set/split.json": b"{}"})
    rich = archive(server.url("/rich", serve(body)), unpack=(*UNPACK, Member("split.json", "split.json")))
    set_sources(monkeypatch, "OxfordPets", split, replace(images, otherwise=(rich,)))
    download("OxfordPets", tmp_path)
    assert {"split.json", "images"} < names_in(tmp_path / "oxford_pets")


def test_a_second_download_into_one_folder_is_refused(server, tmp_path, monkeypatch):
    def second(handler: Handler) -> None:
        with pytest.raises(UserError, match=r"another process is downloading into .*oxford_pets; wait for it"):
            download("OxfordPets", tmp_path)
        serve(BODY)(handler)

    set_sources(monkeypatch, "OxfordPets", one_file(server.url("/f", second)))
    download("OxfordPets", tmp_path)
    assert arrived(tmp_path / "oxford_pets")


def test_an_unknown_data_set_is_an_error_that_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="unknown data set to download 'OxfordPet'; did you mean 'OxfordPets'"):
        download("OxfordPet", tmp_path)


def test_what_is_still_missing_after_a_download_is_told_with_exit_code_1(server, tmp_path, monkeypatch, caplog, capsys):
    names = one_file(server.url("/names", serve(b"n01440764 tench\n")), file="classnames.txt")
    set_sources(monkeypatch, "ImageNet", names)
    assert main(["download", "imagenet", "--root", str(tmp_path)]) == 1
    assert (tmp_path / "imagenet" / "classnames.txt").exists()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0].endswith("imagenet/images is missing and cannot be fetched")
    assert warnings[1].startswith("ImageNet's images need a licence")
    assert len(warnings[1]) <= MAX_MESSAGE  # a longer one would lose its middle
    assert re.match(r"ImageNet +not ready +missing: the images", capsys.readouterr().out)


# --- the mirrors of the registry

STORED = stored_datasets()
EVERY = [
    (name, source) for name, entry in STORED.items() for first in entry.sources for source in (first, *first.otherwise)
]


@pytest.mark.parametrize("name", STORED)
def test_the_sources_of_a_data_set_bring_its_images_and_its_split(name):
    entry = STORED[name]
    targets = [target for source in entry.sources for target in source.targets]
    needed = {entry.images or "cars_train", *([entry.split_file] if entry.split_file else [])}
    if "imagenet" in entry.folder:
        needed.add("classnames.txt")
    if entry.by_hand:
        targets.append(entry.by_hand.target)
    assert needed <= set(targets)
    assert len(targets) == len(set(targets))
    files = [source.file for owner, source in EVERY if owner == name]
    assert len(files) == len(set(files))  # each is found again by its name


def test_every_source_is_well_formed_and_pinned_or_checked():
    for name, source in EVERY:
        assert source.urls
        for url in source.urls:
            assert re.fullmatch(r"gdrive:[\w-]{25,44}|https://[\w.-]+\.[a-z]+/[\w.~/-]+[\w]", url), url
            assert "/main/" not in url or source.checksum or name == "ImageNetSketch"  # whose commit is not known
        assert source.size is None or source.size > 0
        assert source.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", source.checksum)
        assert source.unpack or not (source.inner or source.otherwise)
        for path in (source.file, source.inner, *source.targets, *(member.path for member in source.unpack)):
            assert not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
        assert "/" not in source.file
        for other in source.otherwise:
            assert set(source.targets) <= set(other.targets)


def test_the_sums_of_the_split_files_are_those_of_the_real_files(shared):
    known = {source.file: source for _, source in EVERY}
    for path in (shared / "data" / "splits").iterdir():
        source = known[path.name]
        assert (source.size, source.checksum) == (path.stat().st_size, sum_of(path.read_bytes())), path.name


# --- Google Drive, by the real gdown


@pytest.fixture
def drive(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server in place of drive.google.com. The address is fixed in gdown, so only the request's is replaced."""
    request = requests.Session.request

    def local(self, method, url, *arguments, **options):
        here = f"http://127.0.0.1:{server.server_address[1]}"
        return request(self, method, url.replace("https://drive.google.com", here), *arguments, **options)

    monkeypatch.setattr(requests.Session, "request", local)
    import gdown  # noqa: F401

    cookies = tmp_path_factory.mktemp("cookies") / "cookies.txt"
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(cookies))
    return server


def attached(body: bytes, **how: object) -> Answer:
    """As Google Drive sends a file."""
    return serve(body, Content_Disposition='attachment; filename="on drive.bin"', **how)


def test_a_file_comes_from_google_drive_and_goes_on_where_it_broke_off(drive, tmp_path, monkeypatch):
    big = BODY * 8  # several of gdown's chunks
    source = one_file(f"gdrive:{DRIVE_ID}", checksum=sum_of(big))
    drive.url("/uc", attached(big, stop_at=len(big) // 2, stall=True))
    monkeypatch.setattr(web, "RETRIES", 0)
    with pytest.raises(Unreachable, match=r"gdown: no answer within 0\.4 s"):
        fetch(source, tmp_path)
    (part,) = tmp_path.iterdir()
    size = part.stat().st_size
    assert 0 < size <= len(big) // 2
    drive.answers["/uc"] = [attached(big)]
    fetch(source, tmp_path)
    assert arrived(tmp_path, big)
    assert drive.ranges[-1] == f"bytes={size}-"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "f.bin").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(("body", "said"), [(OTHER, "its sha256 sum is"), (PAGE, "it sent a web page instead")])
def test_what_is_not_the_file_is_removed(drive, tmp_path, body, said):
    drive.url("/uc", attached(body))
    with pytest.raises(Unreachable, match=said):
        fetch(one_file(f"gdrive:{DRIVE_ID}", checksum=sum_of(BODY)), tmp_path)
    assert names_in(tmp_path) == set()


def test_the_quota_page_is_a_reason_in_one_line_and_the_next_mirror_has_its_turn(drive, tmp_path, caplog):
    page = '<html><p class="uc-error-subcaption">Too many users have viewed this file recently.</p></html>'
    drive.url("/uc", serve(page.encode(), content_type="text/html; charset=utf-8"))
    fetch(one_file(f"gdrive:{DRIVE_ID}", drive.url("/f", serve(BODY))), tmp_path)
    assert arrived(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [f"{DRIVE_PAGE}: gdown: Too many users have viewed this file recently."]


def test_room_is_asked_for_before_a_transfer_from_google_drive(drive, tmp_path, monkeypatch):
    drive.url("/uc", attached(BODY * 8, announce=10**18, stall=True))
    with pytest.raises(UserError, match="has no room"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path)


def test_a_google_drive_that_cannot_be_reached_and_a_gdown_that_could_hang_are_told(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(Unreachable, match=rf"cannot fetch f\.bin \({DRIVE_PAGE}: gdown: .*Connection refused\)"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path)
    import gdown

    monkeypatch.setattr(gdown, "download", lambda id, output, quiet, resume: None)  # as in gdown 5
    with pytest.raises(Unreachable, match=r"would wait for ever on a stalled server: pip install 'gdown>=6\.3'"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path)
