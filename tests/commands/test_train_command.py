"""The command `train`: what it chooses for its user, what it prints, and what it refuses."""

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.__main__ import main
from trainers.hegraph.commands.train import result_sentence
from trainers.hegraph.commands.train_arguments import parse_train
from trainers.hegraph.commands.train_choices import choose_data, fill_in, output_name
from trainers.hegraph.datasets.loading import listing_own_images_once, load_own_images
from trainers.hegraph.features.options import NO_PROMPTS
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.option import NODE

IMAGES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Current folder, with ten images of each of two classes in my photos/."""
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(IMAGES):
        (tmp_path / "my photos" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 9), 30 + number).save(tmp_path / "my photos" / path)
    return tmp_path


def chosen(line: str) -> tuple[dict, list[str]]:
    """Arguments and sentences of a command line."""
    args = parse_train(shlex.split(line))
    sentences = fill_in(args)
    return vars(args), sentences


# Choices


def test_folder_is_described_in_sentences(folder):
    args, sentences = chosen("'my photos'")
    assert (args["dataset_config_file"], args["DATASET.ROOT"]) == ("folder", "my photos")
    assert (args["config_file"], args["OUTPUT_DIR"]) == ("vit_b16", "output/my-photos")
    # 10 images of a class are split into 5, 2 and 3
    split = "10 for training, 4 for validation (val) and 6 for the test"
    assert sentences[0] == f"my photos is a folder with images of 2 classes (cat, dog): {split}."
    assert sentences[1].startswith("The image encoder is CLIP's ViT-B-16-quickgelu, the default; --backbone NAME ")
    assert sentences[2] == "The results go to the folder output/my-photos."


@pytest.mark.parametrize(("pattern", "what"), [("", "each class was"), ("([0-9])[.]png", "the groups of")])
def test_own_images_are_listed_once(folder, caplog, pattern, what):
    """The message of their random split appears once, and the groups of DATASET.GROUP_PATTERN are those of the run."""
    with listing_own_images_once():
        chosen(f"'my photos' DATASET.GROUP_PATTERN '{pattern}'" if pattern else "'my photos'")
        load_own_images("my photos", group_pattern=pattern)
    [message] = caplog.messages
    assert f"has no folder train, so {what}" in message


@pytest.mark.parametrize("file", ["labels.csv", "other.csv"])
def test_table_of_images(folder, file):
    table = folder / "my photos" / file
    table.write_text("path,label\n" + "".join(f"{path},{Path(path).parent}\n" for path in IMAGES))
    args, sentences = chosen(f"'my photos/{file}'")
    assert (args["dataset_config_file"], args["DATASET.ROOT"]) == ("folder", f"my photos/{file}")
    assert args["OUTPUT_DIR"] == ("output/my-photos" if file == "labels.csv" else "output/other")
    assert sentences[0] == f"my photos/{file} is a CSV file with images of 2 classes (cat, dog): 20 for training."


def test_annotations_of_coco_train_several_labels(folder):
    images = [{"id": number, "file_name": path} for number, path in enumerate(IMAGES)]
    objects = [{"image_id": number, "category_id": number % 2} for number in range(len(IMAGES))]
    categories = [{"id": 0, "name": "tail"}, {"id": 1, "name": "paw"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "my photos" / "instances_train.json").write_text(json.dumps(content))
    args, [sentence, *_] = chosen("'my photos'")
    assert args["dataset_config_file"] == "multilabel"
    assert "2 classes (tail, paw): 20 for training" in sentence


def test_feature_bank_needs_no_backbone(tiny_bank, monkeypatch):
    monkeypatch.chdir(tiny_bank.parent)
    args, sentences = chosen("tiny.safetensors")
    assert (args["features"], args["config_file"], args["OUTPUT_DIR"]) == (Path("tiny.safetensors"), "", "output/tiny")
    assert "is a feature bank" in sentences[0] and len(sentences) == 2


@pytest.mark.parametrize(("words", "config", "root"), [
    ("digits", "digits", None), ("Digits", "digits", None), ("pets --root data", "oxford_pets", "data"),
])  # fmt: skip
def test_data_set_is_found_by_name(tmp_path, monkeypatch, words, config, root):
    monkeypatch.chdir(tmp_path)
    args, _ = chosen(words)
    assert (args["dataset_config_file"], args["DATASET.ROOT"]) == (config, root)
    assert args["OUTPUT_DIR"] == f"output/{config}"


def test_weights_and_names_are_flags_of_train():
    args = vars(parse_train("digits --backbone mini --pretrained weights.pt --no-names --strict".split()))
    assert args["MODEL.BACKBONE.PRETRAINED"] == "weights.pt" and args["DATASET.STRICT"] is True
    assert args[f"{NODE}.PROMPTS.SOURCE"] == NO_PROMPTS
    assert vars(parse_train(["digits"]))[f"{NODE}.PROMPTS.SOURCE"] is None


def test_help_begins_with_what_most_people_need(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    options, data = capsys.readouterr().out.partition("\noptions:\n")[2].split("\ndata:\n")
    flags = re.findall(r"(?m)^  (?:-h, )?(--[\w-]+)", options)
    assert {"--backbone", "--shots", "--output-dir", "--no-names"} < {*flags} and len(flags) <= 10
    assert "(default: output/NAME" in options and "--config-file" in data


def test_folder_precedes_data_set_of_its_name(folder):
    (folder / "my photos").rename(folder / "digits")
    assert choose_data("digits", "").root == "digits"


@pytest.mark.parametrize(("flags", "config", "backbone"), [
    ("--backbone mini", "mini", None), ("--backbone hegraph-mini", "mini", None),
    ("--backbone vit_b32", "vit_b32", None),
    ("--backbone ViT-L-14-quickgelu", "vit_b16", "ViT-L-14-quickgelu"),
    ("--config-file rn50 --backbone RN101-quickgelu", "rn50", "RN101-quickgelu"),
])  # fmt: skip
def test_backbone_has_its_configuration(flags, config, backbone):
    args, _ = chosen(f"digits {flags}")
    assert (args["config_file"], args["MODEL.BACKBONE.NAME"]) == (config, backbone)


def test_named_output_folder_stays():
    assert chosen("digits --output-dir here")[0]["OUTPUT_DIR"] == "here"
    assert chosen("digits OUTPUT_DIR here")[0]["OUTPUT_DIR"] is None
    assert chosen("digits --eval-only --model-dir output/digits")[0]["OUTPUT_DIR"] == "output/digits-test"


def test_root_alone_is_the_folder_of_own_images(folder):
    args, _ = chosen("--root 'my photos' --config-file mini")
    assert (args["dataset_config_file"], args["OUTPUT_DIR"]) == ("folder", "output/my-photos")


@pytest.mark.parametrize(("data", "name"), [
    ("hf:user/birds", "birds"), ("hf:user/birds#small", "birds"), ("a b/c d/", "c-d"), ("/", "images"),
    ("hf:..", "images"), ("https://host/train-{0..9}.tar", "train-0..9-.tar"),
])  # fmt: skip
def test_output_folder_is_named_after_the_data(data, name):
    assert output_name(data) == name


# Arguments


@pytest.mark.parametrize(("line", "data", "opts"), [
    ("photos", "photos", []), ("photos --seed 2", "photos", []), ("--seed 2 photos", "photos", []),
    ("photos SEED 2", "photos", ["SEED", "2"]), ("photos --seed 2 OPTIM.LR -1", "photos", ["OPTIM.LR", "-1"]),
    ("--seed 2 photos OPTIM.LR 1", "photos", ["OPTIM.LR", "1"]), ("SEED 2", "", ["SEED", "2"]),
    ("--seed 2 SEED 3", "", ["SEED", "3"]), ("", "", []),
    ("photos --transforms normalize SEED 2", "photos", ["SEED", "2"]),
])  # fmt: skip
def test_data_comes_first_or_after_the_flags(line, data, opts):
    args = parse_train(line.split())
    assert (args.data, args.opts) == (data, opts)


def test_flags_of_coop_work_with_the_command(tiny_bank, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--features", str(tiny_bank), "--shots", "1", "--trainer", "ZeroShot", "--output-dir", str(out)]
    assert main(["train", *flags]) == 0
    accuracy = json.loads((out / "result.json").read_text())["accuracy"]
    assert capsys.readouterr().out.startswith(f"The model classifies {accuracy:.2f} % of 40 test images correctly")


@pytest.mark.parametrize(("changes", "sentence"), [
    ({}, "The model classifies 91.50 % of 40 test images correctly, and CLIP without training 60.00 %."),
    ({"accuracy_zero_shot": None}, "The model classifies 91.50 % of 40 test images correctly."),
    ({"accuracy": None}, "The model is trained. Its accuracy is unknown, because there are no test images."),
    ({"accuracy": None, "map": 58.291, "map_zero_shot": 30.84},
     "On 40 test images, the mean average precision of the model is 58.29 %, and of CLIP without training 30.84 %."),
    ({"accuracy": None, "map": 58.291, "map_zero_shot": None},
     "On 40 test images, the mean average precision of the model is 58.29 %."),
])  # fmt: skip
def test_result_is_a_sentence(changes, sentence):
    record = {"accuracy": 91.5, "accuracy_zero_shot": 60.0, "num_test": 40}
    assert result_sentence(record | changes) == sentence


# Refusals


@pytest.mark.parametrize(("line", "message"), [
    ("", "no data: name a folder of images or a data set, as in: python -m trainers.hegraph train photos"),
    ("digit", "there is no file, folder or data set 'digit'; did you mean 'digits'?"),
    ("photoz", "data set 'photoz'; expected a folder with a folder of images for each class, a CSV file, or "),
    ("my photos", "got 'my' and 'photos'; write a name with spaces in quotes"),
    ("dtd", "dtd is a published data set: add --root DIR, the folder that contains dtd; to download it to data: "),
    ("caltech102 --root data", "unknown data set 'caltech102'; did you mean 'caltech101'?"),
    ("digits --dataset-config-file digits", "digits and --dataset-config-file both name the images"),
    ("digits --features bank", "digits and --features both name the images"),
    ("empty", "/empty contains nothing, neither class folders nor one CSV file"),
    ("digits --no-such-flag", "unrecognized arguments: --no-such-flag (usage: python -m trainers.hegraph train --"),
])  # fmt: skip
def test_refusals_say_what_to_type(cli_error, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in cli_error("train", *line.split())


def test_key_without_value_is_refused():
    with pytest.raises(UserError, match="the last key has no value"):
        from trainers.hegraph.config import pairs_of

        pairs_of(parse_train(["photos", "SEED"]).opts)


# From a folder to predictions


@pytest.mark.slow
def test_training_after_a_change_has_a_folder_of_its_own(folder, caplog):
    """The first result stays, the same command finds the second one again, and no command repeats a message."""
    words = ["train", "my photos", "--backbone", "mini"]
    for is_added in (False, True, False):
        if is_added:
            Image.new("L", (9, 9)).save(folder / "my photos" / "cat/10.png")
        with caplog.at_level(logging.INFO):
            assert main(words) == 0
    results = sorted(path.parent.name for path in (folder / "output").glob("*/result.json"))
    assert results == ["my-photos", "my-photos-2"]
    line = "my-photos holds a run with other images or settings, which stays; the results go to output/my-photos-2."
    assert caplog.messages.count(f"output/{line}") == 2
    few = [message for message in caplog.messages if "have fewer than 16 training images" in message]
    assert len(few) == 3  # one for each command


def test_named_output_folder_is_not_numbered(cli_error, tiny_bank, tmp_path):
    words = ["--features", str(tiny_bank), "--trainer", "ZeroShot", "--output-dir", str(tmp_path / "out")]
    assert main(["train", *words, "--shots", "1"]) == 0
    assert "holds the result of a run with other settings or data" in cli_error("train", *words, "--shots", "2")


@pytest.mark.slow
def test_two_commands_lead_to_predictions(folder, capsys, caplog):
    """Every line is a sentence or a command, and none has an option of the method."""
    with caplog.at_level(logging.INFO):
        assert main(["train", "my photos", "--backbone", "mini"]) == 0
    result = capsys.readouterr().out
    assert result.startswith("The model classifies ") and result.count("\n") == 1
    command = next(line for line in caplog.messages if line.startswith("classify images: "))
    words = shlex.split(command.removeprefix("classify images: python -m trainers.hegraph "))
    assert main([*words[:-1], "my photos/cat"]) == 0
    assert capsys.readouterr().out.count("my photos/cat/") == 10
