"""Comparison of backbones: hegraph-mini against random models on the digits, errors, the recommendation."""

from __future__ import annotations

import errno
import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from trainers.hegraph import compare_backbones, load_few_shot
from trainers.hegraph.__main__ import main
from trainers.hegraph.commands.backbones import (
    keys_of,
    parse_arguments,
    single_images_sentence,
    size,
    table_lines,
    training_command,
)
from trainers.hegraph.estimator.model_selection.backbones import (
    COLUMNS,
    BackboneResult,
    Encoded,
    class_indices,
    compare_candidates,
    held_out_outcome,
    measure_speed,
    reason_against,
    recommend,
)
from trainers.hegraph.estimator.model_selection.candidates import Candidate, parse_candidate, read_candidates
from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.features.backbones.identity import MINI_CONFIG
from trainers.hegraph.features.backbones.loading import local_weights
from trainers.hegraph.results.intervals import Ranking
from trainers.hegraph.utils.errors import UserError


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> str:
    """Name of a model with the architecture of hegraph-mini and random weights."""
    folder, config = tmp_path_factory.mktemp("random"), json.loads(MINI_CONFIG.read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def result(name: str, correct: str, speed: float = 1.0) -> BackboneResult:
    """Result of a candidate; `correct` has a "1" for each correctly classified image. A class has 25 % of them."""
    outcome = np.array([sign == "1" for sign in correct])
    return BackboneResult(Candidate(name=name), 50.0, outcome, speed, chance=25.0)


# The command


def call(capsys, folder: Path, *words: str, code: int = 0, data: str = "digits") -> list[str]:
    """Compare backbones on the digits; returns the lines of standard output."""
    features = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(folder), "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", "2"]
    assert main(["backbones", "--dataset-config-file", data, "--shots", "4", *words, *features]) == code
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("data", "shots", "margin"), [("digits", "4", 30), ("digit_scenes", "16", 5)])
def test_trained_backbone_is_ahead_of_random_one(capsys, tmp_path, random_model, data, shots, margin):
    lines = call(capsys, tmp_path, "--candidates", random_model, "mini", "--offline", "--shots", shots, data=data)
    assert [line.split()[0] for line in lines[1:3]] == ["hegraph-mini", random_model]
    trained, random = (float(line.split()[2]) for line in lines[1:3])
    assert trained > random + margin and lines[4].startswith("Recommended: hegraph-mini,")


def test_recommended_training_encodes_nothing_again(capsys, caplog, tmp_path):
    lines = call(capsys, tmp_path, "--candidates", "mini")
    words = shlex.split(lines[-1])[3:]
    words[words.index("--output-dir") + 1] = str(tmp_path / "run")
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert main(words) == 0
    encoded = [record.getMessage() for record in caplog.records if "encoded" in record.getMessage()]
    assert [line for line in encoded if "train" in line] == []
    assert [line for line in encoded if "test" in line] != []  # the comparison reads no test images


def test_second_comparison_reads_cached_features(capsys, caplog, tmp_path):
    first = call(capsys, tmp_path, "--candidates", "mini")
    caplog.set_level(logging.INFO)
    caplog.clear()
    second = call(capsys, tmp_path, "--candidates", "mini")
    assert [line.split()[:3] for line in first[:2]] == [line.split()[:3] for line in second[:2]]
    assert "encoded" not in caplog.text


def test_failed_candidates_have_their_error_in_a_row(capsys, tmp_path, random_model, no_hub):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    names = ["--candidates", "mini", f"mini:{broken}", "ViT-B-99:openai", "ViT-B-32-quickgelu:openai"]
    lines = call(capsys, tmp_path, *names, code=1)
    assert [line.split()[0] for line in lines[1:5]] == ["hegraph-mini", f"hegraph-mini:{broken}", *names[3:]]
    for line, reason in zip(lines[2:5], ("broken.safetensors", "unknown backbone", "cannot be reached")):
        assert "error: " in line and reason in line


def test_offline_skips_weights_that_are_not_here(capsys, tmp_path, no_hub):
    lines = call(capsys, tmp_path, "--candidates", "mini", "ViT-B-32-quickgelu:openai", "--offline", code=1)
    assert lines[2].split("  ")[-1].strip() == "error: its weights are not on this machine"


def test_classes_with_one_image_are_reported(capsys, tmp_path):
    lines = call(capsys, tmp_path, "--candidates", "mini", "--shots", "1")
    assert "10 of the classes have one image, which is classified by the text of its class." in lines


def test_table_without_names_has_no_zero_shot_column(capsys, tmp_path):
    no_names = ("TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE", "none")
    lines = call(capsys, tmp_path, "--candidates", "mini", "--shots", "1", *no_names)
    assert not lines[1][lines[0].index("zero-shot") : lines[0].index("held-out")].strip()
    end = "which is classified without any other image or text of its class."
    assert f"10 of the classes have one image, {end}" in lines


def test_sentence_on_single_images_names_backbones_without_text():
    named = replace(result("a", "11"), single_image_classes=3)
    nameless = replace(named, zero_shot=np.nan)
    failed = BackboneResult(Candidate(name="b"), error="broken")
    start = "3 of the classes have one image, which is classified"
    by_text = "by the text of its class"
    without = "without any other image or text of its class"
    assert single_images_sentence([named, failed]) == f"{start} {by_text}."
    assert single_images_sentence([nameless, failed]) == f"{start} {without}."
    mixed = f"{start} {by_text} or, with a backbone without text, {without}."
    assert single_images_sentence([named, nameless, failed]) == mixed
    assert single_images_sentence([result("a", "11"), failed]) == ""


def test_comparison_in_python_needs_no_names(monkeypatch):
    monkeypatch.setattr(Backbone, "encode_text", None)
    monkeypatch.setattr(Backbone, "width", 64)
    digits = load_few_shot("Digits", root="", shots=2, seed=1)
    images = [digits.open(item.path) for item in digits.train]
    labels = [item.label for item in digits.train]
    frame = compare_backbones(images, labels, candidates=["mini"], use_names=False)
    assert np.isnan(frame["zero_shot"][0]) and frame["held_out"][0] > 50 and frame["error"][0] == ""


def test_one_class_is_refused_before_encoding(capsys, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{n}.png,cat\n" for n in range(3)))
    for number in range(3):
        Image.new("RGB", (9, 9), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    assert main(["backbones", "--root", str(tmp_path / "labels.csv"), "--candidates", "mini"]) == 2
    assert "expected at least two classes, got 1" in capsys.readouterr().err


# Candidates


def test_listed_candidates_are_known_to_open_clip():
    for candidate in read_candidates():
        assert candidate.tag in open_clip.list_pretrained_tags_by_model(candidate.name)
        assert candidate.licence and candidate.megabytes


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("ViT-B-32:openai", "ViT-B-32", "openai"),
        ("mini", "hegraph-mini", ""),
        ("hf-hub:some/model", "hf-hub:some/model", ""),
        ("RN50", "RN50", ""),
    ],
)
def test_candidate_is_read(text, name, tag):
    candidate = parse_candidate(text, [])
    assert (candidate.name, candidate.tag) == (name, tag)


@pytest.mark.parametrize(("text", "megabytes"), [("500MB", 500), ("1.5 GB", 1500), ("1gb", 1000), (" 1000KB ", 1)])
def test_size_is_read(text, megabytes):
    assert size(text) == megabytes


@pytest.mark.parametrize("text", ["", "MB", "manyGB", "500 photos", "500", "5000000", "999KB"])
def test_other_sizes_are_refused(capsys, text):
    assert main(["backbones", "--max-size", text]) == 2
    expected = "argument --max-size: expected a number with a unit, 1 MB or more, such as 500MB, got "
    assert f"{expected}{text!r}" in capsys.readouterr().err


def test_key_instead_of_a_candidate_is_refused(cli_error):
    assert "--candidates: expected at least one backbone before the key SEED" in cli_error(
        "backbones", "--candidates", "SEED", "2"
    )


FAILED = BackboneResult(Candidate(name="failed"), error="no weights")


@pytest.mark.parametrize(("results", "reason"), [
    ([result("a", "1110" * 10), result("b", "1100" * 10)], ""),
    ([result("a", "1110" * 10)], "a is the only one that was compared"),
    ([result("a", "1110" * 10), FAILED], "a is the only one that was compared"),
    ([FAILED], "none could be compared"),
    # Wilson's interval of 15 of 40 begins at 24 %
    ([result("a", "10100100" * 5), result("b", "1000" * 10)],
     "none is clearly better than always naming the largest class (25.0 %)"),
])  # fmt: skip
def test_single_backbone_and_chance_are_not_recommended(results, reason):
    assert reason_against(results) == reason


def test_seed_of_zero_is_kept():
    args = parse_arguments(["--root", "photos", "--seed", "0", "--candidates", "mini"])
    [candidate] = read_candidates(["mini"], None)
    assert keys_of(args, candidate)["SEED"] == 0 and " --seed 0 " in training_command(args, candidate)


def test_candidate_of_the_largest_size_stays(no_hub):
    [smallest] = read_candidates(max_megabytes=400)
    assert read_candidates(max_megabytes=smallest.megabytes) == [smallest]


def test_size_of_local_weights_is_the_size_of_their_file(random_model, refused):
    megabytes = Path(random_model.removeprefix("local-dir:"), "open_clip_model.safetensors").stat().st_size / 1e6
    assert len(read_candidates([random_model], megabytes)) == 1
    with refused("candidates.size"):
        read_candidates([random_model], 0.9 * megabytes)


def test_large_candidates_are_left_out(no_hub):
    assert {candidate.name for candidate in read_candidates(max_megabytes=400)} == {"MobileCLIP-S1"}


@pytest.mark.parametrize(
    ("names", "most", "code"), [(["mini", "hegraph-mini"], None, "candidates.repeated"), ([], 1.0, "candidates.size")]
)
def test_unusable_candidates_are_refused(names, most, code, refused, no_hub):
    with refused(code):
        read_candidates(names, most)


def test_local_weights_are_found_without_a_request(no_hub, random_model):
    assert local_weights("hegraph-mini", "") == MINI_CONFIG.with_suffix(".safetensors")
    assert local_weights(random_model, "").name == "open_clip_model.safetensors"
    assert local_weights("ViT-B-32-quickgelu", "openai") is None


# The recommendation


def test_fastest_tie_is_recommended():
    results = [result("best", "1" * 30), result("slow", "1" * 29 + "0", 0.5), result("fast", "1" * 28 + "00", 9)]
    recommended, difference = recommend(results)
    assert recommended.candidate.name == "fast"
    assert difference.low < difference.mean < 0 <= difference.high


def test_worse_backbone_is_not_recommended():
    recommended, difference = recommend([result("best", "1" * 30), result("fast", "10" * 15, 9)])
    assert (recommended.candidate.name, difference) == ("best", None)


def test_no_usable_candidate_is_one_error(refused):
    with refused("candidates.none", "out of memory"):
        recommend([BackboneResult(Candidate(name="large"), error="out of memory")])


@pytest.mark.parametrize(("error", "message"), [
    (MemoryError(), "out of memory; use smaller batches"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; use smaller batches"),
    (OSError(errno.ENOSPC, "No space left on device", "/cache/x"), "No space left on device: /cache/x"),
])  # fmt: skip
def test_lack_of_memory_or_disk_is_a_row(error, message):
    def encode(candidate):
        raise error

    [found] = compare_candidates([Candidate(name="hegraph-mini")], encode)
    assert found.error.startswith(message)


def test_other_exceptions_are_raised():
    def encode(candidate):
        raise RuntimeError("size of tensor a must match")

    with pytest.raises(RuntimeError, match="must match"):
        compare_candidates([Candidate(name="hegraph-mini")], encode)


# Python


@pytest.fixture(scope="module")
def digits() -> tuple[list, list]:
    dataset = load_few_shot("Digits", "", 3, 1)
    return [dataset.open(item.path) for item in dataset.train], [item.classname for item in dataset.train]


def test_frame_is_sorted_by_accuracy(digits, random_model):
    frame = compare_backbones(*digits, candidates=[random_model, "mini"])
    assert (tuple(frame), frame["backbone"].tolist()) == (COLUMNS, ["hegraph-mini", random_model])
    assert frame["held_out"].is_monotonic_decreasing
    assert (frame["low"] <= frame["held_out"]).all()
    assert (frame["held_out"] < frame["high"]).all()


def test_labels_may_be_indices(digits):
    images, labels = digits
    names = sorted(set(labels))
    by_index = compare_backbones(images, [names.index(label) for label in labels], names, candidates=["mini"])
    by_name = compare_backbones(images, labels, candidates=["mini"])
    assert by_index["held_out"].tolist() == by_name["held_out"].tolist()


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 1]), np.array([0, 1, 1]), [False, True, True]])
def test_labels_may_be_tensors_arrays_or_booleans(labels):
    names, indices = class_indices(["1.jpg", "2.jpg", "3.jpg"], labels, ["a", "b"])
    assert (names, indices.dtype, indices.tolist()) == (["a", "b"], torch.int64, [0, 1, 1])
    names, _ = class_indices(["1.jpg", "2.jpg", "3.jpg"], labels, None)
    assert len(names) == 2


@pytest.mark.parametrize(
    ("labels", "names", "code"),
    [
        (["a"], None, "labels.number"),
        (["a", "c", "b"], ["a", "b"], "labels.unknown"),
        ([0, 1, 5], ["a", "b"], "labels.unknown"),
        (["a", 1, "a"], None, "labels.type"),
        ([["a"], ["b"], ["a"]], None, "labels.type"),
        (["a", "a", "a"], None, "classes.few"),
        (torch.eye(3), None, "labels.type"),
        (np.eye(3), ["a", "b", "c"], "labels.type"),
    ],
)
def test_wrong_labels_are_refused(labels, names, code, refused):
    with refused(code):
        compare_backbones(["1.jpg", "2.jpg", "3.jpg"], labels, names)


def test_unreadable_images_are_an_error_of_the_row(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    frame = compare_backbones([tmp_path / "a.jpg"] * 2, ["a", "b"], candidates=["mini"])
    assert "a.jpg" in frame["error"][0]


def test_invalid_repository_is_refused():
    with pytest.raises(UserError, match="expected the name of a repository"):
        read_candidates(["hf-hub:no name"], 1.0)


# Labels in Python: one reading for all


THREE = ["1.jpg", "2.jpg", "3.jpg"]


def test_integers_are_indices_of_names_like_numbers():
    names, indices = class_indices(THREE, [0, 1, 2], ["2", "3", "1"])
    assert (names, indices.tolist()) == (["2", "3", "1"], [0, 1, 2])


def test_strings_are_names_like_numbers():
    _, indices = class_indices(THREE, ["2", "3", "1"], ["1", "2", "3"])
    assert indices.tolist() == [1, 2, 0]


@pytest.mark.parametrize(("labels", "names", "code"), [
    ([0, "b", 1], ["a", "b"], "labels.type"),  # an index and a name
    ([1, 2, 3], ["2", "3", "1"], "labels.unknown"),  # integers are no names
    ([0.0, 1.0, 1.0], ["a", "b"], "labels.type"),
    ([1.0, float("nan"), 2.0], None, "labels.type"),
    (["a", None, "b"], None, "labels.type"),
    (["a", " ", "b"], None, "schema"),
    ([0, 1, 1], ["a", ""], "schema"),
    ([0, 1, 1], "ab", "schema"),
    (["crane", "bee", "bee"], ["crane", "bee", "crane"], "labels.unknown"),  # two classes have this name
])  # fmt: skip
def test_labels_with_two_readings_are_refused(labels, names, code, refused):
    with refused(code):
        class_indices(THREE, labels, names)


def test_indices_distinguish_classes_of_one_name():
    assert class_indices(THREE, [0, 1, 2], ["crane", "bee", "crane"])[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("candidates", [[5], [""], [None], 5, "mini"], ids=str)
def test_candidates_are_a_list_of_names(candidates):
    with pytest.raises(UserError, match="candidates: "):
        compare_backbones(THREE, ["a", "b", "b"], candidates=candidates)


# Speed and ranking


def test_interval_of_accuracy_is_wilsons():
    z, p, n = 1.959964, 30 / 40, 40
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    found = result("some", "1" * 30 + "0" * 10).interval()
    assert found == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-3)


def test_fastest_of_two_tied_candidates_is_recommended():
    results = [result("best", "1" * 30), result("fastest", "1" * 29 + "0", 9), result("faster", "1" * 29 + "0", 5)]
    assert recommend(results)[0].candidate.name == "fastest"


def test_speed_is_images_per_second(monkeypatch):
    """A backbone of 0.25 seconds per call, after a slower first call, encodes 3 images in each."""
    clock = [0.0]

    class Slow:
        calls = 0

        def encode_images(self, images):
            self.calls += 1
            clock[0] += 7.0 if self.calls == 1 else 0.25 + 0.125 * (self.calls == 2)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    backbone = Slow()
    assert measure_speed(backbone, [Image.new("RGB", (2, 2))] * 3) == 3 / 0.25
    assert backbone.calls == 9  # the first one, and 0.375 + 7 * 0.25 seconds, which exceed 2


def test_several_labels_are_ranked_without_the_image():
    """The text of the two classes is exchanged, so zero-shot CLIP is wrong, and a fit to the other images is right."""
    random = torch.Generator().manual_seed(1)
    labels = torch.eye(2, dtype=torch.long)[torch.arange(12) % 2]
    images = torch.nn.functional.normalize(
        torch.eye(4)[torch.arange(12) % 2] + 0.05 * torch.rand(12, 4, generator=random)
    )
    precision, outcome = held_out_outcome(Encoded(None, images, labels, torch.eye(4)[[1, 0]], []))
    assert precision < 0.5
    assert BackboneResult(Candidate(name="some"), outcome=outcome).accuracy == 100


def test_several_labels_are_ranked_without_the_group():
    """Both images of a group have the same feature and random labels, so only an image of the group knows them."""
    random = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(15, 6, generator=random), dim=1).repeat_interleave(2, dim=0)
    labels = (torch.rand(15, 3, generator=random) < 0.5).long().repeat_interleave(2, dim=0)
    groups = torch.arange(30) // 2
    _, alone = held_out_outcome(Encoded(None, features, labels, torch.zeros(3, 6), []))
    _, grouped = held_out_outcome(Encoded(None, features, labels, torch.zeros(3, 6), [], groups))
    accuracies = [BackboneResult(Candidate(name="some"), outcome=outcome).accuracy for outcome in (alone, grouped)]
    assert accuracies[0] > accuracies[1] + 20


@pytest.mark.parametrize("several", [False, True])
def test_classes_without_text_have_no_zero_shot_accuracy(several):
    labels = torch.arange(12) % 2
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.eye(4)[labels] + 0.2 * torch.randn(12, 4, generator=generator), dim=1)
    indicators = F.one_hot(labels).bool() if several else labels
    backbone = SimpleNamespace(logit_scale=100.0)
    zero_shot, outcome = held_out_outcome(Encoded(backbone, images, indicators, torch.zeros(2, 4), []))
    assert np.isnan(zero_shot)
    result = BackboneResult(Candidate(name="some"), zero_shot, outcome=outcome, images_per_second=1.0)
    [_, row] = [line for line in table_lines([result]) if line.strip()][:2]
    assert "nan" not in row and "some" in row and result.accuracy > 80


def ranked(name: str, scores: list[list[float]], speed: float) -> BackboneResult:
    """Result with several labels per image: 20 images, each with one of two labels in turn."""
    labels = np.eye(2, dtype=bool)[np.arange(20) % 2]
    return BackboneResult(Candidate(name=name), 50.0, Ranking(np.array(scores), labels), speed)


def test_faster_but_worse_ranking_is_not_recommended():
    right = [[1.0, 0.0], [0.0, 1.0]] * 10
    wrong = [[0.0, 1.0], [1.0, 0.0]] * 10
    best = ranked("best", right, 1.0)
    worst = ranked("worst", wrong, 9.0)
    assert best.accuracy == 100 and worst.accuracy == 50
    assert worst.minus(best).high < 0 < best.minus(worst).low
    assert recommend([best, worst])[0].candidate.name == "best"
