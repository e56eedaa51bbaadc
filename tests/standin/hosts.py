"""What the tests of the Dassl side run: a CoOp checkout and a Dassl, real or stand-in, and images for them.

The real ones are taken from DASSL_ROOT and COOP_ROOT, which are never written to.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standin.forkserver import IMPORTED, run

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent
KINDS = ("standin", "real")
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(list(IMPORTED))  # those that are there
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "6", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2", "OPTIM.LR", "0.01")
UNEQUAL = ("host", "seconds", "peak_memory_mb", "finished_at")  # keys of a record that two hosts need not share
SPLIT_FILE = Path("caltech-101") / "split_zhou_Caltech101.json"


def find(kind: str) -> tuple[Path, Path]:
    """The folders of Dassl and of a clean CoOp; skips the test where the real ones are not at hand."""
    if kind == "standin":
        return STANDIN, STANDIN / "coop"
    dassl, coop = os.environ.get("DASSL_ROOT"), os.environ.get("COOP_ROOT")
    if not dassl or not coop:
        pytest.skip("DASSL_ROOT and COOP_ROOT are not set: the real Dassl and CoOp are not here")
    missing = [name for name in ("tabulate", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the real Dassl needs packages that this interpreter lacks: {', '.join(missing)}")
    return Path(dassl), Path(coop)


def copy_coop(kind: str, folder: Path) -> Path:
    """A clean CoOp checkout of one's own."""
    ignored = shutil.ignore_patterns(".git", "__pycache__", "output")
    return Path(shutil.copytree(find(kind)[1], folder, ignore=ignored))


def install(coop: Path | str, *flags: str, source: Path = ROOT, **options) -> subprocess.CompletedProcess:
    command = ["bash", str(source / "scripts" / "hegraph" / "install.sh"), str(coop), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, links followed, compiled Python aside."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if "__pycache__" not in f.parts}


def make_images(root: Path) -> None:
    """Caltech101 with 5 classes of 12 and ImageNet with 4 of 6 and 3, as CoOp lays them out; no split file."""
    random = np.random.default_rng(3)

    def image(path: Path, colour: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(colour + random.normal(0, 40, (20, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)

    for name in ("ant", "barrel", "brain", "camera", "crab"):
        colour = random.integers(0, 256, 3)
        for number in range(12):
            image(root / "caltech-101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg", colour)
    imagenet = root / "imagenet"
    names = {"n01440764": "tench", "n01443537": "goldfish", "n01514668": "rooster", "n01518878": "ostrich"}
    for wordnet_id in names:
        colour = random.integers(0, 256, 3)
        for split, count in (("train", 6), ("val", 3)):
            for number in range(count):
                image(imagenet / "images" / split / wordnet_id / f"{split}_{number}.JPEG", colour)
    (imagenet / "classnames.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))


def write_split(root: Path) -> None:
    """Caltech101's split file: of each class 6 images for training, 2 for validation, 4 for testing."""
    folder = root / "caltech-101" / "101_ObjectCategories"
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, of_class in enumerate(sorted(folder.iterdir())):
        files = sorted(of_class.iterdir())
        for split, part in (("train", files[:6]), ("val", files[6:8]), ("test", files[8:])):
            rows[split] += [[f"{of_class.name}/{file.name}", label, of_class.name] for file in part]
    (root / SPLIT_FILE).write_text(json.dumps(rows))


@dataclass(frozen=True)
class Ran:
    """What became of one command: exit code (of each process: `codes`), output, output folder."""

    codes: list[int]
    out: str
    err: str
    folder: Path

    @property
    def code(self) -> int:
        return self.codes[0]

    @property
    def record(self) -> dict:
        assert self.code == 0, self.err
        return json.loads((self.folder / "result.json").read_text())

    @property
    def result(self) -> dict:
        """All that must not depend on the host: adapter, model and split to the byte, and the record."""
        record = {key: value for key, value in self.record.items() if key not in UNEQUAL}
        names = ("adapter.safetensors", "model/model.safetensors", "split.json")
        files = {name: self.folder / name for name in names}
        return record | {name: file.read_bytes() if file.exists() else None for name, file in files.items()}

    @property
    def error(self) -> str:
        """The one line of a command that failed as it should."""
        assert self.code == 2, self.err
        *_, line = self.err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in self.err
        return line


class Host:
    """A CoOp checkout with our package in it, a Dassl and images."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.dassl, _ = find(kind)
        self.checkout = copy_coop(kind, folder / "CoOp")
        installed = install(self.checkout)
        assert installed.returncode == 0, installed.stderr
        self.bare_images = folder / "bare"
        make_images(self.bare_images)
        self.images = Path(shutil.copytree(self.bare_images, folder / "images"))
        write_split(self.images)
        self.count = 0

    def images_again(self, name: str, split: bool = True) -> Path:
        """A copy of the images in which nobody has selected anything yet."""
        images = Path(shutil.copytree(self.bare_images, self.folder / name))
        if split:
            write_split(images)
        return images

    def start(
        self,
        program: str,
        *arguments: str,
        folder: Path | None = None,
        checkout: Path | None = None,
        path: tuple[Path, ...] | None = None,
        die_after_epoch: int = 0,
        processes: int = 1,
    ) -> Ran:
        """Runs `python -m PROGRAM`, or `python PROGRAM` if it ends in .py, in the checkout."""
        self.count += 1
        log = str(self.folder / f"log{self.count}")
        paths = [str(entry) for entry in (checkout or self.checkout, *((self.dassl,) if path is None else path))]
        ranks = [{}]
        if processes > 1:  # what torchrun sets
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            of_all = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = [of_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        started = []
        for rank, environment in enumerate(ranks):
            job = [program, *map(str, arguments)], paths, log + (f".{rank}" if rank else ""), environment
            started.append(FORKSERVER.Process(target=run, args=(*job, die_after_epoch)))
            started[-1].start()
        for process in started:
            process.join(timeout=900)
        codes = [process.exitcode for process in started]
        return Ran(codes, Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text(), folder or self.folder)

    def arguments(
        self, out: Path, *opts: object, data: str = "caltech101", shots: int | None = 2, seed: int | None = 1,
        images: Path | None = None, config: Path | None = None, flags: tuple[object, ...] = (),
    ) -> list[object]:  # fmt: skip
        """CoOp's flags and options of a quick run with the mini backbone."""
        config = config or Path("configs") / "trainers" / "HeGraphAdapter" / "mini.yaml"
        return [
            *("--root", images or self.images, "--output-dir", out, "--trainer", "HeGraphAdapter"),
            *("--dataset-config-file", f"configs/datasets/{data}.yaml", "--config-file", config),
            *(() if seed is None else ("--seed", seed)),
            *flags,
            *QUICK,
            *(() if shots is None else ("DATASET.NUM_SHOTS", shots)),
            *(f"{NODE}.FEATURES.DIR", self.folder / "features"),
            *opts,
        ]

    def run(
        self, host: str, name: str, *opts: object, die_after_epoch: int = 0, processes: int = 1,
        checkout: Path | None = None, path: tuple[Path, ...] | None = None, **arguments,
    ) -> Ran:  # fmt: skip
        """`python -m trainers.hegraph --host HOST`, with its output in the folder `name`."""
        out = self.folder / "output" / name
        flags = ("--host", host, *arguments.pop("flags", ()))
        return self.start(
            "trainers.hegraph", *self.arguments(out, *opts, flags=flags, **arguments), folder=out,
            checkout=checkout, path=path, die_after_epoch=die_after_epoch, processes=processes,
        )  # fmt: skip


@contextmanager
def open_host(kind: str, folder: Path) -> Iterator[Host]:
    """A host, in whose environment is nothing of ours."""
    find(kind)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Host(kind, folder)
