"""HTTP server: throughput with several clients against `predict`, latency of one image, and many damaged requests.

The server, its clients and the command run in one process, so the clients' work counts against the server. The ViT has
random weights, which take as long as trained ones.
"""

import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.hegraph.features.backbones.bundles import CONFIG_NAME, FOLDER, WEIGHTS_NAMES
from trainers.hegraph.features.backbones.identity import MINI_NAME
from trainers.hegraph.features.backbones.loading import load_backbone
from trainers.hegraph.models.folder import save_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict.files import image_paths
from trainers.hegraph.models.predict.prediction import default_batch_size, image_rows, write_rows

from .predict_images import random_model, write_photographs, write_scans
from .report import Report
from .timing import alternate, ratio

SMALL = {"model": MINI_NAME, "images": 4, "repeats": 1, "requests": 40, "warm_up": 20}
CLIENTS = 8
DAMAGED = 100  # one request of this number is damaged
WEIGHTS = WEIGHTS_NAMES[0]


def run(
    model: str = "ViT-B-32", images: int = 128, repeats: int = 5, requests: int = 10_000, warm_up: int = 2000
) -> Report:
    report = Report("HTTP server", ["what", "images/s or s"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compared = MINI_NAME if model == MINI_NAME else write_random(folder / "random", model)
        compare(report, folder / "model", compared, write_photographs(folder / "photographs", images), repeats)
        endure(report, folder / "mini", write_scans(folder / "digits", 100), requests, warm_up)
    return report


def write_random(folder: Path, model: str) -> str:
    """Writes a model of random weights; returns its name."""
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    save_file(open_clip.create_model(model, load_weights=False).state_dict(), folder / WEIGHTS)
    return f"{FOLDER}{folder}"


def save_random(folder: Path, backbone_name: str) -> ImageModel:
    """Saves a model of random weights for a backbone."""
    backbone = load_backbone(backbone_name)
    saved = random_model(backbone, backbone.width)
    named = saved.backbone.model_copy(update={"model": backbone_name})
    save_model(saved.model_copy(update={"backbone": named}), folder)
    return ImageModel.load(folder, precision="fp32")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves a model folder in a thread; gives the address."""
    import uvicorn

    from trainers.hegraph.apps.serve.app import create_app  # the extra "serve"
    from trainers.hegraph.apps.serve.settings import Settings

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = create_app(Settings(model=folder, precision="fp32"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1/predict/files"
    finally:
        server.should_exit = True
        thread.join()


def compare(report: Report, folder: Path, backbone: str, photographs: Path, repeats: int) -> None:
    """Adds throughput and latency, against the command and against the steps of a bare script."""
    import httpx  # the extra "dev"

    model = save_random(folder, backbone)
    paths, contents = [*image_paths([str(photographs)])], [path.read_bytes() for path in photographs.iterdir()]
    out = folder.parent / "rows.csv"
    batch = default_batch_size(model.backbone.input_size)
    with serving(folder) as address, httpx.Client(timeout=120) as client, ThreadPoolExecutor(CLIENTS) as clients:

        def send(content: bytes) -> None:
            client.post(address, files={"files": content}).raise_for_status()

        def bare() -> None:
            for path in paths[:8]:
                with torch.no_grad(), Image.open(path) as image:
                    pixels = model.backbone.preprocess(image.convert("RGB"))
                    model.model.classifier.logits(model.backbone.encode_images(pixels[None])).topk(5)

        seconds = alternate(
            {
                "predict": lambda: write_rows(image_rows(model, model.encode(paths, batch)), out, "csv"),
                "eight clients": lambda: list(clients.map(send, contents)),
                "bare script, 8 images": bare,
                "one client, 8 images": lambda: [send(content) for content in contents[:8]],
            },
            repeats,
        )
    predicted, served, alone, one = seconds.values()
    report.rows += [["predict", len(paths) / statistics.median(predicted)]]
    report.rows += [["server, eight clients", len(paths) / statistics.median(served)]]
    report.rows += [["bare script, one image", statistics.median(alone) / min(len(paths), 8)]]
    report.rows += [["server, one image", statistics.median(one) / min(len(paths), 8)]]
    report.at_least("server over predict", ratio(predicted, served), 0.85)
    report.at_most("one image over a bare script", ratio(one, alone), 1.3)


def endure(report: Report, folder: Path, scans: Path, requests: int, warm_up: int) -> None:
    """Adds the answers and the memory of many requests, some of them damaged."""
    import httpx  # the extra "dev"

    model = save_random(folder, MINI_NAME)
    contents = [path.read_bytes() for path in sorted(scans.iterdir())]
    rows = image_rows(model, model.encode(map(str, sorted(scans.iterdir())), len(contents)), top=1)
    expected = [row.top[0][0] for batch in rows for row in batch]
    wrong = []
    with serving(folder) as address, httpx.Client(timeout=120) as client, ThreadPoolExecutor(CLIENTS) as clients:

        def send(number: int) -> None:
            damaged, image = number % DAMAGED == 0, number % len(contents)
            content = contents[image][: len(contents[image]) // 2] if damaged else contents[image]
            answer = client.post(address, files={"files": content}, params={"top": 1})
            [row] = answer.json()["predictions"] if answer.status_code == 200 else [{"error": answer.text, "top": []}]
            if bool(row["error"]) != damaged or (not damaged and row["top"][0]["class"] != expected[image]):
                wrong.append(row)

        list(clients.map(send, range(warm_up)))
        before = resident_memory()
        list(clients.map(send, range(requests)))
        growth = resident_memory() / before
    report.rows += [["requests, one in a hundred damaged", requests], ["wrong answers", len(wrong)]]
    report.at_most("wrong answers", len(wrong), 0)
    report.at_most("memory after over before the requests", growth, 1.05)


def resident_memory() -> float:
    """Resident memory of this process in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
