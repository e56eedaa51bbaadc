"""Prompts from templates and descriptions, and the rules for the packaged descriptions."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import CLASSNAMES
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.features.prompts import sentences as prompts
from trainers.hegraph.features.prompts.collect import Checker, name_problems
from trainers.hegraph.features.prompts.sentences import (
    DESCRIPTIONS,
    fill_templates,
    negative_prompts,
    normalise_name,
    positive_prompts,
    read_descriptions,
    resolve_source,
)
from trainers.hegraph.utils.errors import UserError

PLAIN = ("StanfordCars", "SUN397", "Caltech101", "ImageNet", "ImageNetSketch", "ImageNetV2", "ImageNetA", "ImageNetR")
PETS = ["Abyssinian", "american_bulldog"]


@pytest.fixture
def descriptions(tmp_path):
    """Function that writes a description file and returns its path."""

    def write(table) -> Path:
        path = tmp_path / "descriptions.json"
        path.write_text(json.dumps(table), encoding="utf-8")
        return path

    return write


# From CoOp's trainers/zsclip.py, CUSTOM_TEMPLATES
@pytest.mark.parametrize(("dataset", "sentence"), [
    ("OxfordPets", "a photo of a cat, a type of pet."),
    ("OxfordFlowers", "a photo of a cat, a type of flower."),
    ("FGVCAircraft", "a photo of a cat, a type of aircraft."),
    ("DescribableTextures", "cat texture."), ("EuroSAT", "a centered satellite photo of cat."),
    ("Food101", "a photo of cat, a type of food."), ("UCF101", "a photo of a person doing cat."),
    *((name, "a photo of a cat.") for name in (*PLAIN, "MyBirds")),
])  # fmt: skip
def test_templates_of_data_sets_are_coops(dataset, sentence):
    assert positive_prompts(dataset, ["cat"]) == [[[sentence]]]


@pytest.mark.parametrize(("templates", "expected"), [
    ([], [["a photo of a Abyssinian, a type of pet."], ["a photo of a american bulldog, a type of pet."]]),
    (["my {}", "a {}!"], [["my Abyssinian", "a Abyssinian!"], ["my american bulldog", "a american bulldog!"]]),
], ids=["default", "user"])  # fmt: skip
def test_templates_are_filled_in_label_order(templates, expected):
    assert positive_prompts("OxfordPets", PETS, templates=templates) == [expected]


@pytest.mark.parametrize("template", ["a photo.", "a {} and a {}."])
def test_template_needs_exactly_one_placeholder(template, refused):
    with refused("", "exactly one {}", repr(template)):
        fill_templates(["a {}.", template], ["cat"])


@pytest.mark.parametrize(("table", "code", "words"), [
    ({PETS[0]: ["slender"], PETS[1]: []}, "", "no description for 2 of 3 classes: american_bulldog, pug"),
    ({"cat": [1]}, "schema", "descriptions.json must hold {class name: [sentence, ...]}"),
])  # fmt: skip
def test_unusable_descriptions_are_refused(descriptions, table, code, words, refused):
    with refused(code, words):
        read_descriptions(descriptions(table), [*PETS, "pug"])


@pytest.mark.parametrize(("source", "first"), [("both", 0), ("descriptions", 1)])
def test_templates_and_descriptions_are_separate_groups(descriptions, source, first):
    file = descriptions({"Abyssinian": ["slender", "ticked"], "american_bulldog": ["stocky"]})
    groups = [[["a photo of a Abyssinian."], ["a photo of a american bulldog."]], [["slender", "ticked"], ["stocky"]]]
    assert positive_prompts("StanfordCars", PETS, source, descriptions=str(file)) == groups[first:]


@pytest.mark.parametrize(("key", "classname"), [
    ("american_bulldog", "American-Bulldog"), (" american  bulldog ", "american_bulldog"),
    ("cafe\u0301", "caf\u00e9"),  # combining accent and precomposed character
])  # fmt: skip
def test_description_keys_match_normalised_class_names(descriptions, key, classname):
    assert read_descriptions(descriptions({key: ["x"]}), [classname]) == [["x"]]


def test_equal_key_precedes_normalised_ones(descriptions):
    file = descriptions({"A": ["upper case"], "a": ["lower case"]})
    assert read_descriptions(file, ["A", "a"]) == [["upper case"], ["lower case"]]


def test_data_set_without_descriptions_is_refused():
    message = r"'Birds' \(available for: Caltech101, .*PROMPTS\.DESCRIPTIONS.*PROMPTS\.SOURCE templates"
    with pytest.raises(UserError, match=message):
        positive_prompts("Birds", PETS, "both")


@pytest.mark.parametrize(("dataset", "descriptions", "source"), [
    ("OxfordPets", "", "both"), ("Digits", "", "templates"), ("MyBirds", "", "templates"),
    ("MyBirds", "x.json", "both"),
])  # fmt: skip
def test_auto_source_uses_available_descriptions(dataset, descriptions, source):
    assert resolve_source(dataset, "auto", descriptions) == source
    assert resolve_source(dataset, "descriptions", descriptions) == "descriptions"


@pytest.mark.parametrize("dataset", [*ENTRIES, "MyBirds"])
def test_negative_prompts_negate_the_positive_ones(dataset):
    ((positives,),) = positive_prompts(dataset, ["cat"])
    (negatives,) = negative_prompts(dataset, ["cat"])
    assert len(negatives) == len(positives) and not set(negatives) & set(positives)
    for positive, negative in zip(positives, negatives):
        # Without "no" or "not", a negative prompt is the positive one except for the article
        without_negation = re.sub(r"\bnot? ", "", negative)
        assert without_negation != negative
        assert without_negation == re.sub(r"\ba (?=cat|handwritten)", "", positive)


def test_negative_template_is_the_papers():
    assert negative_prompts("ImageNet", ["great_dane"]) == [["a photo of no great dane."]]  # section 3.1.1


def test_negative_templates_of_the_user_are_filled():
    assert negative_prompts("OxfordPets", ["pug", "cat"], ["not a {}"]) == [["not a pug"], ["not a cat"]]


# Packaged descriptions

NODE = "TRAINER.HEGRAPHADAPTER"
ALIASES = "aliases"
FILES = sorted(path.stem for path in DESCRIPTIONS.glob("*.json") if path.stem != ALIASES)
MIN_SENTENCES = {"imagenet": 3, "digits": 10}  # per class; 5 for other files
NUM_CLASSES = {
    "caltech101": 100, "digits": 10, "dtd": 47, "eurosat": 10, "fgvc_aircraft": 100, "food101": 101, "imagenet": 998,
    "oxford_flowers": 102, "oxford_pets": 37, "stanford_cars": 196, "sun397": 397, "ucf101": 101,
}  # fmt: skip
DESCRIBED = {name: entry.descriptions for name, entry in ENTRIES.items() if entry.descriptions}
SHARED_NAMES = {"fgvc_aircraft": "fgvc"}  # file names in the shared folder that differ


def read(name: str) -> dict[str, list[str]]:
    return json.loads((DESCRIPTIONS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def aliases() -> dict[str, dict[str, list[str]]]:
    return read(ALIASES)


def reference_classnames(file: str, shared: Path) -> list[str]:
    """Class names in label order, from a source outside this repository."""
    if file == "digits":
        return list(CLASSNAMES)
    path = shared / "data" / "classnames" / f"{SHARED_NAMES.get(file, file)}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_data_set_has_a_description_file():
    assert FILES == sorted(set(DESCRIBED.values())) == sorted(NUM_CLASSES)
    assert set(DESCRIBED) == {*stored_datasets(), "Digits"}


@pytest.mark.parametrize("file", FILES)
def test_each_class_has_enough_valid_sentences(file, aliases):
    table, file_aliases = read(file), aliases.get(file, {})
    assert len(table) == NUM_CLASSES[file] and min(map(len, table.values())) >= MIN_SENTENCES.get(file, 5)
    assert name_problems(list(table), file_aliases) == []
    checker = Checker(sum(map(len, table.values())), file_aliases)
    assert [problem for name, sentences in table.items() for problem in checker.select(name, sentences)[1]] == []


@pytest.mark.parametrize("file", FILES)
def test_described_classes_are_in_label_order(file, shared):
    assert list(read(file)) == list(dict.fromkeys(reference_classnames(file, shared)))


def test_no_sentence_occurs_twice():
    counts = Counter(normalise_name(s) for file in FILES for sentences in read(file).values() for s in sentences)
    assert sum(counts.values()) > 9000
    assert [sentence for sentence, count in counts.items() if count > 1] == []


def test_changed_descriptions_invalidate_a_finished_run(tmp_path, monkeypatch, cli_error):
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
    assert "holds the result of a run with other settings or data" in cli_error(*command)
