"""Limits of the server: unfinished requests, requests in progress, pixels in memory."""

import asyncio
import io
import signal
import socket
from contextlib import suppress
from multiprocessing.context import SpawnProcess

import pytest
from PIL import Image
from serving import client_of, encoded, form

from trainers.hegraph.apps.serve import limits, workers
from trainers.hegraph.apps.serve.connections import connection_class, serve_app
from trainers.hegraph.apps.serve.limits import Limits, Places
from trainers.hegraph.apps.serve.pixels import PixelBudget
from trainers.hegraph.apps.serve.settings import Settings
from trainers.hegraph.apps.serve.waiting import Client, Waiting
from trainers.hegraph.apps.serve.workers import Workers
from trainers.hegraph.utils.signals import deferred_interrupts, noted_interrupts

# Unfinished requests


def names_of_dropped(waiting: Waiting, addresses: str) -> list[str]:
    """Add clients of addresses of one letter, such as "aab"; returns the dropped ones, such as ["a0"]."""
    dropped = []
    for number, address in enumerate(addresses):
        waiting.add(Client(address, lambda name=f"{address}{number}": dropped.append(name)))
    return dropped


@pytest.mark.parametrize(
    ("addresses", "dropped"),
    [("abc", []), ("abcd", ["a0"]), ("abbb", ["b1"]), ("abbbb", ["b1", "b2"]), ("bbbac", ["b0", "b1"])],
)
def test_first_client_of_the_busiest_address_is_dropped(addresses, dropped):
    assert names_of_dropped(Waiting(3), addresses) == dropped


def test_client_with_most_bytes_is_dropped():
    waiting, dropped = Waiting(9), []
    for name, received in (("a", 5), ("b", 4), ("c", 3), ("b", 2)):
        client = Client(name, lambda name=name, received=received: dropped.append((name, received)))
        client.received = received
        waiting.add(client)
    waiting.drop_largest()
    assert dropped == [("b", 4)]  # b has 6 bytes, a has 5


def test_bytes_count_more_than_the_number_of_requests():
    waiting = Waiting(9)
    dropped = []
    for name, received in (("a", 7), ("b", 4), ("b", 2)):
        client = Client(name, lambda name=name: dropped.append(name))
        client.received = received
        waiting.add(client)
    waiting.drop_largest()
    assert dropped == ["a"]


class Caller:
    """ASGI client of the middleware, which sends some parts of a body and then nothing."""

    def __init__(self, *parts: bytes, complete: bool = True, path: str = "/v1/predict", address: str = "a") -> None:
        last = len(parts) - 1
        self.messages = [
            {"type": "http.request", "body": part, "more_body": not (complete and number == last)}
            for number, part in enumerate(parts)
        ]
        headers = [(b"host", b"localhost")]
        self.scope = {"type": "http", "path": path, "method": "POST", "headers": headers, "client": (address, 1)}
        self.status = 0
        self.answer = b""

    async def receive(self) -> dict:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict) -> None:
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")


async def echo_length(scope, receive, send) -> None:
    """Application that reads the body, and answers with the status 200."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def answers(*callers: Caller, **settings: object) -> list[int]:
    """Statuses of requests that are sent at once; the places are free afterwards."""
    places = Places()
    middleware = Limits(echo_length, Settings(model="model", **settings), places)

    async def call_all() -> None:
        await asyncio.gather(*(middleware(each.scope, each.receive, each.send) for each in callers))

    asyncio.run(call_all())
    assert (places.in_progress, places.received, len(places.unfinished.clients)) == (0, 0, 0)
    return [each.status for each in callers]


def test_unfinished_body_has_a_deadline():
    assert answers(Caller(b"x", complete=False), request_seconds=0.05) == [408]


def test_unfinished_bodies_take_no_place_of_others(monkeypatch):
    slow = [Caller(b"x", complete=False, address="slow") for _ in range(200)]
    statuses = answers(*slow, Caller(b"x", b"y"), request_seconds=0.5, max_requests=1)
    assert statuses == [408] * 200 + [200]


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_monitoring_has_no_limits(path):
    assert answers(Caller(b"x", path=path), max_requests=0) == [200]


def test_small_parts_above_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 10)
    assert answers(Caller(b"1234", b"5678", b"90")) == [200]
    assert answers(Caller(b"1234", b"5678", b"901")) == [413]


def test_bytes_of_all_requests_are_limited(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODIES", 10)
    large = Caller(b"12345", b"6789", complete=False, address="large")
    assert answers(large, Caller(b"1", b"2", complete=False), Caller(b"34"), request_seconds=0.1) == [408, 408, 200]


def test_largest_request_is_dropped_before_its_deadline(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODIES", 10)
    large = Caller(b"12345", b"6789", complete=False, address="large")
    assert answers(large, Caller(b"1", b"2", b"3"), request_seconds=1) == [408, 200]
    assert b"too many requests are not complete" in large.answer


def test_deadline_of_a_header_ends_no_answer():
    """The answer takes longer than a header may take, whose deadline is over when the header has arrived."""
    import uvicorn  # an extra; `serving` skips this file without it

    async def answer_slowly(scope, receive, send) -> None:
        await asyncio.sleep(0.3)
        await echo_length(scope, receive, send)

    settings = Settings(model="model", request_seconds=0.1)
    config = uvicorn.Config(answer_slowly, http=connection_class(settings), lifespan="off", log_config=None)
    listening = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listening.getsockname())
    client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")  # before the clock starts

    async def call() -> bytes:
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: config.http_protocol_class(config, state, {}), sock=listening)
        reader, writer = await asyncio.open_connection(sock=client)
        answer = await reader.read()
        writer.close()
        server.close()
        return answer

    assert asyncio.run(call()).startswith(b"HTTP/1.1 200 ")


def test_ending_server_drops_unfinished_requests():
    places = Places()
    middleware = Limits(echo_length, Settings(model="model"), places)
    slow = Caller(b"x", complete=False)
    late = Caller(b"x")

    async def end() -> None:
        task = asyncio.create_task(middleware(slow.scope, slow.receive, slow.send))
        await asyncio.sleep(0.01)
        places.end()
        await task
        await middleware(late.scope, late.receive, late.send)

    asyncio.run(end())
    assert (slow.status, late.status) == (503, 503)


def test_signal_whose_exception_was_dropped_ends_the_start():
    from fastapi import FastAPI

    settings = Settings(model="model")
    with socket.socket() as listener, noted_interrupts():
        listener.bind(("127.0.0.1", 0))
        with deferred_interrupts():  # notes the signal, as if an import had dropped its exception
            signal.raise_signal(signal.SIGTERM)
        serve_app(FastAPI(), settings, listener, on_ready=lambda: pytest.fail("the server accepts requests"))


# Pixels


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_pixels_wait_for_a_free_budget():
    budget, order = PixelBudget(10), []

    async def use(name: str, pixels: int) -> None:
        async with budget.take(pixels):
            order.append(f"{name} begins")
            await asyncio.sleep(0.01)
            order.append(f"{name} ends")

    async def run() -> None:
        await asyncio.gather(use("six", 6), use("five", 5), use("four", 4), use("many", 99))

    asyncio.run(run())
    assert order == [
        "six begins", "six ends", "five begins", "four begins", "five ends", "four ends", "many begins", "many ends",
    ]  # fmt: skip
    assert budget.free == 10


def test_cancelled_task_frees_its_pixels():
    budget = PixelBudget(10)

    async def use(pixels: int) -> None:
        async with budget.take(pixels):
            await asyncio.sleep(0.01)

    async def run() -> None:
        first, second, third = (asyncio.create_task(use(pixels)) for pixels in (6, 9, 4))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, third)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert budget.free == 10


def test_task_that_is_cancelled_at_its_turn_frees_its_pixels():
    budget = PixelBudget(10)

    async def use() -> None:
        async with budget.take(9):
            raise AssertionError

    async def run() -> None:
        async with budget.take(6):
            waiting = asyncio.create_task(use())
            await asyncio.sleep(0)
        waiting.cancel()  # it has its pixels, and has not gone on yet
        with suppress(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
    assert budget.free == 10


@pytest.fixture(scope="module")
def many_pixels() -> bytes:
    return png(10_000, 5000)


@pytest.fixture
def learning(folder):
    with client_of(folder, learn=True) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/suggest", "/v1/examples"])
def test_many_pixels_in_base64_are_refused(learning, many_pixels, path):
    fields = {"labels": [["zero"]] * 16} if path == "/v1/examples" else {}
    answer = learning.post(path, json=encoded(*[many_pixels] * 16, **fields))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])
    assert "got 800 million; send several requests" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v1/predict/files", "/v1/suggest/files", "/v1/examples/files"])
def test_many_pixels_in_a_form_are_refused(learning, many_pixels, path):
    fields = {"labels": "zero"} if path == "/v1/examples/files" else {}
    answer = learning.post(path, files=[("files", many_pixels)] * 16, data=fields)
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_refused_pixels_do_not_stop_the_server(learning, many_pixels, files):
    learning.post("/v1/predict/files", files=[("files", many_pixels)] * 16)
    assert learning.post("/v1/predict/files", files=form(files[0])).json()["predictions"][0]["top"]


# End of the process


def test_parent_of_workers_ends_within_the_deadline(monkeypatch):
    deadlines = []
    monkeypatch.setattr(workers, "end_within", deadlines.append)
    Workers(Settings(model="model", stop_seconds=7), listener=None)._stop()
    assert deadlines == [7]


def test_interrupted_start_of_a_worker_is_finished(monkeypatch):
    started = []

    def start(process: SpawnProcess) -> None:
        signal.raise_signal(signal.SIGINT)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", start)
    with noted_interrupts(), pytest.raises(KeyboardInterrupt):
        Workers(Settings(model="model"), listener=None)._add()
    assert len(started) == 1, "the process can be ended"
