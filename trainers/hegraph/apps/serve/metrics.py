"""Metrics of the requests for Prometheus, counted over all workers of a server.

Workers write their counts to files of a folder that the environment variable `FOLDER` names (the multiprocess mode of
prometheus_client). Paths and methods that the server does not have are not counted, so no client can add series.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import declared_token
from .errors import answer_error, declared
from .settings import METRICS, Settings

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client, before its import
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT")
EXAMPLE = 'http_requests_total{handler="/v1/predict",method="POST",status="2xx"} 3.0'


class KnownMethods:
    """Middleware that refuses methods that HTTP does not have, before they are counted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in METHODS:
            return await self.app(scope, receive, send)
        error = HTTPException(405, "Method Not Allowed", {"Allow": "GET, HEAD, POST, DELETE"})
        await answer_error(Request(scope), error)(scope, receive, send)


class Workers(Collector):
    """Memory and times of the workers, which write files `KIND_PROCESS.db` to a folder, summed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all processes, with equal metrics summed, except the time of the start."""
        sums: dict[str, Metric] = {}
        for process in sorted({int(file.stem.rpartition("_")[2]) for file in self.folder.glob("*.db")}):
            for family in ProcessCollector(pid=partial(int, process), registry=None).collect():
                if family.name == "process_start_time_seconds":
                    continue
                if family.name in sums:
                    family.samples = [
                        first._replace(value=first.value + second.value)
                        for first, second in zip(sums[family.name].samples, family.samples)
                    ]
                sums[family.name] = family
        yield from sums.values()


def add_metrics(app: FastAPI, settings: Settings) -> None:
    """Add counts and durations of the requests, the memory of the processes, and the request that answers with them."""
    registry = CollectorRegistry()  # the default one counts the first application of a process only
    answered = registry
    folder = os.environ.get(FOLDER)
    if folder:
        answered = CollectorRegistry()
        MultiProcessCollector(answered)
        answered.register(Workers(Path(folder)))
    else:
        ProcessCollector(registry=registry)
    Instrumentator(registry=registry, should_ignore_untemplated=True).instrument(app)
    app.add_middleware(KnownMethods)

    @app.get(
        METRICS,
        summary="Count requests, for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": EXAMPLE}}},
            **declared(400, 401, 403),
        },
        dependencies=declared_token(settings),
    )
    async def metrics() -> Response:
        """Number and duration of the requests, and memory of the processes."""
        return Response(generate_latest(answered), headers={"Content-Type": CONTENT_TYPE_LATEST})
