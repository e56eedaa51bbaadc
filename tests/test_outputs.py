"""Commands replace no file that they read, and write nothing into a model or a project."""

import argparse
import importlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.__main__ import SUBCOMMANDS, main
from trainers.hegraph.utils.errors import Parser
from trainers.hegraph.utils.files import OutputFile, OutputFolder, check_output
from trainers.hegraph.utils.reading import UserError

OUTPUT_FLAGS = {"--out", "--onnx", "--space"}  # of all commands
CHECK, IN_CSV = "label check --config-file mini --root data", "label check --config-file mini --root csv/labels.csv"
DESCRIBED = "TRAINER.HEGRAPHADAPTER.PROMPTS.DESCRIPTIONS"
# Command -> pairs of a command line and a file that it reads, or a place inside a model or project
CASES = {
    "predict --out": [
        ("predict run data/train", "data/train/cat/0.jpg"),
        ("predict run data/train", "link.jpg"),
        ("predict run data/train", "hard.jpg"),
        ("predict run linked", "away/1.jpg"),
        ("predict run list.txt", "list.txt"),
        ("predict run list.txt", "away/1.jpg"),
        ("predict run --features bank.safetensors", "bank.safetensors"),
        ("predict run data/train", "run/result.json"),
        ("predict run data/train", "run/model/thumbnails/00000.jpg"),
        ("predict run data/train", "run/model/new.csv"),
        ("predict run data/train", "data/.hegraph/new.csv"),
    ],
    "label suggest --out": [
        ("label suggest run data/train", "data/train/cat/0.jpg"),
        ("label suggest run list.txt", "away/1.jpg"),
        ("label suggest run/model data/train", "run/model/model.safetensors"),
    ],
    "label check --out": [
        (CHECK, "data/train/cat/0.jpg"),
        (CHECK, "data/train/dog/1.jpg"),
        (IN_CSV, "csv/labels.csv"),
        ("label check --config-file mini --root csv", "csv/labels.csv"),
        (IN_CSV, "away/1.jpg"),
        (f"{CHECK} {DESCRIBED} texts.json", "texts.json"),
        ("label check --root data --config-file method.yaml", "method.yaml"),
        ("label check --root data --config-file method.yaml", "texts.json"),
        ("label check --features bank.safetensors", "bank.safetensors"),
        (CHECK, "data/.hegraph/new.csv"),
    ],
    "features extract --out": [
        ("features extract --dataset-config-file digits --config-file mini", "bank.safetensors")
    ],
    "features import-tip --out": [("features import-tip data --classnames names.json", "names.json")],
    "describe --out": [
        ("describe --classes names.json --context x", "names.json"),
        ("describe --classes list.txt --aliases names.json --context x", "names.json"),
    ],
    "train-more --out": [
        ("train-more run --root data", "run/model"),
        ("train-more run/model --root data", "run/model"),
        ("train-more run --root other/model/pictures", "other/model"),
        ("train-more run --root csv/to_model.csv", "other/model"),
        ("train-more run --root data", "other/model/new"),
    ],
    "export --onnx": [
        ("export run", "run/model/model.safetensors"),
        ("export run", "run/result.json"),
        ("export run", "run/model/new.onnx"),
    ],
    "demo --space": [("demo run", "run/model/new"), ("demo run", "data/.hegraph/new")],
    "results collect --out": [
        ("results collect records.jsonl", "records.jsonl"),
        ("results collect run", "run/result.json"),
    ],
    "results calibration --out": [("results calibration records.png", "records.png")],
    "results curves --out": [("results curves records.png", "records.png")],
    "results tsne --out": [("results tsne run", "run/model/new.png")],
    "results confusion --out": [("results confusion run", "run/model/new.png")],
    "results report --out": [
        ("results report run", "run/model/model.safetensors"),
        ("results report records.jsonl", "run/predictions.safetensors"),
        ("results report records.jsonl", "records.jsonl"),
    ],
}


@pytest.fixture
def folder(finished_digits_once, tiny_bank_file, tmp_path, monkeypatch) -> Path:
    """Current folder with a run, images, tables, lists, links, and a model with pictures."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_digits_once, "run")
    shutil.copytree("run/model", "other/model")
    shutil.copy(tiny_bank_file, "bank.safetensors")
    for place in ("data/train", "other/model/pictures/train", "away"):
        for name in ("cat/0.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg") if place != "away" else ("1.jpg", "2.jpg"):
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((9, 9), 60).save(path)
    for place in ("csv", "data/.hegraph", "linked"):
        Path(place).mkdir()
    Path("csv/labels.csv").write_text("path,label\n../away/1.jpg,cat\n../away/2.jpg,dog\n")
    Path("csv/to_model.csv").write_text("path,label\n../other/model/pictures/train/cat/0.jpg,cat\n../away/2.jpg,dog\n")
    Path("list.txt").write_text("away/1.jpg\n")
    Path("names.json").write_text('["cat", "dog"]')
    Path("texts.json").write_text('{"cat": ["a cat"], "dog": ["a dog"]}')
    name = "MODEL: {BACKBONE: {NAME: hegraph-mini}}"
    Path("method.yaml").write_text(f"{name}\nTRAINER: {{HEGRAPHADAPTER: {{PROMPTS: {{DESCRIPTIONS: texts.json}}}}}}\n")
    record = json.dumps(json.loads(Path("run/result.json").read_text()))
    for file in ("records.jsonl", "records.png"):
        Path(file).write_text(record + "\n")
    os.symlink("data/train/cat/0.jpg", "link.jpg")
    os.link("data/train/cat/0.jpg", "hard.jpg")
    os.symlink("../away", "linked/folder")
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "output" not in path.parts}


@pytest.mark.parametrize(("name", "words", "out"), [(name, *case) for name, cases in CASES.items() for case in cases])
def test_output_replaces_no_input(folder, capsys, name, words, out):
    before = contents(folder)
    stem = Path(out).with_suffix("") if out.endswith((".png", ".svg")) else out
    assert main([*shlex.split(words), name.split()[-1], str(stem)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and out in error
    assert any(reason in error for reason in ("is read by", "is inside", "exists", "contains input of this command")), (
        error
    )
    assert contents(folder) == before


class Captured(Exception):
    pass


def outputs_of(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from outputs_of(below, f"{words} {name}")
        for flag in OUTPUT_FLAGS & {*action.option_strings}:
            yield f"{words} {flag}", action


def test_cases_cover_every_command_with_output(monkeypatch):
    def capture(parser: Parser, *_: object) -> None:
        raise Captured(parser)

    monkeypatch.setattr(Parser, "parse_args", capture)
    monkeypatch.setattr(Parser, "parse_intermixed_args", capture)
    found: dict[str, argparse.Action] = {}
    for words, module in [("", "__main__"), *((name, module) for name, (module, _) in SUBCOMMANDS.items())]:
        with pytest.raises(Captured) as caught:
            importlib.import_module(f"trainers.hegraph.{module}").main([])
        found |= outputs_of(caught.value.args[0], words)
    assert found.keys() == CASES.keys()
    assert [words for words, action in found.items() if not isinstance(action.type, OutputFile)] == []


@pytest.mark.parametrize(("words", "out"), [
    ("results report run", "run/report.html"), ("results collect run", "run/all.jsonl"),
    ("results confusion run", "run/figure"), ("predict run data/train --top 1", "data/rows.csv"),
    ("label check --config-file mini --root data", "suspicious.csv"),
])  # fmt: skip
def test_earlier_output_is_replaced(folder, words, out):
    for _ in range(2):
        assert main([*shlex.split(words), "--out", out]) < 2
    assert any(path.stat().st_size for path in Path(out).parent.glob(f"{Path(out).name}*"))


def test_circular_links_are_handled(tmp_path):
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path, tmp_path / "a" / "up")
    (tmp_path / "rows.csv").touch()
    check_output(tmp_path / "rows.csv", [str(tmp_path / "a")], (".csv",))
    with pytest.raises(UserError, match="is read by this command"):
        check_output(tmp_path / "rows.csv", {"model": [tmp_path / "a"], "other": None})
    with pytest.raises(UserError, match="contains input of this command"):
        OutputFolder().check(tmp_path / "a", [str(tmp_path / "a" / "up" / "a")])
