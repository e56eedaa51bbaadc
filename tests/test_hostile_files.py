"""Every kind of file that the program reads, changed at random: it ends well or with one line, never with a traceback.

The changes are seeded, so a failure comes again. HEGRAPH_FUZZ=N tries N changes of each kind instead of a few.
"""

import copy
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.loading import load_own_images
from trainers.hegraph.datasets.splits import read_coop_pickle, read_random_split, read_split_file
from trainers.hegraph.features.cache import is_valid, write_features
from trainers.hegraph.features.images import ImageReader
from trainers.hegraph.features.prompts.collect import Collection
from trainers.hegraph.features.prompts.sentences import read_descriptions
from trainers.hegraph.method.training.loop import CHECKPOINT
from trainers.hegraph.results.records import collect as collect_records, find_records
from trainers.hegraph.utils.command_line import run_cli
from trainers.hegraph.utils.files import hash_file
from trainers.hegraph.utils.reading import read_tensors

CHANGES = os.environ.get("HEGRAPH_FUZZ")  # of each kind of file; by default 1, and 6 with --runslow
VOC_LIST = "ImageSets/Main/train.txt"
NAMES = ["ant", "bee", "cow", "dog", "elk"]  # of the tiny bank
ODD = (
    None, True, -1, 0, 0.7, 1e400, float("nan"), -1e308, 10**30, 2**63, "", "word", "\ud800", "$x$", "a\nb", "x" * 5000,
    [], {}, [[]], [None], {"a": 1}, [[[[[[[[[[1]]]]]]]]]], "../../etc", "\0",
)  # fmt: skip


# Changes


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, zeroes or repeats a part."""
    start = rng.randrange(max(len(content), 1))
    end = min(len(content), start + rng.choice((1, 8, 100)))
    part = content[start:end]
    flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in part)
    parts = (flipped, bytes(len(part)), part * 2, part * 50, rng.randbytes(len(part)))
    changed = [content[:start] + new + content[end:] for new in parts]
    return rng.choice([content[:start], content[start:], b"", *changed])


def change_value(value: Any, rng: random.Random) -> Any:
    """Replaces, removes or adds something at up to three random places of nested dicts and lists."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 3))):
        place, key = value, None
        while isinstance(place, (dict, list)) and place and (key is None or rng.random() < 0.8):
            holder, key = place, rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place = holder[key]
        new = copy.deepcopy(rng.choice(ODD))  # a later change may go into it
        if key is None:
            return new
        how = rng.choice(("replace", "replace", "remove", "add"))
        if how == "replace":
            holder[key] = new
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[str(rng.choice(ODD))] = new
        else:
            holder.append(new)
    return value


def change_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another type, shape or content."""
    some = tensor.flatten().clone()
    if len(some):
        numbers = (0, -1, 1e30, float("nan"), float("inf"), 99) if some.is_floating_point() else (-1, 99, 2**31 - 1)
        some[rng.randrange(len(some))] = torch.tensor(rng.choice(numbers))
    changed = [some.view(tensor.shape), torch.zeros_like(tensor), torch.ones_like(tensor), some, torch.tensor(1.0)]
    changed += [tensor[None], *map(tensor.to, (torch.float64, torch.int8, torch.bool))]
    if tensor.dim():
        changed += [tensor[:0], tensor[:-1], tensor.flip(0), tensor.transpose(0, -1)]
    return rng.choice(changed)


def change_tensors(path: Path, rng: random.Random) -> None:
    """Changes or removes a tensor of a `.safetensors` file, or changes an entry of its metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    tensors = load_file(path)
    name, how = rng.choice(list(tensors)), rng.choice(("tensor", "tensor", "tensor", "remove", "metadata", "metadata"))
    if how == "tensor":
        tensors[name] = change_tensor(tensors[name], rng)
    elif how == "remove":
        del tensors[name]
    elif metadata:
        key = rng.choice(list(metadata))
        try:
            metadata[key] = json.dumps(change_value(json.loads(metadata[key]), rng))
        except ValueError:
            metadata[key] = rng.choice(("", "NaN", "[", "1e999", "-1", "word"))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)


def change_file(path: Path, rng: random.Random) -> None:
    """Change a file in place, by its format or by its bytes."""
    content, kind = path.read_bytes(), path.suffix
    if rng.random() < 0.3 or kind not in (".json", ".drawn", ".partial", ".jsonl", ".yaml", ".safetensors", ".pt"):
        path.write_bytes(change_bytes(content, rng))
    elif kind == ".jsonl":
        lines = content.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(change_value(json.loads(lines[number]), rng))
        path.write_text("\n".join(lines) + "\n")
    elif kind == ".safetensors":
        change_tensors(path, rng)
    elif kind == ".pt":
        value = torch.load(path, weights_only=True)
        torch.save(change_tensor(value, rng) if isinstance(value, torch.Tensor) else change_value(value, rng), path)
    else:  # JSON is YAML, except after half of a surrogate pair
        value = yaml.safe_load(content) if kind == ".yaml" else json.loads(content)
        path.write_text(json.dumps(change_value(value, rng)))


# Readers of files


@pytest.fixture(scope="module")
def made(tmp_path_factory, finished_run_once, tiny_bank_file, stopped_at_checkpoint, unit_features) -> Path:
    """Every kind of file, as the program writes it or users have it; and a run that was interrupted."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(tiny_bank_file, folder / "bank.safetensors")
    shutil.copytree(finished_run_once, folder / "run")
    collect_records(find_records([folder / "run"]), folder / "all.jsonl")
    with stopped_at_checkpoint(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.hegraph.method.training.loop.CHECKPOINT_SECONDS", -1.0)
        assert command(TRAIN.replace("/new", "/cut"))(folder) == 130
    (folder / "tip").mkdir()
    labels = torch.arange(5)
    tensors = {"keys_2shots": unit_features(10, 6).t(), "values_2shots": F.one_hot(labels.repeat(2), 5).half()}
    tensors |= {f"{split}_f": unit_features(5, 6) for split in ("val", "test")} | {"val_l": labels, "test_l": labels}
    tensors |= {f"text_{name}": unit_features(5, 6, seed=1) for name in ("positive", "negative")}
    for name, tensor in tensors.items():
        torch.save(tensor, folder / "tip" / f"{name}.pt")
    rows = {split: [[f"{name}/{split}.jpg", y, name] for y, name in enumerate(NAMES)] for split in ("train", "val")}
    entry = {"sentences": ["A small insect with six legs."], "tries": 1, "problems": []}
    values = {
        "names.json": NAMES,
        "split.json": rows | {"test": [["ant/t.jpg", 0, "ant"]]},
        "described.json": {name: [f"a {name}", f"the {name}"] for name in NAMES},
        "out.json.partial": {"context": "photos", "classes": {"ant": entry}},
        "instances_train.json": {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
            "annotations": [{"image_id": 1, "category_id": 3}],
            "categories": [{"id": 3, "name": "ant"}, {"id": 4, "name": "bee"}],
        },
        "own.yaml": {"OPTIM": {"LR": 0.01, "MAX_EPOCH": 1}, "INPUT": {"RRCROP_SCALE": [0.1, 1.0]}, "SEED": 3},
    }
    for name, value in values.items():
        (folder / name).write_text(json.dumps(value))
    drawn = {"seed": 1, "sha256": hash_file(folder / "split.json"), "state": random.Random(1).getstate()}
    (folder / "split.json.drawn").write_text(json.dumps(drawn))
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "labels.csv").write_text("path,label,split\na.png,ant,train\nb.png,bee,train\nc.png,ant,test\n")
    (folder / "coop.pkl").write_bytes(b"\x80\x04}\x94.")
    (folder / "voc" / "JPEGImages").mkdir(parents=True)
    for place, content in (("Annotations/1.xml", "<a><object><name>ant</name></object></a>"), (VOC_LIST, "1  1\n")):
        (folder / "voc" / place).parent.mkdir(parents=True)
        (folder / "voc" / place).write_text(content)
    image = Image.effect_noise((20, 30), 50)
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "words"
    for suffix in IMAGES:
        image.save(folder / f"a.{suffix}", **({} if suffix == "gif" else {"exif": exif}))
    (folder / "a.cls").write_text("ant")
    with tarfile.open(folder / "train.tar", "w") as tar:
        for name in ("a.png", "a.cls"):
            tar.add(folder / name, name)
    write_features(folder / "part.safetensors", {"features": unit_features(1, 4, 6)}, "key")
    return folder


def command(line: str) -> Callable[[Path], int]:
    """Runs a command line, in which @ is the folder of the files."""
    return lambda folder: main(line.replace("@", str(folder)).split())


def function(name: str, call: Callable[[Path], object]) -> tuple[str, Callable[[Path], int]]:
    """The name of a file, and a function that reads it in a folder as a command does."""
    return name, lambda folder: run_cli(lambda: (call(folder / name), None)[1])


def read_cached(path: Path) -> None:
    """Read cached features as an encoding does, which encodes damaged ones again."""
    if is_valid(path, "key"):
        read_tensors(path, "encoded features")


def read_image(path: Path) -> None:
    from torchvision import transforms as T

    steps = T.Compose([T.Resize(8), T.CenterCrop(8), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])
    ImageReader(steps).read(path)


IMAGES = ("png", "jpg", "gif", "tif", "webp")
OWN_IMAGES = ("labels.csv", "instances_train.json", "train.tar")
QUICK = "OPTIM.MAX_EPOCH 3 OPTIM.WARMUP_EPOCH 0 TRAINER.HEGRAPHADAPTER.MIN_STEPS 0"  # as of the finished run
TRAIN = f"--features @/bank.safetensors --shots 2 --seed 1 --output-dir @/new {QUICK}"
PREDICT = "predict @/run/model --features @/bank.safetensors"
TIP = "features import-tip @/tip --out @/new.safetensors --classnames @/names"
READERS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "bank, trained on": ("bank.safetensors", command(TRAIN)),
    "bank, searched on": ("bank.safetensors", command(f"--select val {TRAIN}")),
    "bank, predicted": ("bank.safetensors", command(PREDICT)),
    "model configuration": ("run/model/config.json", command(PREDICT)),
    "model tensors": ("run/model/model.safetensors", command(PREDICT)),
    "model, tested": ("run/model/config.json", command(f"--eval-only --model-dir @/run {TRAIN}")),
    "record": ("run/result.json", command("results compare @/run")),
    "record, costs": ("run/result.json", command("results complexity @/run")),
    "record, curves": ("run/result.json", command("results curves @/run --out @/curves")),
    "record of a finished run": ("run/result.json", command(TRAIN.replace("/new", "/run"))),
    "collected records": ("all.jsonl", command("results compare @/all.jsonl")),
    "predictions": ("run/predictions.safetensors", command("results report @/run --out @/run.html")),
    "text nodes": ("run/text_nodes.safetensors", command("results tsne @/run --out @/t")),
    "checkpoint": (f"cut/{CHECKPOINT}", command(TRAIN.replace("/new", "/cut"))),
    "configuration": ("own.yaml", command(f"--config-file @/own.yaml {TRAIN}")),
    "keys": ("tip/keys_2shots.pt", command(f"{TIP}.json")),
    "values": ("tip/values_2shots.pt", command(f"{TIP}.json")),
    "test labels": ("tip/test_l.pt", command(f"{TIP}.json")),
    "val features": ("tip/val_f.pt", command(f"{TIP}.json")),
    "text features": ("tip/text_positive.pt", command(f"{TIP}.json")),
    "class names": ("names.json", command(f"{TIP}.json")),
    "lines of class names": ("names.txt", command(f"{TIP}.txt")),
    "split file": function("split.json", lambda path: read_split_file(path, "")),
    "random split": function("split.json.drawn", lambda path: read_random_split(path.with_suffix(""))),
    "descriptions": function("described.json", lambda path: read_descriptions(path, NAMES)),
    "unfinished descriptions": function(
        "out.json.partial", lambda path: Collection(NAMES, path.with_suffix(""), "photos", 2, 2, "m")
    ),
    **{f"own images, {name}": function(name, lambda path: load_own_images(str(path))) for name in OWN_IMAGES},
    "list of Pascal VOC": function(f"voc/{VOC_LIST}", lambda path: load_own_images(str(path.parents[2]))),
    "annotation of Pascal VOC": function("voc/Annotations/1.xml", lambda path: load_own_images(str(path.parents[1]))),
    "cached features": function("part.safetensors", read_cached),
    "pickle": function("coop.pkl", lambda path: read_coop_pickle(path, "data")),
    **{f"image, {suffix}": function(f"a.{suffix}", read_image) for suffix in IMAGES},
}


@pytest.mark.parametrize("kind", READERS)
def test_changed_file_gives_result_or_one_line(kind, made, tmp_path, capfd, caplog, request):
    name, read = READERS[kind]
    for number in range(int(CHANGES or (6 if request.config.getoption("--runslow") else 1)) + 1):
        folder = tmp_path / str(number)
        shutil.copytree(made, folder)
        if number:
            change_file(folder / name, random.Random(f"{kind} {number}"))
        capfd.readouterr()
        caplog.clear()
        code = read(folder)
        error = capfd.readouterr().err
        # A damaged model may predict NaN: an error in the row, and exit code 1
        gives_nan = kind == "model tensors" and "the model predicts NaN" in caplog.text
        assert code in (0, 2) or (code == 1 and gives_nan), (number, code, error)
        assert "Traceback" not in error
        if code == 2:
            assert number or kind == "pickle", error  # such a pickle is no split of CoOp's
            last = error.splitlines()[-1]
            assert last.startswith("error: ") and len(last) < 300 and ".tmp" not in last
            assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
        shutil.rmtree(folder)
