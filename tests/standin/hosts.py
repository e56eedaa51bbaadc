"""CoOp checkouts with Dassl, real or substitutes, and images for the tests of the Dassl trainer.

The real ones are in the folders DASSL_ROOT and COOP_ROOT, which are only read.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from standin.forkserver import IMPORTED, run

from tools.free_ports import free_port

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent
KINDS = ("standin", "real")
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(list(IMPORTED))  # packages that are not installed are ignored
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "6", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2", "OPTIM.LR", "0.01")
UNEQUAL = ("host", "seconds", "peak_memory_mb", "finished_at")  # keys of a record that differ between hosts
SPLIT_FILE = Path("caltech-101") / "split_zhou_Caltech101.json"


def find(kind: str) -> tuple[Path, Path]:
    """Folders of Dassl and of a clean CoOp. Skips the test if the real ones are not available."""
    if kind == "standin":
        return STANDIN, STANDIN / "coop"
    dassl, coop = os.environ.get("DASSL_ROOT"), os.environ.get("COOP_ROOT")
    if not dassl or not coop:
        pytest.skip("DASSL_ROOT and COOP_ROOT are not set, which name the folders of the real Dassl and CoOp")
    missing = [name for name in ("tabulate", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the real Dassl needs packages that this interpreter lacks: {', '.join(missing)}")
    return Path(dassl), Path(coop)


def copy_coop(kind: str, folder: Path) -> Path:
    """Copy a clean CoOp checkout."""
    ignored = shutil.ignore_patterns(".git", "__pycache__", "output")
    return Path(shutil.copytree(find(kind)[1], folder, ignore=ignored))


def run_install(coop: Path | str, *flags: str, source: Path = ROOT, **options: Any) -> subprocess.CompletedProcess:
    command = ["bash", str(source / "scripts" / "hegraph" / "install.sh"), str(coop), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **options)


def install(coop: Path | str, *flags: str, **options: Any) -> Path:
    """Install our package into a CoOp checkout; returns the checkout."""
    ran = run_install(coop, *flags, **options)
    assert ran.returncode == 0, ran.stderr
    return Path(coop)


def contents(folder: Path) -> dict[str, bytes]:
    """Contents of all files of a folder and of its links, except compiled Python."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if "__pycache__" not in f.parts}


def make_images(root: Path) -> None:
    """Write Caltech101 (5 classes of 12 images) and ImageNet (4 of 6 and 3) in CoOp's layout, without a split file."""
    random = np.random.default_rng(3)

    def images(*paths: Path) -> None:
        colour = random.integers(0, 256, 3)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(colour + random.normal(0, 40, (20, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)

    for name in ("ant", "barrel", "brain", "camera", "crab"):
        folder = root / "caltech-101" / "101_ObjectCategories" / name
        images(*(folder / f"image_{number:04d}.jpg" for number in range(12)))
    names = {"n01440764": "tench", "n01443537": "goldfish", "n01514668": "rooster", "n01518878": "ostrich"}
    for wordnet_id in names:
        folders = [(root / "imagenet" / "images" / split / wordnet_id, n) for split, n in (("train", 6), ("val", 3))]
        images(*(folder / f"{number}.JPEG" for folder, count in folders for number in range(count)))
    (root / "imagenet" / "classnames.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))


def write_split(root: Path) -> None:
    """Write the split file of Caltech101: 6 training, 2 validation and 4 test images per class."""
    folder = root / "caltech-101" / "101_ObjectCategories"
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, of_class in enumerate(sorted(folder.iterdir())):
        files = sorted(of_class.iterdir())
        for split, part in (("train", files[:6]), ("val", files[6:8]), ("test", files[8:])):
            rows[split] += [[f"{of_class.name}/{file.name}", label, of_class.name] for file in part]
    (root / SPLIT_FILE).write_text(json.dumps(rows))


@dataclass(frozen=True)
class Ran:
    """Result of a command: exit codes of its processes, output, error output, and output folder."""

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
        """Results that must not depend on the host: bytes of adapter, model and split, and the record."""
        record = {key: value for key, value in self.record.items() if key not in UNEQUAL}
        names = ("adapter.safetensors", "model/model.safetensors", "split.json")
        files = {name: self.folder / name for name in names}
        return record | {name: file.read_bytes() if file.exists() else None for name, file in files.items()}

    @property
    def error(self) -> str:
        """Error line of a command with exit code 2."""
        assert self.code == 2, self.err
        *_, line = self.err.splitlines()
        assert line.startswith("error: ") and "Traceback" not in self.err
        return line


class Host:
    """CoOp checkout with our package, a Dassl, and images."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.dassl, _ = find(kind)
        self.checkout = install(copy_coop(kind, folder / "CoOp"))
        make_images(folder / "bare")
        self.images = self.images_again("images")
        self.count = 0

    def images_again(self, name: str, split: bool = True) -> Path:
        """Copy the images, without files of earlier runs."""
        images = Path(shutil.copytree(self.folder / "bare", self.folder / name))
        if split:
            write_split(images)
        return images

    def start(
        self,
        program: str,
        *arguments: object,
        folder: Path | None = None,
        checkout: Path | None = None,
        path: Sequence[Path] | None = None,
        die_after_epoch: int = 0,
        processes: int = 1,
    ) -> Ran:
        """Run `python -m PROGRAM`, or `python PROGRAM` if it ends in .py, in the checkout."""
        self.count += 1
        paths = [str(entry) for entry in (checkout or self.checkout, *((self.dassl,) if path is None else path))]
        words = [program, *map(str, arguments)]
        logs = [self.folder / f"log{self.count}.{rank}" for rank in range(processes)]
        started = [
            FORKSERVER.Process(target=run, args=(words, paths, str(log), ranks, die_after_epoch))
            for log, ranks in zip(logs, as_torchrun_sets(processes))
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=900)
        out, err = ("".join(Path(f"{log}.{end}").read_text() for log in logs) for end in ("out", "err"))
        return Ran([process.exitcode for process in started], out, err, folder or self.folder)

    def run(
        self,
        host: str,
        name: str,
        *opts: object,
        data: str = "caltech101",
        shots: int = 2,
        seed: int = 1,
        images: Path | None = None,
        flags: Sequence[object] = (),
        **how: Any,
    ) -> Ran:
        """Run a short training with mini by `trainers.hegraph --host HOST`, or by CoOp's train.py if `host` names it.

        The output folder is `name`. Further arguments are those of `start`.
        """
        out = self.folder / "output" / name
        words = [host] if host == "train.py" else ["trainers.hegraph", "--host", host]
        words += ["--root", images or self.images, "--output-dir", out, "--trainer", "HeGraphAdapter", "--seed", seed]
        words += ["--dataset-config-file", f"configs/datasets/{data}.yaml"]
        words += ["--config-file", "configs/trainers/HeGraphAdapter/mini.yaml", *flags, *QUICK]
        words += ["DATASET.NUM_SHOTS", shots, f"{NODE}.FEATURES.DIR", self.folder / "features", *opts]
        return self.start(*words, folder=out, **how)

    def both(self, name: str, *opts: object, **how: Any) -> dict[str, Ran]:
        """Run the same training in both hosts, and check that the results are equal."""
        ran = {host: self.run(host, f"{name}-{host}", *opts, **how) for host in ("dassl", "alone")}
        assert [one.record["host"] for one in ran.values()] == ["dassl", "alone"]
        assert ran["dassl"].result == ran["alone"].result
        return ran

    def prints(self, program: str) -> str:
        """Run a Python program in the checkout; returns its last line of output."""
        script = self.checkout / "script.py"
        script.write_text(program)
        ran = self.start("script.py")
        script.unlink()
        assert ran.code == 0, ran.err
        return ran.out.splitlines()[-1]


def as_torchrun_sets(processes: int) -> list[dict[str, str]]:
    """Environment variables of each process, as torchrun sets them; none for a single process."""
    if processes == 1:
        return [{}]
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    return [of_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
