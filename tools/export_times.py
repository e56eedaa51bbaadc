"""Sizes and times of an exported ViT-B/32 in torch, ONNX Runtime, OpenVINO and the browser, as a table in Markdown.

    python -m tools.export_times FOLDER

`FOLDER` keeps the files of one random ViT-B/32 and the page of each. One image is classified at a time, on one thread.
All programs run in turns, and the medians are divided by that of torch. OpenVINO and Chromium must be installed.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F

from tests.apps.static.hosting import hosting, npm_runtime
from tests.apps.static.photos import save_photos
from tests.apps.static.vit import model_of, random_backbone
from tests.browser import Browser
from trainers.hegraph import Backbone
from trainers.hegraph.apps.static.page import write_page
from trainers.hegraph.models.export.int8 import write_int8
from trainers.hegraph.models.export.onnx_file import write_onnx
from trainers.hegraph.models.saved import SavedModel

ROUNDS = 7
FORMATS = ("float32", "float16", "int8")
INFER = """
const done = arguments[0], side = 224;
import("/page.js").then(async ({classify}) => {
    const canvas = new OffscreenCanvas(side, side);
    canvas.getContext("2d").fillRect(0, 0, side / 2, side);
    const blob = await canvas.convertToBlob(), start = performance.now();
    await classify(blob);
    done((performance.now() - start) / 1000);
});
"""


def write_formats(model: SavedModel, backbone: Backbone, folder: Path) -> None:
    """Write the missing pages, one for each number format."""
    with tempfile.TemporaryDirectory() as temporary:
        photos = save_photos(Path(temporary))
        images = [str(path) for path in [*photos, *photos]]
        writers: dict[str, Callable[[Path], object]] = {
            "float32": partial(write_onnx, model, backbone),
            "float16": partial(write_onnx, model, backbone, half=True),
            "int8": partial(write_int8, model, backbone, images=images),
        }
        for name, write in writers.items():
            if not (folder / name).exists():
                write_page(model, folder / name, npm_runtime(), write)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def programs(folder: Path, backbone: Backbone, stack: ExitStack) -> dict[tuple[str, str], Callable[[], float]]:
    """Functions that classify an image and return the seconds, by program and number format."""
    import openvino

    pixels = torch.randn(1, 3, 224, 224)
    inputs = {"pixel_values": pixels.numpy()}
    result = {("torch", "float32"): lambda: timed(partial(backbone.encode_images, pixels))}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    for name in FORMATS:
        file = str(folder / name / "model.onnx")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        result["ONNX Runtime", name] = lambda session=session: timed(partial(session.run, None, inputs))
        compiled = openvino.Core().compile_model(file, "CPU", hints)
        result["OpenVINO", name] = lambda compiled=compiled: timed(partial(compiled, inputs))
        address = stack.enter_context(hosting(folder / name))
        browser = Browser(Path(stack.enter_context(tempfile.TemporaryDirectory())), address)
        stack.callback(browser.driver.quit)
        browser.driver.set_script_timeout(120)
        browser.open(".drop")
        result["browser", name] = lambda browser=browser: browser.driver.execute_async_script(INFER)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    backbone = random_backbone()
    model = model_of(backbone, F.normalize(torch.randn(10, backbone.width), dim=1))
    write_formats(model, backbone, folder)
    with ExitStack() as stack:
        measured = programs(folder, backbone, stack)
        for run in measured.values():
            run()  # warms up
        times: dict[tuple[str, str], list[float]] = {key: [] for key in measured}
        for _ in range(ROUNDS):
            for key, run in measured.items():
                times[key].append(run())
    medians = {key: statistics.median(values) for key, values in times.items()}
    lines = ["| weights | size | torch | ONNX Runtime | OpenVINO | browser |", "|---|---:|---:|---:|---:|---:|"]
    for name in FORMATS:
        size = (folder / name / "model.onnx").stat().st_size / 1e6
        cells = [medians.get((program, name)) for program in ("torch", "ONNX Runtime", "OpenVINO", "browser")]
        ratios = ["" if cell is None else f"{cell / medians['torch', 'float32']:.2f}" for cell in cells]
        lines.append(f"| {name} | {size:.0f} MB | {' | '.join(ratios)} |")
    lines.append(f"\ntorch: {1000 * medians['torch', 'float32']:.0f} ms")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
