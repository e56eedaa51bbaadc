"""Commands replace no file that they read, and write nothing into a model or a project."""

import argparse
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.__main__ import SUBCOMMANDS, main
from trainers.hegraph.utils.command_line import Parser
from trainers.hegraph.utils.files import OutputFile, OutputFolder, check_output
from trainers.hegraph.utils.option import NODE
from trainers.hegraph.utils.reading import UserError

OUTPUT_FLAGS = {"--out", "--onnx", "--space"}  # of all commands
# Command lines whose last word is a file that they read, or a place inside a model or project
CASES = (
    "predict run data/train --out data/train/cat/0.jpg", "predict run data/train --out link.jpg",
    "predict run data/train --out hard.jpg", "predict run linked --out away/1.jpg",
    "predict run list.txt --out list.txt", "predict run list.txt --out away/1.jpg",
    "predict run --features bank.safetensors --out bank.safetensors", "predict run data/train --out run/result.json",
    "predict run data/train --out run/model/thumbnails/00000.jpg", "predict run data/train --out run/model/new.csv",
    "predict run data/train --out data/.hegraph/new.csv", "label suggest run data/train --out data/train/cat/0.jpg",
    "label suggest run list.txt --out away/1.jpg",
    "label suggest run/model data/train --out run/model/model.safetensors",
    "label check --config-file mini --root data --out data/train/cat/0.jpg",
    "label check --config-file mini --root data --out data/train/dog/1.jpg",
    "label check --config-file mini --root csv/labels.csv --out csv/labels.csv",
    "label check --config-file mini --root csv --out csv/labels.csv",
    "label check --config-file mini --root csv/labels.csv --out away/1.jpg",
    f"label check --config-file mini --root data {NODE}.PROMPTS.DESCRIPTIONS texts.json --out texts.json",
    "label check --root data --config-file method.yaml --out method.yaml",
    "label check --root data --config-file method.yaml --out texts.json",
    "label check --features bank.safetensors --out bank.safetensors",
    "label check --config-file mini --root data --out data/.hegraph/new.csv",
    "features extract --dataset-config-file digits --config-file mini --out bank.safetensors",
    "features import-tip data --classnames names.json --out names.json",
    "describe --classes names.json --context x --out names.json",
    "describe --classes list.txt --aliases names.json --context x --out names.json",
    "train-more run --root data --out run/model", "train-more run/model --root data --out run/model",
    "train-more run --root other/model/pictures --out other/model",
    "train-more run --root csv/to_model.csv --out other/model", "train-more run --root data --out other/model/new",
    "export run --onnx run/model/model.safetensors", "export run --onnx run/result.json",
    "export run --onnx run/model/new.onnx", "demo run --space run/model/new", "demo run --space data/.hegraph/new",
    "results collect records.jsonl --out records.jsonl", "results collect run --out run/result.json",
    "results calibration records.png --out records.png", "results curves records.png --out records.png",
    "results tsne run --out run/model/new.png", "results confusion run --out run/model/new.png",
    "results report run --out run/model/model.safetensors",
    "results report records.jsonl --out run/predictions.safetensors",
    "results report records.jsonl --out records.jsonl",
)  # fmt: skip


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


@pytest.mark.parametrize("line", CASES)
def test_output_replaces_no_input(folder, capsys, line):
    before, (*words, out) = contents(folder), line.split()
    assert main([*words, str(Path(out).with_suffix("")) if out.endswith(".png") else out]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and out in error
    reasons = ("is read by", "is inside", "exists", "contains input of this command")
    assert any(reason in error for reason in reasons), error
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
    for words, module in [*((name, module) for name, (module, _) in SUBCOMMANDS.items())]:
        with pytest.raises(Captured) as caught:
            importlib.import_module(f"trainers.hegraph.{module}").main([])
        found |= outputs_of(caught.value.args[0], words)
    starts = [words.rsplit(" ", 1) for words in found]
    cases = {words: [line for line in CASES if line.startswith(f"{start} ") and f" {flag} " in line]
             for words, (start, flag) in zip(found, starts)}  # fmt: skip
    assert all(cases.values()) and sum(map(len, cases.values())) == len(CASES)
    assert [words for words, action in found.items() if not isinstance(action.type, OutputFile)] == []


@pytest.mark.parametrize(("words", "out"), [
    ("results report run", "run/report.html"), ("results collect run", "run/all.jsonl"),
    ("results confusion run", "run/figure"), ("predict run data/train --top 1", "data/rows.csv"),
    ("label check --config-file mini --root data", "suspicious.csv"),
])  # fmt: skip
def test_earlier_output_is_replaced(folder, words, out):
    for _ in range(2):
        assert main([*words.split(), "--out", out]) < 2
    assert any(path.stat().st_size for path in Path(out).parent.glob(f"{Path(out).name}*"))


def test_links_to_inputs_are_followed(tmp_path):
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path, tmp_path / "a" / "up")
    (tmp_path / "a" / "rows.csv").touch()
    check_output(tmp_path / "a" / "rows.csv", [str(tmp_path / "a")], (".csv",))
    with pytest.raises(UserError, match="is read by this command"):
        check_output(tmp_path / "a" / "up" / "a" / "rows.csv", {"model": [tmp_path / "a"], "other": None})
    with pytest.raises(UserError, match="contains input of this command"):
        OutputFolder().check(tmp_path / "a", [str(tmp_path / "a" / "up" / "a")])
