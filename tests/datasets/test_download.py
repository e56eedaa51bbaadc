"""The downloader, against a HTTP server that stalls, breaks off, lies and changes its mind, and hostile archives."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import os
import random
import re
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pytest
import requests

from trainers.hegraph.datasets.fetch import archives
from trainers.hegraph.datasets.fetch.download import download, fetch
from trainers.hegraph.datasets.fetch.failures import Unreachable
from trainers.hegraph.datasets.fetch.parts import Patience
from trainers.hegraph.datasets.fetch.sources import Member, Source
from trainers.hegraph.datasets.fetch.web import CHUNK
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(350_000)
HALF = len(BODY) // 2
BIG = random.Random(2).randbytes(2_000_000)  # several of gdown's chunks
HASTY = Patience(timeout=0.4, retries=2, pause=0.01)
DRIVE_ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.headers.get("Range"), self.headers.get("If-Range")))
        answers = self.server.answers.get(path, [status(404)])
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client went away, as some tests want
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *arguments):
        pass

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.released = threading.Event()  # ends what stalls

    def url(self, path: str, *answers: Answer) -> str:
        """An address that gives these answers one after the other, the last for ever."""
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.asked]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def serve(
    body: bytes,
    *,
    ranges: bool = True,
    etag: str | None = '"1"',
    modified: str | None = None,
    stop_at: int | None = None,
    stall: bool = False,
    announce: int | None = None,
    content_type: str = "application/octet-stream",
    **headers: str,
) -> Answer:
    """Answers with `body`, or with the part of it that a Range asks for if If-Range fits.

    Args:
        body: The file.
        ranges: False: Range is ignored.
        etag: None: none is sent.
        modified: Last-Modified.
        stop_at: The position in the file at which the connection ends.
        stall: It does not end there, it falls silent.
        announce: A length that is not the real one.
        content_type: Content-Type.
        headers: Further ones.
    """

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        valid = handler.headers.get("If-Range") in (None, etag, modified)
        start = int(asked[1]) if asked and ranges and valid else 0
        if start > len(body):
            return handler.begin(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
        sent = {**headers, "Content_Type": content_type, "Content_Length": announce or len(body) - start}
        sent.update({"ETag": etag} if etag else {})
        sent.update({"Last_Modified": modified} if modified else {})
        if start:
            sent["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.begin(206 if start else 200, **sent)
        handler.wfile.write(body[start : len(body) if stop_at is None else max(start, stop_at)])
        if stall:
            handler.wfile.flush()
            handler.server.released.wait(20)
        return None

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0)


def one_file(*urls: str, file: str = "f.bin", **known: object) -> Source:
    return Source(file, urls, **known)


def sum_of(body: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- transfers


@pytest.mark.parametrize(
    "known", [{}, {"size": len(BODY)}, {"checksum": sum_of(BODY)}, {"checksum": sum_of(BODY, "md5")}]
)
def test_a_file_arrives_whole_and_leaves_nothing_else(server, tmp_path, known):
    fetch(one_file(server.url("/f", serve(BODY)), **known), tmp_path / "new" / "folder", HASTY)
    assert (tmp_path / "new" / "folder" / "f.bin").read_bytes() == BODY
    assert names_in(tmp_path / "new" / "folder") == {"f.bin"}


def chunked(body: bytes) -> Answer:
    """Announces no length."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Transfer_Encoding="chunked")
        for start in range(0, len(body), 70_000):
            piece = body[start : start + 70_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def test_a_file_without_an_announced_length_arrives_whole(server, tmp_path):
    fetch(one_file(server.url("/f", chunked(BODY))), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_a_file_without_an_announced_length_is_compared_with_the_known_one(server, tmp_path):
    url = server.url("/f", chunked(BODY[:HALF]), chunked(BODY))  # too short: another try may help
    fetch(one_file(url, size=len(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    with pytest.raises(Unreachable, match=r"it has 300,000 bytes where 100,000 are expected"):
        fetch(one_file(url, file="g.bin", size=100_000), tmp_path, HASTY)
    assert names_in(tmp_path) == {"f.bin"}


@pytest.mark.parametrize("stall", [False, True], ids=["the connection ends", "the server falls silent"])
def test_a_transfer_that_breaks_goes_on_where_it_broke_off(server, tmp_path, stall):
    url = server.url("/f", serve(BODY, stop_at=HALF, stall=stall), serve(BODY))
    start = time.monotonic()
    fetch(one_file(url, checksum=sum_of(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert time.monotonic() - start < 5
    first, second = server.asked
    assert first[1:] == (None, None)
    at = int(re.fullmatch(r"bytes=(\d+)-", second[1])[1])
    assert HALF - CHUNK <= at <= HALF
    assert second[2] == '"1"'


def test_many_breaks_with_progress_in_between_are_more_than_the_retries_allow_without(server, tmp_path):
    breaks = [serve(BODY, stop_at=at) for at in range(CHUNK, len(BODY), CHUNK)]
    assert len(breaks) > HASTY.retries
    fetch(one_file(server.url("/f", *breaks, serve(BODY))), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_a_server_that_always_breaks_off_at_one_place_is_given_up_and_the_next_call_goes_on(server, tmp_path):
    url = server.url("/f", serve(BODY, stop_at=HALF))
    with pytest.raises(Unreachable, match=r"gave up after 2 more tries"):
        fetch(one_file(url), tmp_path, HASTY)
    kept = (tmp_path / "f.bin.part").read_bytes()
    assert len(kept) >= HALF - CHUNK and BODY.startswith(kept)
    server.answers["/f"] = [serve(BODY)]
    server.asked.clear()
    fetch(one_file(url), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.ranges == [f"bytes={len(kept)}-"]
    assert names_in(tmp_path) == {"f.bin"}


def test_a_killed_process_leaves_a_part_and_the_next_asks_only_for_the_rest(server, tmp_path):
    url = server.url("/f", serve(BODY, stop_at=HALF, stall=True), serve(BODY))
    code = (
        "import sys; from pathlib import Path; from trainers.hegraph.datasets.fetch.download import *\n"
        "fetch(Source('f.bin', (sys.argv[1],)), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)], cwd=ROOT)
    part = tmp_path / "f.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= HALF - CHUNK):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    rest_is_asked_for(server, url, tmp_path)


def test_an_interruption_from_the_keyboard_leaves_a_part_and_the_next_call_asks_only_for_the_rest(server, tmp_path):
    def interrupt(handler: Handler) -> None:
        serve(BODY, stop_at=HALF)(handler)
        handler.wfile.flush()
        time.sleep(0.2)  # until all that is read and more is waited for
        os.kill(os.getpid(), signal.SIGINT)
        handler.server.released.wait(20)

    url = server.url("/f", interrupt, serve(BODY))
    with pytest.raises(KeyboardInterrupt):
        fetch(one_file(url), tmp_path, Patience(timeout=10))
    rest_is_asked_for(server, url, tmp_path)


def rest_is_asked_for(server: Server, url: str, folder: Path) -> None:
    size = (folder / "f.bin.part").stat().st_size
    assert size >= HALF - CHUNK
    server.asked.clear()
    fetch(one_file(url), folder, HASTY)
    assert (folder / "f.bin").read_bytes() == BODY
    assert server.asked == [("/f", f"bytes={size}-", '"1"')]


def broken_off(server: Server, folder: Path, **how: object) -> Source:
    """The source of a transfer that broke off half-way, in an earlier call."""
    url = server.url("/f", serve(BODY, stop_at=HALF, **how))
    with pytest.raises(Unreachable):
        fetch(one_file(url), folder, replace(HASTY, retries=0))
    assert (folder / "f.bin.part").stat().st_size >= HALF - CHUNK
    server.asked.clear()
    return one_file(url)


def test_a_server_that_ignores_ranges_is_started_over_with(server, tmp_path):
    source = broken_off(server, tmp_path)
    server.answers["/f"] = [serve(BODY, ranges=False)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.ranges != [None]  # it was asked


def test_the_date_of_the_last_change_serves_where_there_is_no_etag(server, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    source = broken_off(server, tmp_path, etag=None, modified=date)
    server.answers["/f"] = [serve(BODY, etag=None, modified=date)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.asked[0][2] == date


@pytest.mark.parametrize("etag", [None, 'W/"1"'], ids=["none", "weak"])
def test_without_a_strong_validator_nothing_is_appended(server, tmp_path, etag):
    source = broken_off(server, tmp_path, etag=etag)
    server.answers["/f"] = [serve(OTHER, etag=etag)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == OTHER
    assert server.ranges == [None]


def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path):
    source = broken_off(server, tmp_path)
    server.answers["/f"] = [serve(OTHER, etag='"2"')]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == OTHER
    assert server.asked[0][2] == '"1"'


def test_a_file_that_changed_during_one_call_is_fetched_anew(server, tmp_path):
    url = server.url("/f", serve(BODY, stop_at=HALF), serve(OTHER, etag='"2"', stop_at=HALF), serve(OTHER, etag='"2"'))
    fetch(one_file(url), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == OTHER


@pytest.mark.parametrize(
    "answer",
    [
        serve(OTHER[: len(BODY)], etag='"2"'),
        serve(OTHER, etag=None),
        lambda handler: handler.begin(206, Content_Range="bytes 0-9/300000", Content_Length=0, ETag='"1"'),
        lambda handler: handler.begin(206, Content_Length=0, ETag='"1"'),
    ],
    ids=["another ETag", "another length", "another part", "no position"],
)
def test_a_server_that_sends_the_wrong_part_in_spite_of_if_range_is_not_believed(server, tmp_path, answer):
    source = broken_off(server, tmp_path)

    def ignore_if_range(handler: Handler) -> None:
        del handler.headers["If-Range"]
        answer(handler)

    server.answers["/f"] = [ignore_if_range, serve(OTHER, etag='"2"')]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == OTHER
    assert server.ranges[1] is None


def test_a_file_that_became_shorter_than_the_part_is_fetched_anew(server, tmp_path):
    source = broken_off(server, tmp_path)

    def shorter(handler: Handler) -> None:
        del handler.headers["If-Range"]
        serve(BODY[:1000])(handler)

    server.answers["/f"] = [shorter]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY[:1000]


def test_the_part_of_one_mirror_is_not_continued_from_another(server, tmp_path):
    first = server.url("/first", serve(BODY, stop_at=HALF))
    second = server.url("/second", serve(OTHER[: len(BODY)]))  # of the same length, with the same ETag
    fetch(one_file(first, second), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == OTHER[: len(BODY)]
    assert [asked for asked in server.asked if asked[0] == "/second"] == [("/second", None, None)]


def test_a_damaged_note_beside_a_part_means_from_the_beginning(server, tmp_path):
    source = broken_off(server, tmp_path)
    (tmp_path / "f.bin.part.json").write_text("{")
    server.answers["/f"] = [serve(BODY)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.ranges == [None]


def test_a_part_that_is_complete_is_checked_without_asking_again(server, tmp_path):
    source = broken_off(server, tmp_path)
    (tmp_path / "f.bin.part").write_bytes(BODY)
    fetch(replace(source, checksum=sum_of(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.asked == []


# --- mirrors


def test_the_next_mirror_has_its_turn_after_a_404_and_the_reason_is_logged(server, tmp_path, caplog):
    first, second = server.url("/first", status(404)), server.url("/second", serve(BODY))
    with caplog.at_level(logging.WARNING):
        fetch(one_file(first, second), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert [record.getMessage() for record in caplog.records] == [f"{first}: HTTP 404 Not Found"]
    assert len(server.asked) == 2  # a 404 is not tried again


def test_a_server_that_is_busy_twice_is_asked_a_third_time(server, tmp_path, caplog):
    fetch(one_file(server.url("/f", status(503), status(429), serve(BODY))), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert caplog.records == []  # no reason to worry anybody


def test_pauses_between_tries_grow(server, tmp_path):
    start = time.monotonic()
    with pytest.raises(Unreachable):
        fetch(one_file(server.url("/f", status(500))), tmp_path, Patience(timeout=1, retries=3, pause=0.05))
    assert 0.35 <= time.monotonic() - start < 2  # 0.05 + 0.1 + 0.2


def test_when_all_mirrors_fail_one_error_says_why_for_each_and_what_to_do_by_hand(server, tmp_path):
    busy, gone = server.url("/busy", status(503)), server.url("/gone", status(410))
    nobody = "http://127.0.0.1:9/f.bin"
    with pytest.raises(Unreachable) as error:
        fetch(one_file(busy, gone, nobody), tmp_path, HASTY)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("cannot fetch f.bin (")
    assert f"{busy}: HTTP 503 Service Unavailable (gave up after 2 more tries); {gone}: HTTP 410 Gone; " in message
    assert re.search(rf"{nobody}: \[Errno \d+\] Connection refused", message)
    assert message.endswith(f"open {busy}, save it as {tmp_path / 'f.bin'} and run the same command again")
    assert names_in(tmp_path) == set()


def test_a_server_that_never_answers_is_left_after_the_timeout(server, tmp_path):
    url = server.url("/f", lambda handler: handler.server.released.wait(20))
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"no answer within 0\.2 s"):
        fetch(one_file(url), tmp_path, Patience(timeout=0.2, retries=1, pause=0.01))
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "known",
    [{"checksum": sum_of(BODY)}, {"checksum": sum_of(BODY, "md5")}, {"size": len(BODY)}],
    ids=["sha256", "md5", "size"],
)
def test_a_file_that_is_not_the_expected_one_is_removed_and_the_next_mirror_has_its_turn(server, tmp_path, known):
    wrong, right = server.url("/wrong", serve(OTHER)), server.url("/right", serve(BODY))
    fetch(one_file(wrong, right, **known), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    with pytest.raises(Unreachable, match=r"its (sha256|md5) sum is|it has 350,000 bytes where 300,000 are expected"):
        fetch(one_file(wrong, file="g.bin", **known), tmp_path, HASTY)
    assert names_in(tmp_path) == {"f.bin"}


def test_a_file_of_another_length_than_expected_is_not_even_fetched(server, tmp_path):
    url = server.url("/f", serve(BODY, stop_at=0, stall=True))  # would stall if it were read
    with pytest.raises(Unreachable, match=r"it has 300,000 bytes where 5 are expected"):
        fetch(one_file(url, size=5), tmp_path, Patience(timeout=30, retries=0))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_announces_more_than_it_has_is_given_up(server, tmp_path, ranges):
    url = server.url("/f", serve(BODY, announce=len(OTHER), ranges=ranges))
    with pytest.raises(Unreachable, match=r"the connection broke off|not the part"):
        fetch(one_file(url), tmp_path, HASTY)
    assert not (tmp_path / "f.bin").exists()


def test_a_server_that_announces_less_than_it_has_is_found_out_by_the_checksum(server, tmp_path):
    lying, honest = server.url("/lying", serve(BODY, announce=1000)), server.url("/honest", serve(BODY))
    fetch(one_file(lying, honest, checksum=sum_of(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert len(server.asked) == 2


PAGE = b"  \n<!DOCTYPE html><html><title>Quota exceeded</title></html>"


@pytest.mark.parametrize(
    ("page", "content_type"),
    [(b"Quota exceeded", "text/html; charset=utf-8"), (PAGE, "application/octet-stream")],
    ids=["by its type", "by its beginning"],
)
def test_a_web_page_in_place_of_a_file_is_recognised_and_costs_nothing_that_came_before(
    server, tmp_path, page, content_type
):
    source = broken_off(server, tmp_path)
    before = (tmp_path / "f.bin.part").read_bytes()
    server.answers["/f"] = [serve(page, content_type=content_type, etag='"page"')]
    with pytest.raises(Unreachable, match="it sent a web page instead of the file"):
        fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin.part").read_bytes() == before
    server.answers["/f"] = [serve(BODY)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_an_empty_file_is_no_file(server, tmp_path):
    with pytest.raises(Unreachable, match="it is empty"):
        fetch(one_file(server.url("/f", serve(b""))), tmp_path, HASTY)
    assert names_in(tmp_path) == set()


def test_the_bytes_on_disk_are_the_files_own_even_if_the_server_calls_its_compression_an_encoding(server, tmp_path):
    # as some servers do with .tar.gz; undone in transfer, neither the sum nor a later range would fit
    packed = gzip.compress(BODY)
    url = server.url("/f", serve(packed, Content_Encoding="x-gzip"))
    fetch(one_file(url, file="f.tar.gz", checksum=sum_of(packed)), tmp_path, HASTY)
    assert (tmp_path / "f.tar.gz").read_bytes() == packed
    with pytest.raises(Unreachable, match="encoded as x-gzip"):
        fetch(one_file(url, file="f.json"), tmp_path, HASTY)


# --- the disk


def test_what_is_in_place_is_not_asked_for(server, tmp_path):
    (tmp_path / "f.bin").write_bytes(b"mine")
    fetch(one_file(server.url("/f", serve(BODY)), checksum=sum_of(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_a_target_that_is_a_link_to_nothing_is_an_error(server, tmp_path):
    (tmp_path / "f.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"f\.bin is a link to nothing; mend it, or delete it"):
        fetch(one_file(server.url("/f", serve(BODY))), tmp_path, HASTY)
    assert not (tmp_path / "nowhere").exists()


def test_room_is_asked_for_before_the_transfer(server, tmp_path):
    url = server.url("/f", serve(BODY, announce=10**18, stop_at=0, stall=True))
    with pytest.raises(UserError, match=r"has no room: 888PB more are needed and .+B are free") as error:
        fetch(one_file(url), tmp_path, Patience(timeout=30, retries=0))
    assert not isinstance(error.value, Unreachable)  # the next mirror would not help
    assert names_in(tmp_path) == set()


def test_a_full_disk_is_an_error_and_the_next_call_goes_on(server, tmp_path, disk_full_after):
    source = one_file(server.url("/f", serve(BODY)))
    with disk_full_after(2 * CHUNK), pytest.raises(UserError, match=r"cannot write .*f\.bin\.part: File too large"):
        fetch(source, tmp_path, HASTY)
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={2 * CHUNK}-"]


def test_a_folder_that_cannot_be_made_is_an_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*: (Not a directory|File exists)"):
        fetch(one_file(server.url("/f", serve(BODY))), tmp_path / "file", HASTY)


# --- archives


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    """A zip, tar or tar.gz with these files."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as packed:
            for name, content in files.items():
                add(packed, name, content)
    return buffer.getvalue()


def add(
    packed: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(content), link
    packed.addfile(member, io.BytesIO(content))


def tar_with(*members: tuple) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for member in members:
            add(packed, *member)
    return buffer.getvalue()


def zip_with(name: str, content: bytes = b"x", mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("images/a.jpg", b"a")
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # unlike the constructor, this changes nothing of it
        info.create_system, info.external_attr = 3, mode << 16
        packed.writestr(info, content)
    return buffer.getvalue()


FILES = {"set/images/a/1.jpg": b"1", "set/images/b/2.jpg": BODY, "set/labels.txt": b"l", "set/other.txt": b"o"}
UNPACKED = {"images", "images/a", "images/a/1.jpg", "images/b", "images/b/2.jpg", "names.txt"}
UNPACK = (Member("images", "images"), Member("labels.txt", "names.txt"))


def archive(*urls: str, file: str = "x.archive", unpack: tuple[Member, ...] = UNPACK, **known: object) -> Source:
    return Source(file, urls, unpack=unpack, **known)


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
A = ("images/a", b"a")
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


def test_a_python_that_cannot_unpack_a_tar_archive_safely_does_not_unpack_it(server, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"no data_filter\); update to the latest patch release of your Python"):
        fetch(archive(server.url("/x", serve(pack("tar", FILES)))), tmp_path, HASTY)
    assert names_in(tmp_path) == {"x.archive"}


# --- Google Drive


def test_a_google_drive_that_cannot_be_reached_is_left_at_once_with_a_clear_reason(tmp_path, monkeypatch):
    # the real gdown, behind a proxy that is not there: nothing of the network is needed
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(Unreachable) as error:
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path, HASTY)
    assert time.monotonic() - start < 5
    page = f"https://drive.google.com/file/d/{DRIVE_ID}/view"
    assert re.match(rf"cannot fetch f\.bin \({page}: gdown: \[Errno \d+\] Connection refused\); ", str(error.value))
    assert f"get it by hand: open {page}, save it as {tmp_path / 'f.bin'}" in str(error.value)
    assert names_in(tmp_path) == set()


@pytest.fixture
def drive(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server in place of drive.google.com. The address is fixed in gdown, so only the request's is replaced."""
    request = requests.Session.request

    def local(self, method, url, *arguments, **options):
        port = server.server_address[1]
        return request(
            self, method, url.replace("https://drive.google.com", f"http://127.0.0.1:{port}"), *arguments, **options
        )

    monkeypatch.setattr(requests.Session, "request", local)
    import gdown  # noqa: F401

    cookies = tmp_path_factory.mktemp("cookies") / "cookies.txt"
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(cookies))
    return server


def attached(body: bytes, **how: object) -> Answer:
    """As Google Drive sends a file."""
    return serve(body, Content_Disposition='attachment; filename="on drive.bin"', **how)


def test_a_file_comes_from_google_drive(drive, tmp_path):
    drive.url("/uc", attached(BODY))
    fetch(one_file(f"gdrive:{DRIVE_ID}", checksum=sum_of(BODY)), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert names_in(tmp_path) == {"f.bin"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "f.bin").stat().st_mode) == 0o666 & ~umask


def test_a_transfer_from_google_drive_that_breaks_goes_on_in_the_next_call(drive, tmp_path):
    source = one_file(f"gdrive:{DRIVE_ID}", checksum=sum_of(BIG))
    drive.url("/uc", attached(BIG, stop_at=len(BIG) // 2, stall=True))
    with pytest.raises(Unreachable, match=r"gdown: no answer within 0\.4 s"):
        fetch(source, tmp_path, replace(HASTY, retries=0))
    assert len(drive.asked) == 1
    (part,) = tmp_path.iterdir()
    size = part.stat().st_size
    assert 0 < size <= len(BIG) // 2
    drive.answers["/uc"] = [attached(BIG)]
    fetch(source, tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BIG
    assert drive.ranges[-1] == f"bytes={size}-"
    assert names_in(tmp_path) == {"f.bin"}


def test_a_wrong_file_from_google_drive_is_removed(drive, tmp_path):
    drive.url("/uc", attached(OTHER))
    with pytest.raises(Unreachable, match="its sha256 sum is"):
        fetch(one_file(f"gdrive:{DRIVE_ID}", checksum=sum_of(BODY)), tmp_path, HASTY)
    assert names_in(tmp_path) == set()


def test_a_web_page_as_a_file_of_google_drive_is_recognised(drive, tmp_path):
    drive.url("/uc", attached(PAGE))
    with pytest.raises(Unreachable, match="it sent a web page instead of the file"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path, HASTY)
    assert names_in(tmp_path) == set()


def test_the_quota_page_of_google_drive_is_a_reason_in_one_line_and_the_next_mirror_has_its_turn(
    drive, tmp_path, caplog
):
    page = (
        '<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></html>'
    )
    drive.url("/uc", serve(page.encode(), content_type="text/html; charset=utf-8"))
    fetch(one_file(f"gdrive:{DRIVE_ID}", drive.url("/f", serve(BODY))), tmp_path, HASTY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    (record,) = caplog.records
    assert record.getMessage() == (
        f"https://drive.google.com/file/d/{DRIVE_ID}/view: gdown: Too many users have viewed or downloaded this file "
        "recently."
    )


def test_room_is_asked_for_before_a_transfer_from_google_drive(drive, tmp_path):
    drive.url("/uc", attached(BIG, announce=10**18, stall=True))
    with pytest.raises(UserError, match="has no room"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path, replace(HASTY, retries=0))


def test_a_gdown_that_could_hang_is_refused(tmp_path, monkeypatch):
    import gdown

    monkeypatch.setattr(gdown, "download", lambda id, output, quiet, resume: None)  # as in gdown 5
    with pytest.raises(Unreachable, match=r"would wait for ever on a stalled server: pip install 'gdown>=6\.3'"):
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path, HASTY)


# --- whole data sets


def set_sources(monkeypatch: pytest.MonkeyPatch, name: str, sources: tuple[Source, ...]) -> None:
    monkeypatch.setitem(ENTRIES, name, replace(ENTRIES[name], sources=sources))


def pets(server: Server, *, split: Answer, images: Answer) -> tuple[Source, ...]:
    return (
        Source("split.json", (server.url("/split", split),)),
        Source("images.tar.gz", (server.url("/images", images),), unpack=(Member("images", "images"),)),
    )


def test_a_data_set_is_fetched_into_its_folder_and_a_second_call_asks_nothing(server, tmp_path, monkeypatch):
    sources = pets(server, split=serve(b"{}"), images=serve(pack("tar.gz", FILES)))
    set_sources(monkeypatch, "OxfordPets", sources)
    download("OxfordPets", tmp_path, HASTY)
    folder = tmp_path / "oxford_pets"
    assert names_in(folder) == {"split.json", *UNPACKED} - {"names.txt"}
    server.asked.clear()
    download("OxfordPets", str(tmp_path), HASTY)
    assert server.asked == []


def test_what_can_be_fetched_is_there_even_if_something_else_cannot(server, tmp_path, monkeypatch):
    sources = pets(server, split=status(404), images=serve(pack("tar.gz", FILES)))
    set_sources(monkeypatch, "OxfordPets", sources)
    with pytest.raises(
        UserError, match=r"^OxfordPets is not complete: cannot fetch split\.json \(.*HTTP 404 Not Found"
    ):
        download("OxfordPets", tmp_path, HASTY)
    assert (tmp_path / "oxford_pets" / "images").is_dir()


def test_what_failed_and_then_came_with_another_archive_is_no_error(server, tmp_path, monkeypatch):
    split, images = pets(server, split=status(404), images=status(404))
    rich = archive(
        server.url("/rich", serve(pack("zip", {**FILES, "set/split.json": b"{}"}))),
        unpack=(*UNPACK, Member("split.json", "split.json")),
    )
    set_sources(monkeypatch, "OxfordPets", (split, replace(images, otherwise=rich)))
    download("OxfordPets", tmp_path, HASTY)
    assert {"split.json", "images"} < names_in(tmp_path / "oxford_pets")


def test_an_unsafe_archive_ends_the_download(server, tmp_path, monkeypatch):
    split, images = pets(server, split=serve(b"{}"), images=serve(tar_with(A, ("../escaped", b"x"))))
    set_sources(monkeypatch, "OxfordPets", (images, split))
    with pytest.raises(UserError, match="is refused"):
        download("OxfordPets", tmp_path, HASTY)
    assert server.asked == [("/images", None, None)]


def test_two_downloads_into_one_folder_do_not_mix(server, tmp_path, monkeypatch):
    stalling = serve(BODY, stop_at=HALF, stall=True)
    set_sources(monkeypatch, "OxfordPets", (one_file(server.url("/f", stalling, serve(BODY))),))
    first = threading.Thread(
        target=download, args=("OxfordPets", tmp_path, Patience(timeout=0.7, retries=1, pause=0.01))
    )
    first.start()
    try:
        while not server.asked:
            time.sleep(0.01)
        with pytest.raises(UserError, match=r"another process is downloading into .*oxford_pets; wait for it"):
            download("OxfordPets", tmp_path, HASTY)
    finally:
        first.join()
    assert (tmp_path / "oxford_pets" / "f.bin").read_bytes() == BODY
    download("OxfordPets", tmp_path, HASTY)  # free again


def test_an_unknown_data_set_is_an_error_that_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="unknown data set to download 'OxfordPet'; did you mean 'OxfordPets'"):
        download("OxfordPet", tmp_path)
    assert names_in(tmp_path) == set()


def test_images_that_need_a_licence_are_told_of_until_they_are_there(server, tmp_path, monkeypatch, caplog):
    names = one_file(server.url("/names", serve(b"n01440764 tench\n")), file="classnames.txt")
    set_sources(monkeypatch, "ImageNet", (names,))
    download("ImageNet", tmp_path, HASTY)
    assert (tmp_path / "imagenet" / "classnames.txt").exists()
    (record,) = caplog.records
    assert "imagenet/images is missing and cannot be fetched. ImageNet's images need a licence" in record.getMessage()
    caplog.clear()
    (tmp_path / "imagenet" / "images" / "val").mkdir(parents=True)
    download("ImageNet", tmp_path, HASTY)
    assert caplog.records == []


# --- the table of sources


def chain(source: Source) -> list[Source]:
    return [source, *(chain(source.otherwise) if source.otherwise else [])]


STORED = stored_datasets()
EVERY = [
    pytest.param(name, source, id=f"{name}-{source.file}")
    for name, entry in STORED.items()
    for first in entry.sources
    for source in chain(first)
]


@pytest.mark.parametrize("name", STORED)
def test_the_sources_of_a_data_set_bring_its_images_and_its_split(name):
    entry = STORED[name]
    targets = [target for source in entry.sources for target in source.targets]
    needed = {entry.images or "cars_train", entry.split_file or "classnames.txt"} - {"classnames.txt"}
    if "imagenet" in entry.folder:
        needed.add("classnames.txt")
    if entry.by_hand:
        targets.append(entry.by_hand.target)
    assert needed <= set(targets)
    assert len(targets) == len(set(targets))
    files = [source.file for first in entry.sources for source in chain(first)]
    assert len(files) == len(set(files))  # each is found again by its name


@pytest.mark.parametrize(("name", "source"), EVERY)
def test_a_source_is_well_formed(name, source):
    assert source.urls
    for url in source.urls:
        assert re.fullmatch(r"gdrive:[\w-]{25,44}|https://[\w.-]+\.[a-z]+/[\w.~/-]+[\w]", url), url
    assert source.size is None or source.size > 0
    assert source.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", source.checksum)
    assert bool(source.unpack) or not (source.inner or source.otherwise)
    for path in (source.file, source.inner, *source.targets, *(member.path for member in source.unpack)):
        assert not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
    assert "/" not in source.file
    if source.otherwise:
        assert set(source.targets) <= set(source.otherwise.targets)


@pytest.mark.parametrize(("name", "source"), EVERY)
def test_an_address_that_may_change_its_content_is_pinned_or_checked(name, source):
    moving = [url for url in source.urls if "/main/" in url]
    assert not moving or source.checksum or name == "ImageNetSketch"  # whose commit is not known


def test_the_sums_of_the_split_files_are_those_of_the_real_files(shared):
    compared = []
    for name, entry in STORED.items():
        for source in entry.sources:
            path = shared / "data" / "splits" / source.file
            if path.exists():
                assert (source.size, source.checksum) == (path.stat().st_size, sum_of(path.read_bytes())), name
                compared.append(source.file)
    assert set(compared) == {path.name for path in (shared / "data" / "splits").iterdir()}
