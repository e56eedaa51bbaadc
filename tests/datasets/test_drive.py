"""Files of Google Drive, by the real gdown."""

from __future__ import annotations

import os
import random
import re
import stat
import sys
import time
from dataclasses import replace

import pytest
import requests
from file_server import BODY, HASTY, OTHER, PAGE, Answer, Server, names_in, one_file, serve, sum_of

from trainers.hegraph.datasets.fetch.download import fetch
from trainers.hegraph.datasets.fetch.failures import Unreachable
from trainers.hegraph.utils.errors import UserError

BIG = random.Random(2).randbytes(2_000_000)  # several of gdown's chunks
DRIVE_ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"


def test_a_google_drive_that_cannot_be_reached_is_left_at_once_with_a_clear_reason(tmp_path, monkeypatch):
    # the real gdown, behind a proxy that is not there: nothing of the network is needed
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(Unreachable) as error:
        fetch(one_file(f"gdrive:{DRIVE_ID}"), tmp_path, HASTY)
    assert sum(pauses) < 5
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
