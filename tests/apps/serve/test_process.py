"""The command `serve` in processes: clients that send slowly, the end after SIGTERM, and several workers."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from serving import TransportError, form, serving

HEADER = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = HEADER + b"Content-Length: 100\r\n\r\n{"
pytestmark = pytest.mark.slow


@contextmanager
def sending(server, content: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Context with clients that have sent the beginning of a request."""
    address = server.client.base_url
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=60))
            for _ in range(count)
        ]
        for client in clients:
            client.sendall(content)
        yield clients


def children(process: int) -> list[int]:
    """Processes that a process has started and that run Python's spawned workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize("content", [HEADER, BODY])
def test_slow_clients_lock_nobody_out(finished_digits_once, files, content, python):
    with serving(finished_digits_once, python=python) as server, sending(server, content, 300):
        assert server.client.post("/v1/predict/files", files=form(files[0])).status_code == 200
        assert server.client.get("/metrics").status_code == 200
        assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize("content", [HEADER, BODY, b""])
def test_slow_request_is_refused_after_the_deadline(finished_digits_once, content, python):
    words = (finished_digits_once, "--request-timeout", "1")
    with serving(*words, python=python) as server, sending(server, content, 1) as [client]:
        assert client.recv(20).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("content", [HEADER, BODY])
def test_sigterm_ends_a_server_with_slow_clients(finished_digits_once, content, python):
    with serving(finished_digits_once, python=python) as server, sending(server, content, 10):
        server.process.terminate()
        server.process.wait(30)  # 10 s and the start of the clock; the request itself has 30 s


def test_sigterm_during_the_start_prints_nothing(finished_digits_once):
    with serving(finished_digits_once, wait=False) as server:
        time.sleep(1)
        server.process.terminate()
        server.process.wait(60)
        assert "checkpoint" not in server.process.stderr.read()


def test_metrics_count_all_workers(finished_digits_once, files):
    with serving(finished_digits_once, "--workers", "2") as server:
        for _ in range(20):
            with_connection = {"headers": {"connection": "close"}}  # perhaps another worker
            server.client.post("/v1/predict/files", files=form(files[0]), **with_connection)
        name = 'http_requests_total{handler="/v1/predict/files",method="POST",status="2xx"}'
        counts = [
            line for _ in range(5) for line in server.client.get("/metrics").text.splitlines() if line.startswith(name)
        ]
    assert counts == [f"{name} 20.0"] * 5


def test_killed_worker_is_replaced_and_sigterm_ends_all(finished_digits_once):
    with serving(finished_digits_once, "--workers", "2", "--stop-timeout", "60") as server:
        while len(before := children(server.process.pid)) < 2:
            time.sleep(0.2)
        os.kill(before[0], signal.SIGKILL)
        while len(after := children(server.process.pid)) < 2 or before[0] in after:
            time.sleep(0.2)
        server.process.terminate()
        assert server.process.wait(120) == 0
        assert not any(Path(f"/proc/{process}").exists() for process in {*before, *after})
        with pytest.raises(TransportError):
            server.client.get("/health")
