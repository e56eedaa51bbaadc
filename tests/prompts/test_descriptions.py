"""The descriptions that ship: every class of every data set, and every rule for good sentences."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import CLASSNAMES
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.describe.collect import Checker, name_problems
from trainers.hegraph.prompts import sentences as prompts
from trainers.hegraph.prompts.sentences import DESCRIPTIONS, normalise_name

NODE = "TRAINER.HEGRAPHADAPTER"
ALIASES = "aliases"
FILES = sorted(path.stem for path in DESCRIPTIONS.glob("*.json") if path.stem != ALIASES)
LEAST = {"imagenet": 3, "digits": 10}  # sentences of each class; 5 elsewhere
NUM_CLASSES = {
    "caltech101": 100, "digits": 10, "dtd": 47, "eurosat": 10, "fgvc_aircraft": 100, "food101": 101, "imagenet": 998,
    "oxford_flowers": 102, "oxford_pets": 37, "stanford_cars": 196, "sun397": 397, "ucf101": 101,
}  # fmt: skip
SHIPPED = {name: entry.descriptions for name, entry in ENTRIES.items() if entry.descriptions}
NAMED_OTHERWISE = {"fgvc_aircraft": "fgvc"}  # in the shared folder


def read(name: str) -> dict[str, list[str]]:
    return json.loads((DESCRIPTIONS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def aliases() -> dict[str, dict[str, list[str]]]:
    return read(ALIASES)


def classnames_of(file: str, shared: Path) -> list[str]:
    """Class names in label order, from outside this repository."""
    if file == "digits":
        return list(CLASSNAMES)
    path = shared / "data" / "classnames" / f"{NAMED_OTHERWISE.get(file, file)}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_is_a_file_for_every_data_set_and_no_other():
    assert FILES == sorted(set(SHIPPED.values())) == sorted(NUM_CLASSES)
    assert set(SHIPPED) == {*stored_datasets(), "Digits"}


@pytest.mark.parametrize("file", FILES)
def test_every_class_has_good_sentences(file, aliases):
    table, others = read(file), aliases.get(file, {})
    assert len(table) == NUM_CLASSES[file]
    assert min(map(len, table.values())) >= LEAST.get(file, 5)
    assert name_problems(list(table), others) == []
    checker = Checker(sum(map(len, table.values())), others)
    assert [problem for name, sentences in table.items() for problem in checker.sift(name, sentences)[1]] == []


@pytest.mark.parametrize("file", FILES)
def test_the_classes_are_those_of_the_data_set_by_their_exact_names_in_label_order(file, shared):
    assert list(read(file)) == list(dict.fromkeys(classnames_of(file, shared)))


def test_no_sentence_occurs_twice_anywhere():
    counts = Counter(normalise_name(s) for file in FILES for sentences in read(file).values() for s in sentences)
    assert sum(counts.values()) > 9000
    assert [sentence for sentence, count in counts.items() if count > 1] == []


def test_the_shipped_descriptions_are_part_of_what_a_result_is_of(tmp_path, monkeypatch, capsys):
    command = ["--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1", "--seed", "1"]
    command += ["--output-dir", str(tmp_path / "out"), f"{NODE}.PROMPTS.SOURCE", "descriptions"]
    command += [f"{NODE}.VARIANT", "base", f"{NODE}.FEATURES.VIEWS", "1", f"{NODE}.FEATURES.DIR", str(tmp_path / "f")]
    assert main(command) == 0
    shutil.copytree(DESCRIPTIONS, tmp_path / "descriptions")
    monkeypatch.setattr(prompts, "DESCRIPTIONS", tmp_path / "descriptions")
    assert main(command) == 0
    table = read("digits")
    table["zero"], table["one"] = table["one"], table["zero"]
    (tmp_path / "descriptions" / "digits.json").write_text(json.dumps(table))
    assert main(command) == 2
    assert "holds the result of a run with other settings or data" in capsys.readouterr().err
