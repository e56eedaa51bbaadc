"""Settings and limits of the server."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ...datasets.images import MAX_BYTES, MAX_PIXELS
from ...features.backbones.identity import AUTO
from ..access import LOOPBACK

HEALTH = "/health"  # needs no token
METRICS = "/metrics"
PAGES = ("/docs", "/redoc", "/openapi.json")  # need no token: the page asks for it, and sends it with each request
PAGE_FILES = "/static-offline-docs"

MAX_IMAGES = 64  # images of a request
MAX_BODY = 4 * MAX_BYTES  # bytes of a request
MAX_BODIES = 4 * MAX_BODY  # bytes of all requests together
MAX_REQUESTS = 64  # complete requests in progress
MAX_UNFINISHED = 64  # requests whose body is not complete
MAX_CONNECTIONS = 256  # connections without a complete header

MAX_REQUEST_PIXELS = 8 * MAX_PIXELS  # pixels of all images of a request for predictions
MAX_EXAMPLE_PIXELS = 2 * MAX_PIXELS  # pixels of all images that wait to be learned, and of a request with them
MAX_DECODING_PIXELS = MAX_PIXELS  # pixels that are decoded at once: one of the largest images, or many small ones

REQUEST_SECONDS = 30  # until a request is complete
STOP_SECONDS = 10  # from SIGTERM until the process has ended


class Settings(BaseModel):
    """Settings of the server.

    Attributes:
        model: Model folder.
        host: Address on which the server listens.
        token: Secret that every request must have, or "".
        workers: Number of processes of the server.
        device, backbone, pretrained, precision: Arguments of `ImageModel.load`.
        learn: Whether requests may change the model; needs a single worker.
        label_studio, label_studio_token: Address of Label Studio, or "", and a token of it; need `learn`.
        max_requests: Largest number of complete requests in progress in a worker.
        request_seconds: Seconds after which a request whose header or body is not complete is refused.
        stop_seconds: Seconds from SIGTERM until the process has ended.
    """

    model: Path
    host: str = LOOPBACK[0]
    token: str = ""
    workers: int = 1
    device: str = "cpu"
    backbone: str = ""
    pretrained: str = ""
    precision: str = AUTO
    learn: bool = False
    label_studio: str = ""
    label_studio_token: str = ""
    max_requests: int = MAX_REQUESTS
    request_seconds: float = REQUEST_SECONDS
    stop_seconds: float = STOP_SECONDS
