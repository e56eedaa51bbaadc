"""The command `serve` in processes: clients that send slowly, the end after SIGTERM, and several workers."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from recorded import wait_for
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
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=240))
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
    words = (finished_digits_once, "--request-timeout", "3600")
    with serving(*words, python=python) as server, sending(server, content, 10):
        server.process.terminate()
        server.process.wait(240)


def test_sigterm_during_the_start_prints_nothing(finished_digits_once):
    with serving(finished_digits_once, wait=False) as server:
        time.sleep(1)
        server.process.terminate()
        server.process.wait(240)
        assert "checkpoint" not in server.process.stderr.read()


def test_metrics_count_all_workers(finished_digits_once, files):
    name = 'http_requests_total{handler="/v1/predict/files",method="POST",status="2xx"}'
    close = {"connection": "close"}  # the next request goes to another worker, perhaps
    with serving(finished_digits_once, "--workers", "2") as server:

        def counts() -> list[str]:
            lines = server.client.get("/metrics", headers=close).text.splitlines()
            return [line for line in lines if line.startswith(name)]

        for _ in range(20):
            server.client.post("/v1/predict/files", files=form(files[0]), headers=close)
        wait_for(lambda: counts() == [f"{name} 20.0"])  # a request is counted after its answer
        assert [counts() for _ in range(5)] == [[f"{name} 20.0"]] * 5


def test_killed_worker_is_replaced_and_sigterm_ends_all(finished_digits_once):
    with serving(finished_digits_once, "--workers", "2", "--stop-timeout", "200") as server:
        assert "shows the interface" in server.process.stdout.readline()  # both workers accept requests
        before = children(server.process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len({*children(server.process.pid)} - {*before}) == 1)
        after = children(server.process.pid)
        server.process.terminate()
        assert server.process.wait(240) == 0
        assert not any(Path(f"/proc/{process}").exists() for process in {*before, *after})
        with pytest.raises(TransportError):
            server.client.get("/health")
