"""Every kind of file that the program reads, changed at random: it ends well or with one line, never with a traceback.

The changes are seeded, so a failure comes again. HEGRAPH_FUZZ=N tries N changes of each kind instead of a few.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open
from tensor_files import save_tensors

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.own import load_own_images
from trainers.hegraph.datasets.split_files import read_coop_pickle, read_drawn, read_split_file
from trainers.hegraph.describe.collect import Collection
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.features.tensor_file import is_whole, read_part, write_part
from trainers.hegraph.models.images import Reader
from trainers.hegraph.prompts.sentences import read_descriptions
from trainers.hegraph.results.records import collect as collect_records
from trainers.hegraph.results.records import find_records
from trainers.hegraph.training.checkpoints import CHECKPOINT
from trainers.hegraph.utils.errors import report
from trainers.hegraph.utils.files import hash_file

CHANGES = os.environ.get("HEGRAPH_FUZZ")  # of each kind of file; by default 1, and 6 with --runslow
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "2", f"{NODE}.MIN_STEPS", "0")
ODD = (
    None, True, -1, 0, 0.7, 1e400, float("nan"), -1e308, 10**30, 2**63, "", "word", "\ud800", "$x$", "a\nb", "x" * 5000,
    [], {}, [[]], [None], {"a": 1}, [[[[[[[[[[1]]]]]]]]]], "../../etc", "\0",
)  # fmt: skip


# Changes


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, zeroes or repeats a part."""
    start = rng.randrange(max(len(content), 1))
    end = min(len(content), start + rng.choice((1, 8, 100)))
    how = rng.choice(("cut", "flip", "zero", "repeat", "random", "empty", "front"))
    if how == "cut":
        return content[:start]
    if how == "front":
        return content[start:]
    if how == "empty":
        return b""
    middle = {
        "flip": bytes(byte ^ (1 << rng.randrange(8)) for byte in content[start:end]),
        "zero": bytes(end - start),
        "repeat": content[start:end] * rng.choice((2, 50)),
        "random": rng.randbytes(end - start),
    }[how]
    return content[:start] + middle + content[end:]


def odd(rng: random.Random) -> Any:
    """One of `ODD`, copied, since a later change may go into it."""
    return copy.deepcopy(rng.choice(ODD))


def change_value(value: Any, rng: random.Random) -> Any:
    """Replaces, removes or swaps something at a random place of nested dicts and lists."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 3))):
        place, key = value, None
        while isinstance(place, (dict, list)) and place and (key is None or rng.random() < 0.8):
            holder, key = place, rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place = holder[key]
        if key is None:
            return odd(rng)
        how = rng.choice(("replace", "replace", "remove", "swap", "add"))
        if how == "replace":
            holder[key] = odd(rng)
        elif how == "remove":
            del holder[key]
        elif how == "swap":
            other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], holder[key]
        elif isinstance(holder, dict):
            holder[str(odd(rng))] = odd(rng)
        else:
            holder.append(odd(rng))
    return value


def change_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another type, shape or content."""
    number = rng.choice((0, -1, 1e30, float("nan"), float("inf"), 99))
    flat = tensor.flatten()
    some = flat.clone()
    if len(some):
        number = number if some.is_floating_point() else rng.choice((-1, 99, 2**31 - 1))
        some[rng.randrange(len(some))] = torch.tensor(number)  # a number of Python's may be too large for old versions
    return rng.choice(
        (
            some.view(tensor.shape),
            torch.full_like(tensor, 0),
            torch.ones_like(tensor),
            tensor.t() if tensor.dim() == 2 else tensor[None],
            tensor[:0] if tensor.dim() else tensor[None],
            tensor[:-1] if tensor.dim() else tensor[None],
            flat,
            tensor.to(torch.complex64),
            tensor.to(torch.float64),
            tensor.to(torch.int8),
            tensor.to(torch.bool),
            tensor.flip(0) if tensor.dim() else tensor,
            torch.tensor(1.0),
        )
    )


def change_tensors(tensors: dict[str, torch.Tensor], metadata: dict, rng: random.Random) -> tuple[dict, dict]:
    name = rng.choice(list(tensors))
    how = rng.choice(("tensor", "tensor", "tensor", "remove", "swap", "metadata", "metadata"))
    if how == "tensor":
        tensors[name] = change_tensor(tensors[name], rng)
    elif how == "remove":
        del tensors[name]
    elif how == "swap":
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif metadata:
        key = rng.choice(list(metadata))
        try:
            metadata[key] = dump(change_value(json.loads(metadata[key]), rng))
        except ValueError:
            metadata[key] = rng.choice(("", "NaN", "[", "1e999", "-1", "word"))
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, metadata


def dump(value: Any) -> str:
    return json.dumps(value)  # NaN, Infinity and halves of pairs as Python writes them


def change_file(path: Path, rng: random.Random) -> None:
    """Changes a file in place by what fits its kind, or its bytes."""
    content, kind = path.read_bytes(), path.suffix
    if rng.random() < 0.3 or kind not in (".json", ".drawn", ".partial", ".jsonl", ".yaml", ".safetensors", ".pt"):
        path.write_bytes(change_bytes(content, rng))
    elif kind == ".jsonl":
        lines = content.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = dump(change_value(json.loads(lines[number]), rng))
        path.write_text("\n".join(lines) + "\n")
    elif kind == ".yaml":
        value = change_value(yaml.safe_load(content), rng)
        path.write_text(json.dumps(value))  # JSON is YAML, but for what follows a half of a pair
    elif kind == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        save_tensors(*((changed := change_tensors(tensors, metadata, rng))[0], path), changed[1])
    elif kind == ".pt":
        value = torch.load(path, weights_only=True)
        value = change_tensor(value, rng) if isinstance(value, torch.Tensor) else change_value(value, rng)
        torch.save(value, path)
    else:
        path.write_text(dump(change_value(json.loads(content), rng)))


# What reads the files


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Every kind of file, as the program writes it or users have it."""
    folder = tmp_path_factory.mktemp("made")
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    labels, names = torch.arange(4).repeat(3), ["ant", "bee", "cow", "dog"]
    tensors = {"train_features": unit(2, 12, 6), "train_labels": labels, "text_positive": unit(4, 6)}
    tensors |= {"val_features": unit(12, 6), "val_labels": labels.clone(), "text_negative": unit(4, 6)}
    tensors |= {"test_features": unit(12, 6), "test_labels": labels.clone()}
    about = {"classnames": json.dumps(names), "logit_scale": "100.0", "dataset": "Toy", "backbone": "none"}
    save_tensors(tensors, folder / "bank.safetensors", about)
    bank = str(folder / "bank.safetensors")
    assert main(["--features", bank, "--shots", "2", "--output-dir", str(folder / "run"), *QUICK]) == 0
    collect_records(find_records([folder / "run"]), folder / "all.jsonl")
    tip = folder / "tip"
    tip.mkdir()
    torch.save(unit(8, 6).t(), tip / "keys_2shots.pt")
    torch.save(F.one_hot(torch.arange(4).repeat_interleave(2), 4).half(), tip / "values_2shots.pt")
    for split in ("val", "test"):
        torch.save(unit(4, 6), tip / f"{split}_f.pt")
        torch.save(torch.arange(4), tip / f"{split}_l.pt")
    for name in ("positive", "negative"):
        torch.save(unit(4, 6), tip / f"text_{name}.pt")
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "names.txt").write_text("\n".join(names))
    rows = {split: [[f"{name}/{split}.jpg", y, name] for y, name in enumerate(names)] for split in ("train", "val")}
    (folder / "split.json").write_text(json.dumps(rows | {"test": [["ant/t.jpg", 0, "ant"]]}))
    drawn = {"seed": 1, "sha256": hash_file(folder / "split.json"), "state": random.Random(1).getstate()}
    (folder / "split.json.drawn").write_text(json.dumps(drawn))
    (folder / "described.json").write_text(json.dumps({name: [f"a {name}", f"the {name}"] for name in names}))
    entry = {"sentences": ["A small insect with six legs."], "tries": 1, "problems": []}
    (folder / "out.json.partial").write_text(json.dumps({"context": "photos", "classes": {"ant": entry}}))
    (folder / "labels.csv").write_text("path,label,split\na.png,ant,train\nb.png,bee,train\nc.png,ant,test\n")
    image = Image.effect_noise((20, 30), 50)
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "words"
    for suffix in ("png", "jpg", "gif", "tif", "webp"):
        image.save(folder / f"a.{suffix}", exif=exif) if suffix != "gif" else image.save(folder / "a.gif")
    write_part(folder / "part.safetensors", {"features": unit(1, 4, 6)}, "key")
    (folder / "own.yaml").write_text(
        yaml.safe_dump({"OPTIM": {"LR": 0.01, "MAX_EPOCH": 1}, "INPUT": {"RRCROP_SCALE": [0.1, 1.0]}, "SEED": 3})
    )
    (folder / "coop.pkl").write_bytes(b"\x80\x04}\x94.")
    return folder


def train(folder: Path, *more: str) -> int:
    arguments = ["--features", str(folder / "bank.safetensors"), "--shots", "2", "--output-dir", str(folder / "new")]
    return main([*arguments, *more, *QUICK])


def resume(folder: Path) -> int:
    return main(
        ["--features", str(folder / "bank.safetensors"), "--shots", "2", "--output-dir", str(folder / "cut"), *QUICK]
    )


def import_tip(folder: Path, names: str = "names.json") -> int:
    out = str(folder / "new.safetensors")
    return main(["features", "import-tip", str(folder / "tip"), "--out", out, "--classnames", str(folder / names)])


def results(folder: Path, command: str, *more: str) -> int:
    return main(["results", command, str(folder / "run"), *more])


def read_kept(folder: Path) -> None:
    """Reads kept features as an encoding does: those that are not whole are made anew."""
    path = folder / "part.safetensors"
    if is_whole(path, "key"):
        read_part(path)


def read_image(folder: Path, suffix: str) -> int:
    from torchvision import transforms as T

    reader = Reader(T.Compose([T.Resize(8), T.CenterCrop(8), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]), (8, 8))
    reader.read(folder / f"a.{suffix}")
    return 0


def function(call: Callable[[Path], object]) -> Callable[[Path], int]:
    return lambda folder: report(lambda: (call(folder), None)[1])


def describe(folder: Path) -> None:
    Collection(["ant", "bee", "cow", "dog"], folder / "out.json", "photos", 2, 2, 2)


MODEL = "run/model"
READERS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "bank, trained on": ("bank.safetensors", train),
    "bank, searched on": ("bank.safetensors", lambda folder: train(folder, "--select", "val")),
    "bank, predicted": (
        "bank.safetensors",
        lambda folder: main(["predict", str(folder / MODEL), "--features", str(folder / "bank.safetensors")]),
    ),
    "model configuration": (
        f"{MODEL}/config.json",
        lambda folder: main(["predict", str(folder / MODEL), "--features", str(folder / "bank.safetensors")]),
    ),
    "model tensors": (
        f"{MODEL}/model.safetensors",
        lambda folder: main(["predict", str(folder / MODEL), "--features", str(folder / "bank.safetensors")]),
    ),
    "model, tested": (
        f"{MODEL}/config.json",
        lambda folder: train(folder, "--eval-only", "--model-dir", str(folder / "run")),
    ),
    "record": ("run/result.json", lambda folder: results(folder, "compare")),
    "record, costs": ("run/result.json", lambda folder: results(folder, "complexity")),
    "record, curves": ("run/result.json", lambda folder: results(folder, "curves", "--out", str(folder / "curves"))),
    "record of a finished run": (
        "run/result.json",
        lambda folder: main(
            [
                "--features",
                str(folder / "bank.safetensors"),
                "--shots",
                "2",
                "--output-dir",
                str(folder / "run"),
                *QUICK,
            ]
        ),
    ),
    "collected records": ("all.jsonl", lambda folder: main(["results", "compare", str(folder / "all.jsonl")])),
    "predictions": (
        "run/predictions.safetensors",
        lambda folder: results(folder, "confusion", "--out", str(folder / "confusion")),
    ),
    "text nodes": ("run/text_nodes.safetensors", lambda folder: results(folder, "tsne", "--out", str(folder / "t"))),
    "checkpoint": (f"cut/{CHECKPOINT}", resume),
    "configuration": ("own.yaml", lambda folder: train(folder, "--config-file", str(folder / "own.yaml"))),
    "keys": ("tip/keys_2shots.pt", import_tip),
    "values": ("tip/values_2shots.pt", import_tip),
    "test labels": ("tip/test_l.pt", import_tip),
    "val features": ("tip/val_f.pt", import_tip),
    "text features": ("tip/text_positive.pt", import_tip),
    "class names": ("names.json", import_tip),
    "lines of class names": ("names.txt", lambda folder: import_tip(folder, "names.txt")),
    "split file": ("split.json", function(lambda folder: read_split_file(folder / "split.json"))),
    "drawn split": ("split.json.drawn", function(lambda folder: read_drawn(folder / "split.json"))),
    "descriptions": (
        "described.json",
        function(lambda folder: read_descriptions(folder / "described.json", ["ant", "bee", "cow", "dog"])),
    ),
    "unfinished descriptions": ("out.json.partial", function(describe)),
    "table of images": ("labels.csv", function(lambda folder: load_own_images(str(folder / "labels.csv")))),
    "kept features": ("part.safetensors", function(read_kept)),
    "pickle": ("coop.pkl", function(lambda folder: read_coop_pickle(folder / "coop.pkl", "data"))),
    **{
        f"image, {suffix}": (f"a.{suffix}", lambda folder, suffix=suffix: read_image(folder, suffix))
        for suffix in ("png", "jpg", "gif", "tif", "webp")
    },
}


@pytest.fixture(scope="module")
def interrupted(made: Path, stopped_at_checkpoint) -> Path:
    """A run that was interrupted after its first epoch."""
    with stopped_at_checkpoint(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.hegraph.training.loop.CHECKPOINT_SECONDS", -1.0)
        assert resume(made) == 130
    return made


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_was_changed_gives_a_result_or_one_line(
    kind, interrupted, tmp_path, capfd, caplog, recwarn, request
):
    name, read = READERS[kind]
    for number in range(int(CHANGES or (6 if request.config.getoption("--runslow") else 1))):
        folder = tmp_path / str(number)
        shutil.copytree(interrupted, folder)
        change_file(folder / name, random.Random(f"{kind} {number}"))
        capfd.readouterr()
        caplog.clear()
        code = read(folder)
        error = capfd.readouterr().err
        # Where a damaged model gives NaN, the rows say so, and the code is 1
        gives_nan = kind == "model tensors" and "the model gives NaN" in caplog.text
        assert code in (0, 2) or (code == 1 and gives_nan), (number, code, error)
        assert "Traceback" not in error
        if code == 2:
            last = error.splitlines()[-1]
            assert last.startswith("error: ")
            assert len(last) < 300
            assert ".tmp" not in last
            assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
        shutil.rmtree(folder)


def test_the_files_are_read_without_a_complaint_where_nothing_was_changed(interrupted, tmp_path, capfd):
    for number, (_, read) in enumerate(READERS.values()):
        folder = tmp_path / str(number)
        shutil.copytree(interrupted, folder)
        if "pkl" not in READERS[list(READERS)[number]][0]:
            assert read(folder) == 0, capfd.readouterr().err
    assert load_bank(interrupted / "bank.safetensors").dataset == "Toy"
