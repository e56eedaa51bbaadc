"""Prompts: templates, descriptions, both, and negative ones; and every rule for the descriptions that ship."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import CLASSNAMES
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.describe.collect import Checker, name_problems
from trainers.hegraph.prompts import sentences as prompts
from trainers.hegraph.prompts.sentences import (
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
    """Writes a description file and returns its path."""

    def write(table) -> str:
        path = tmp_path / "descriptions.json"
        path.write_text(json.dumps(table), encoding="utf-8")
        return str(path)

    return write


# From CoOp's trainers/zsclip.py, CUSTOM_TEMPLATES
@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("OxfordPets", "a photo of a cat, a type of pet."),
        ("OxfordFlowers", "a photo of a cat, a type of flower."),
        ("FGVCAircraft", "a photo of a cat, a type of aircraft."),
        ("DescribableTextures", "cat texture."),
        ("EuroSAT", "a centered satellite photo of cat."),
        ("Food101", "a photo of cat, a type of food."),
        ("UCF101", "a photo of a person doing cat."),
        *((name, "a photo of a cat.") for name in PLAIN),
    ],
)
def test_each_data_set_of_coop_has_its_template(dataset, sentence):
    assert positive_prompts(dataset, ["cat"]) == [[[sentence]]]


def test_templates_are_filled_in_label_order_with_underscores_as_spaces_and_the_users_go_first():
    assert positive_prompts("MyBirds", ["wren"]) == [[["a photo of a wren."]]]
    (group,) = positive_prompts("OxfordPets", PETS)
    assert group == [["a photo of a Abyssinian, a type of pet."], ["a photo of a american bulldog, a type of pet."]]
    (group,) = positive_prompts("OxfordPets", PETS, templates=["my {}", "your {}!"])
    assert group == [["my Abyssinian", "your Abyssinian!"], ["my american bulldog", "your american bulldog!"]]


@pytest.mark.parametrize("template", ["a photo.", "a {} and a {}."])
def test_a_template_without_exactly_one_placeholder_is_refused_by_its_words(template):
    with pytest.raises(UserError, match=r"exactly one \{\}") as caught:
        fill_templates(["a {}.", template], ["cat"])
    assert repr(template) in str(caught.value)


def test_both_gives_the_templates_as_one_group_and_the_descriptions_as_another(descriptions):
    file = descriptions({"Abyssinian": ["slender", "ticked"], "american_bulldog": ["stocky"]})
    templates, described = positive_prompts("StanfordCars", PETS, "both", descriptions=file)
    assert templates == [["a photo of a Abyssinian."], ["a photo of a american bulldog."]]
    assert described == [["slender", "ticked"], ["stocky"]]
    assert positive_prompts("StanfordCars", PETS, "descriptions", descriptions=file) == [described]


@pytest.mark.parametrize(
    ("key", "classname"),
    [
        ("american_bulldog", "American-Bulldog"),
        (" american  bulldog ", "american_bulldog"),
        ("cafe\u0301", "caf\u00e9"),  # an accent is the same however it is spelled
    ],
)
def test_description_keys_match_whatever_case_underscores_hyphens_spaces_and_accents(descriptions, key, classname):
    assert read_descriptions(Path(descriptions({key: ["x"]})), [classname]) == [["x"]]


def test_a_class_without_a_description_is_named_and_so_is_a_file_of_another_structure(descriptions):
    file = descriptions({"Abyssinian": ["slender"], "american_bulldog": []})
    with pytest.raises(UserError, match=r"no description for 2 of 3 classes: american_bulldog, pug$"):
        positive_prompts("OxfordPets", [*PETS, "pug"], "descriptions", descriptions=file)
    with pytest.raises(UserError, match=r"descriptions\.json must hold \{class name: \[sentence, ...\]\}"):
        read_descriptions(Path(descriptions({"cat": [1]})), ["cat"])


def test_a_data_set_without_descriptions_is_an_error_that_names_the_keys_and_those_that_have():
    with pytest.raises(UserError, match=r"PROMPTS\.DESCRIPTIONS.*PROMPTS\.SOURCE templates") as caught:
        positive_prompts("Birds", PETS, "both")
    assert "no descriptions ship for the data set 'Birds' (known: Caltech101, " in str(caught.value)


# What "auto" means


@pytest.mark.parametrize(
    ("dataset", "descriptions", "meant"),
    [
        ("OxfordPets", "", "both"),
        ("Digits", "", "templates"),
        ("MyBirds", "", "templates"),
        ("MyBirds", "x.json", "both"),
    ],
)
def test_auto_takes_descriptions_where_there_are_some(dataset, descriptions, meant):
    assert resolve_source(dataset, "auto", descriptions) == meant
    assert resolve_source(dataset, "descriptions", descriptions) == "descriptions"


# Negative prompts


@pytest.mark.parametrize("dataset", [*ENTRIES, "MyBirds"])
def test_the_negative_prompts_differ_from_the_positive_ones_by_a_negation(dataset):
    ((positive,),) = positive_prompts(dataset, ["cat"])
    (negative,) = negative_prompts(dataset, ["cat"])
    assert len(negative) == len(positive)
    assert not set(negative) & set(positive)
    for said, denied in zip(positive, negative):
        # Without its "no" or "not", a negative prompt is the positive one up to the article
        affirmed = re.sub(r"\bnot? ", "", denied)
        assert affirmed != denied
        assert affirmed == re.sub(r"\ba (?=cat|handwritten)", "", said)


def test_negative_templates_are_the_papers_or_the_users():
    assert negative_prompts("ImageNet", ["great_dane"]) == [["a photo of no great dane."]]  # section 3.1.1, after CLIPN
    assert negative_prompts("OxfordPets", ["pug", "cat"], ["not a {}"]) == [["not a pug"], ["not a cat"]]


# The descriptions that ship

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
