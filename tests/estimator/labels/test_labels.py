"""Label issues by exact leave-one-out, suggestions, and the command `label`."""

import csv
import json
import logging
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph import Backbone, HeGraphClassifier, LabelIssue, UserError, load_bank
from trainers.hegraph.commands.label import main
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.estimator.labels.issues import find_label_issues
from trainers.hegraph.estimator.labels.leave_one_out import leave_one_out, left_out_logits, training_free_options
from trainers.hegraph.estimator.labels.smoothers import Smoother
from trainers.hegraph.estimator.labels.suggest import select, suggest, typicality
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.class_offsets import class_offsets, left_out_offsets
from trainers.hegraph.method.head.closed_form import ClosedForm
from trainers.hegraph.method.options import TrainingFreeOptions
from trainers.hegraph.method.training.confidence import fit_temperature
from trainers.hegraph.method.unlabelled import ClassSums
from trainers.hegraph.models.images import ImageModel

SCALE = 30.0
NAMES = ("ant", "bee", "cat", "dog")


def images_of(counts: list[int], width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of images around class centres, their labels, and text features; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.tensor([c for c, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres, common = normal(len(counts), width), 3 * normal(width)
    features = F.normalize(centres[labels] + normal(len(labels), width) + common, dim=1)
    text = F.normalize(0.5 * centres + centres @ normal(width, width) / width**0.5 + 1.5 * common, dim=1)
    return features, labels, text


# Label issues


@pytest.fixture(scope="module")
def wrong():
    """Features of 8 images of each of 4 classes, labels with three wrong ones, correct labels, and text features."""
    features, right, text = images_of([8] * 4, 48, seed=5)
    labels = right.clone()
    labels[[3, 12, 30]] = (right[[3, 12, 30]] + torch.tensor([1, 2, 3])) % 4
    return features.float(), labels, right, text.float()


def test_wrong_labels_are_first_with_right_suggestions(wrong):
    features, labels, right, text = wrong
    found = find_label_issues(features, labels, text, SCALE, NAMES)
    assert sorted(issue.index for issue in found) == list(range(32))
    assert found == sorted(found, key=lambda issue: -issue.score)
    doubted = {(issue.index, issue.label, issue.suggested) for issue in found if issue.score > 0}
    assert doubted == {(row, NAMES[labels[row]], NAMES[right[row]]) for row in (3, 12, 30)}
    assert isinstance(found[0], LabelIssue)
    with pytest.raises(UserError, match="at least two classes"):
        find_label_issues(features, 0 * labels, text, SCALE, NAMES)
    assert {issue.label for issue in find_label_issues(features, labels % 2, text[:2], SCALE, NAMES)} == {"ant", "bee"}


def test_scores_from_calibrated_probabilities(wrong):
    features, labels, _, text = wrong
    logits = left_out_logits(features, labels, text, SCALE, training_free_options(10))
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    for issue in find_label_issues(features, labels, text, SCALE, range(4))[::7]:
        of_image = probabilities[issue.index]
        others = [of_image[c].item() for c in range(4) if c != issue.label]
        expected = math.log(math.hypot(*others) / of_image[issue.label].item())
        assert (issue.score, of_image[issue.suggested].item()) == (pytest.approx(expected, rel=1e-4), max(others))
        assert issue.odds == pytest.approx(math.exp(expected), rel=1e-3)


def test_label_issues_of_the_classifier(wrong):
    features, labels, right, text = wrong
    X, names = features.numpy(), [NAMES[c] for c in labels.tolist()]
    classifier = HeGraphClassifier(variant="training_free", text_features=text, logit_scale=SCALE)
    classifier.fit(X, [NAMES[c] for c in right.tolist()])
    assert classifier.label_issues(X, names) == find_label_issues(features, labels, text, SCALE, NAMES)
    with pytest.raises(UserError, match="elk"):
        classifier.label_issues(X, ["elk", *names[1:]])
    with pytest.raises(ValueError, match="inconsistent"):
        classifier.label_issues(X, names[1:])


# Leaving one out


def fit_to(features: Tensor, labels: Tensor, text: Tensor, shots: int) -> FoldedClassifier:
    options = training_free_options(shots)
    zero_shot = FoldedClassifier(SCALE * text, class_offsets(SCALE * features @ text.t(), labels, "training"))
    messages = ClosedForm.fit(features, labels, text, options.kappa, options.rho).to_text
    return zero_shot.plus(options.omega * SCALE * messages.weights, options.omega * SCALE * messages.bias)


def left_out(features: Tensor, labels: Tensor, text: Tensor, options: TrainingFreeOptions) -> Tensor:
    zero_shot = SCALE * features @ text.t()
    logits = left_out_logits(features, labels, text, SCALE, options, trusts_text=False)
    return logits + left_out_offsets(zero_shot, labels, "training")


# Also of more classes than features, and of two classes, whose slopes without an image differ widely
@pytest.mark.parametrize(("counts", "width", "seed"), [
    ([3, 2, 5, 4, 2], 8, 5), ([16, 9, 12], 24, 3), ([2] * 12, 6, 12), ([2, 9], 8, 1), ([2, 9], 8, 4), ([2, 9], 12, 3),
])  # fmt: skip
def test_left_out_logits_equal_a_separate_fit(counts, width, seed):
    features, labels, text = images_of(counts, width, seed)
    found = left_out(features, labels, text, training_free_options(max(counts)))
    for j in range(len(labels)):
        others = torch.arange(len(labels)) != j
        expected = fit_to(features[others], labels[others], text, max(counts)).logits(features[j : j + 1])[0]
        torch.testing.assert_close(found[j] - found[j].mean(), expected - expected.mean(), atol=1e-5, rtol=1e-5)


def test_regressions_are_not_kept(monkeypatch):
    """Each strength of the ridge regression has matrices of all pairs of classes."""
    alive: weakref.WeakSet[Smoother] = weakref.WeakSet()
    most = []
    begin = Smoother.__init__

    def count(self, *arguments):
        begin(self, *arguments)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Smoother, "__init__", count)
    features, labels, text = images_of([4] * 6, 8, seed=2)
    left_out(features, labels, text, training_free_options(4))
    assert len(most) > 10 and max(most) <= 2


def test_single_image_of_a_class_leaves_text_prior():
    features, labels, text = images_of([1, 4, 3, 5, 4, 4], 10, seed=2)
    alone, others, options = labels == 0, labels != 0, training_free_options(5)
    found = left_out(features, labels, text, options)[alone]
    closed = ClosedForm.fit(features[others], labels[others] - 1, text[1:], options.kappa, options.rho)
    rest, own = closed.to_text, closed.for_new_classes().logits(features[alone].float(), text[:1].float())
    messages = torch.cat([own, features[alone].float() @ rest.weights.t() + rest.bias], dim=1)
    zero_shot = SCALE * features @ text.t()
    expected = (
        zero_shot[alone]
        + class_offsets(zero_shot[others], labels[others], "training")
        + options.omega * SCALE * messages
    )
    # Without its class, the ridge regression has another centre: 1 of 6 classes
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=0.15)


@pytest.mark.parametrize("counts", [[1, 1], [1, 4], [2, 0, 1]])
def test_zero_shot_where_other_images_are_of_one_class(counts):
    features, labels, text = images_of(counts, 8, seed=5)
    logits, predicted = leave_one_out(features, labels, text, SCALE)
    zero_shot = SCALE * features @ text.t()
    single = torch.tensor(counts)[labels] == 1
    torch.testing.assert_close(logits[single], zero_shot[single])
    assert torch.equal(predicted[single], zero_shot[single].argmax(dim=1))
    assert ((logits - zero_shot)[~single].abs().amax(dim=1) > 1e-3).all()


def test_odds_of_any_score_are_finite():
    issue = LabelIssue(0, "cat", "dog", score=1e6)
    assert 1e300 < issue.odds < math.inf and LabelIssue(0, "cat", "dog", score=2.0).odds == pytest.approx(math.e**2)


def test_class_without_images_has_its_text_prior():
    features, labels, text = images_of([4, 5, 0, 6, 3], 10, seed=4)
    found = left_out(features, labels, text, training_free_options(6))
    assert found.isfinite().all() and found.shape == (18, 5)
    seen = torch.tensor([0, 1, 3, 4])
    alone = left_out(features, torch.searchsorted(seen, labels), text[seen], training_free_options(6))
    assert torch.equal(found[:, seen].argmax(dim=1), alone.argmax(dim=1))


def test_equal_images_have_finite_logits():
    features, labels = torch.full((6, 4), 0.5, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    assert left_out(features, labels, torch.eye(4, dtype=torch.float64)[:2], training_free_options(3)).isfinite().all()


def test_options_are_those_of_the_mean_number_of_images():
    features, labels, text = images_of([1, 21, 2], 10, seed=6)
    logits, _ = leave_one_out(features, labels, text, SCALE)
    of_mean, of_largest = (left_out_logits(features, labels, text, SCALE, training_free_options(n)) for n in (8, 21))
    assert torch.equal(logits, of_mean) and not torch.allclose(logits, of_largest)


@pytest.mark.parametrize(("shots", "constants"), [(1, (4.0, 0.3, 0.15)), (2, (2.0, 0.3, 0.15)), (9, (2.0, 0.3, 0.3))])
def test_default_options_by_shots(shots, constants):
    options = training_free_options(shots)
    assert (options.kappa, options.rho, options.omega) == constants


# Suggestions


def test_typical_images_first_then_smallest_margins():
    edges = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.3, 0.3]])
    typical = torch.tensor([[4.0, 0, 0], [3.0, 1, 0], [1.0, 2, 5], [0.0, 3, 4], [0.0, 0, 3]])
    counts = torch.tensor([1.0, 1.0, 0.0])
    # Class 2 has no label: image 2. All have one then; class 0 comes first: images 0, 1 and 4 are predicted as it, with
    # margins of 0.8, 0.1 and 0.1: image 1. Class 1: image 3. Class 2 is predicted of none: the least sure, image 4.
    assert select(edges, typical.clone(), counts, 2) == [2, 1]
    assert (select(edges, typical.clone(), counts, 9), counts.tolist()) == ([2, 1, 3, 4, 0], [1.0, 1.0, 0.0])
    assert select(torch.ones(3, 1), torch.tensor([[0.0], [2.0], [1.0]]), torch.zeros(1), 3)[0] == 1


def test_image_typical_of_two_classes_is_suggested_once():
    edges = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.4, 0.6]])
    typical = torch.tensor([[5.0, 5.0], [0.0, 1.0], [1.0, 0.0]])  # image 0 is the most typical one of both classes
    assert select(edges, typical, torch.zeros(2), 2) == [0, 1]


def test_typicality_by_hand():
    features, labels, _ = images_of([6] * 3, 5, seed=1)
    known, unknown = features[::3], features[torch.arange(18) % 3 != 0]
    labelled = ClassSums.of(known.float(), labels[::3], 3)
    edges = torch.rand(12, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    found = typicality(edges, unknown.float(), labelled)
    everything = torch.cat([known, unknown])
    weights = torch.cat([F.one_hot(labels[::3], 3), edges.double()])
    nodes = (weights.t() @ everything) / weights.sum(dim=0)[:, None]
    deviations = everything[:, None] - nodes
    covariance = torch.einsum("ic,ica,icb->ab", weights, deviations, deviations) / 18
    inverse = torch.linalg.inv(covariance + 0.3 * covariance.trace() / 18 * torch.eye(5, dtype=torch.float64))
    away = unknown[:, None] - nodes
    squares = torch.einsum("ica,ab,icb->ic", away, inverse, away)
    torch.testing.assert_close(found.double(), edges.double().log() - squares / squares.mean(), atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def few():
    """Classifier fitted to two images of each class but one of the last; 40 unlabelled images, and their classes."""
    features, labels, text = images_of([12, 12, 12, 11], 48, seed=3)
    seen = torch.cat([(labels == c).nonzero()[: 1 if c == 3 else 2, 0] for c in range(4)])
    rest = np.setdiff1d(np.arange(47), seen)
    classifier = HeGraphClassifier(variant="training_free", text_features=text, logit_scale=20.0)
    return classifier.fit(features[seen], labels[seen]), features[rest].numpy(), labels[rest].numpy()


def test_suggestions_favour_the_class_with_fewest_labels(few):
    classifier, pool, truth = few
    found = classifier.suggest(pool, 5)
    assert truth[found[0]] == 3 and set(truth[found]) == {0, 1, 2, 3}
    everything = classifier.suggest(pool, 100)
    assert everything[:5] == found and sorted(everything) == list(range(40))


@pytest.mark.parametrize("number", [0, 1.5])
def test_invalid_numbers_of_suggestions_are_refused(few, number):
    with pytest.raises(UserError, match="n: Input"):
        few[0].suggest(few[1], number)


def test_labels_count_after_an_adaptation(few):
    classifier, pool, _ = few
    adapted = HeGraphClassifier.from_model(classifier.model_)
    expected = adapted.suggest(pool, 9)
    assert adapted.adapt(pool).suggest(pool, 9) == expected


def test_adapted_model_suggests_images(few):
    classifier, pool, _ = few
    adaptation = HeGraphClassifier(
        variant="training_free", text_features=classifier.model_.text_positive, logit_scale=20.0
    )
    adaptation.fit(pool[:8], np.arange(8) % 4).adapt(pool)
    assert len(adaptation.suggest(pool, 3)) == 3
    adaptation._fitted = adaptation.model_  # as of a loaded one
    assert len(adaptation.suggest(pool, 3)) == 3


# The command


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Path:
    """Folder train/ with 4 scans of each of 4 digits, one five among the zeros; unlabelled/ with 8 more scans."""
    monkeypatch.chdir(tmp_path)
    data = load_digits_dataset()
    for label in (0, 1, 4, 5):
        for number, item in enumerate([item for item in data.train if item.label == label][:6]):
            classname = data.classnames[0 if (label, number) == (5, 0) else label]
            folder = "unlabelled" if number >= 4 else f"train/{classname}"
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            data.open(item.path).save(tmp_path / folder / f"{label}-{number}.png")
    return tmp_path


@pytest.mark.parametrize("folder", ["", "train"], ids=["folder train", "class folders"])
def test_scan_in_the_wrong_folder_is_reported(folder, digits, capsys):
    arguments = ["check", "--root", str(digits / folder), "--config-file", "mini"]
    assert main(arguments) == 1
    head, line = capsys.readouterr().out.splitlines()
    wrong = digits / "train" / "zero" / "5-0.png"
    path, label, suggested, score = line.split()
    assert (path, label, suggested) == (str(wrong), "zero", "five") and float(score) > 2
    assert [head.index(name) for name in head.split()] == [line.rindex(cell) for cell in line.split()]
    wrong.rename(digits / "train" / "five" / "5-0.png")
    assert (main([*arguments, "--format", "csv"]), capsys.readouterr().out) == (0, "path,label,suggested,score\n")


def test_paths_of_a_table_are_relative_to_its_folder(digits, capsys):
    rows = [f"{path.relative_to(digits)},{path.parent.name}\n" for path in (digits / "train").rglob("*.png")]
    (digits / "labels.csv").write_text("".join(["path,label\n", *rows]))
    assert main(["check", "--root", str(digits / "labels.csv"), "--config-file", "mini"]) == 1
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[0] == str(digits / "train" / "zero" / "5-0.png")


def test_model_that_recognises_few_images_judges_no_labels(digits, capsys, caplog):
    """Each class folder has one image of each of the four digits, so that no label can be predicted."""
    images = sorted((digits / "train").rglob("*.png"), key=lambda path: path.name)
    for number, path in enumerate(images):
        target = digits / "mixed" / f"class {number % 4}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    caplog.set_level(logging.INFO)
    main(["check", "--root", str(digits / "mixed"), "--config-file", "mini"])
    assert "images as they are labelled, so its scores say little about the labels; " in caplog.text
    assert "labels are suspicious" not in caplog.text


def test_images_are_encoded_once_in_the_precision(digits, monkeypatch, caplog):
    encoded, encode = [], Backbone.encode_images

    def counted(backbone, *arguments):
        encoded.append((backbone.precision, len(arguments[0])))
        return encode(backbone, *arguments)

    monkeypatch.setattr(Backbone, "encode_images", counted)
    arguments = ["check", "--root", str(digits), "--config-file", "mini"]
    assert main([*arguments, "TRAINER.HEGRAPHADAPTER.PREC", "bf16"]) == 1
    assert (main([*arguments, "--precision", "fp32"]), encoded) == (1, [("bf16", 16), ("fp32", 16)])
    assert caplog.messages.count("encoded 16 train images") == 2


def test_check_of_a_bank_writes_all_formats(tiny_bank, tmp_path, capsys):
    bank = load_bank(tiny_bank)
    expected = find_label_issues(
        bank.cache_keys(), bank.train_labels, bank.text_positive, bank.logit_scale, bank.classnames
    )
    out = tmp_path / "rows.csv"
    assert main(["check", "--features", str(tiny_bank), "--above", "-1000", "--out", str(out)]) == 1
    head, *rows = csv.reader(out.open(encoding="utf-8"))
    assert head == ["path", "label", "suggested", "score"]
    wanted = [[f"{tiny_bank}#train/{i.index}", i.label, i.suggested, round(i.score, 4)] for i in expected]
    assert [[*row[:3], float(row[3])] for row in rows] == wanted
    assert main(["check", "--features", str(tiny_bank), "--above", "-1000", "--format", "jsonl"]) == 1
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert list(first.items()) == list(zip(head, wanted[0]))


def test_suggest_writes_prediction_rows_in_order(finished_digits_once, digits, capsys, caplog):
    caplog.set_level(logging.INFO)
    folder = digits / "unlabelled"
    (folder / "broken.png").write_bytes(b"no image")
    model = ImageModel.load(finished_digits_once)
    paths = sorted(str(path) for path in folder.iterdir() if path.name != "broken.png")
    features = model.features(paths)
    chosen = suggest(model.model, features, 3)
    assert main(["suggest", str(finished_digits_once), str(folder), "-n", "3", "--top", "2", "--format", "jsonl"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == [*(paths[place] for place in chosen), str(folder / "broken.png")]
    values, best = model.model.probabilities(features[chosen]).max(dim=1)
    for row, value, label in zip(rows, values.tolist(), best.tolist()):
        assert row["top"][0] == {"class": model.model.classnames[label], "probability": pytest.approx(value, rel=1e-4)}
        assert len(row["top"]) == 2
    assert rows[3]["error"]
    assert f"selected 3 of {len(paths)} images" in caplog.messages


@pytest.mark.parametrize("words", ["check --root nowhere", "suggest nowhere ."])
def test_missing_folder_is_refused(words, cli_error):
    assert "nowhere" in cli_error("label", *words.split())
