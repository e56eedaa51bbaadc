"""Feature banks: file format, refusals, and samples of rows."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.datasets.splits import FewShotSample
from trainers.hegraph.features import bank as bank_module
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.features.bank import BankFile, FeatureBank, load_bank, sample_bank, text_with_norm
from trainers.hegraph.features.copies import refuse_test_rows
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import hash_file

ENCODER = BackboneConfig(
    model="ViT-B-32", pretrained="openai", precision="amp", fingerprint={"model": "a", "weights": "é"}
)
TENSORS = ("train_features", "train_labels", "val_features", "val_labels", "test_features", "test_labels")
TEXT = ("text_positive", "text_negative")
NO_TEST = {"test_features": torch.zeros(0, 4), "test_labels": torch.zeros(0, dtype=torch.int64)}
TRAIN, VAL = [7, 0, 3, 29], [2, 11]  # rows of the tiny bank


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_bank(views: int = 1) -> FeatureBank:
    """K = 3 classes, d = 4; unequal numbers of training images."""
    return FeatureBank(
        train_features=unit(views, 6, 4, seed=1), train_labels=torch.tensor([0, 0, 0, 2, 1, 1]),
        text_positive=unit(3, 4, seed=2), text_negative=unit(3, 4, seed=3),
        classnames=["crème brûlée", "a/b", "zürich"], dataset="Toy", backbone="toy/weights", logit_scale=1 / 3,
        val_features=unit(3, 4, seed=4), val_labels=torch.tensor([0, 1, 2]), test_features=unit(5, 4, seed=5),
        test_labels=torch.tensor([2, 1, 0, 1, 2]), text_norms=torch.tensor([9.0, 10.0, 11.0]), encoder=ENCODER,
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path) -> Path:
    make_bank().save(tmp_path / "new" / "bank.safetensors")
    return tmp_path / "new" / "bank.safetensors"


def assert_same(one: FeatureBank, other: FeatureBank) -> None:
    for name in FeatureBank.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        assert torch.allclose(a, b, rtol=0, atol=1e-6) if isinstance(a, torch.Tensor) else a == b, name


# On disk


@pytest.mark.parametrize("views", [1, 3])
def test_saved_bank_loads_unchanged(saved, views):
    make_bank(views).save(saved)
    assert_same(load_bank(saved), make_bank(views))


def test_optional_and_unknown_content(saved, rewrite):
    def change(tensors, metadata):
        for name in (*TENSORS[2:], "text_norms"):
            del tensors[name]
        del metadata["dataset"], metadata["backbone"], metadata["encoder"]
        tensors["superclass_labels"], metadata["notes"] = torch.tensor([0, 1]), "none"

    bank = load_bank(rewrite(saved, change))
    absent = dict.fromkeys((*TENSORS[2:], "text_norms"))
    assert_same(bank, replace(make_bank(), dataset="bank", backbone="unknown", encoder=BackboneConfig(), **absent))
    with pytest.raises(ValueError, match="no test images"):
        _ = bank.features_to_classify


def with_groups() -> FeatureBank:
    numbers = {"train": [0, 0, 1, 1, 2, 2], "val": [3, 4, 4], "test": [5, 6, 7, 8, 8]}
    return replace(make_bank(), **{f"{split}_groups": torch.tensor(groups) for split, groups in numbers.items()})


def test_groups_are_saved_and_sampled(saved):
    with_groups().save(saved)
    assert_same(load_bank(saved), with_groups())
    sampled = sample_bank(BankFile(saved), FewShotSample([4, 0], [2]))
    assert (sampled.train_groups.tolist(), sampled.val_groups.tolist()) == ([2, 0], [4])
    assert len(sampled.test_groups) == 5 and sampled.without_test().test_groups is None
    assert sampled.of_classes(torch.tensor([0, 2])).train_groups.tolist() == [0]


def put(name: str, tensor: torch.Tensor):
    return lambda tensors, _: tensors.update({name: tensor})


def at(name: str, place: tuple[int, ...], value: float):
    return lambda tensors, _: tensors[name].__setitem__(place, value)


def text(key: str, value: str):
    return lambda _, metadata: metadata.update({key: value})


@pytest.mark.parametrize(("change", "words"), [
    (lambda tensors, _: tensors.pop("train_features"), "it lacks train_features"),
    (lambda tensors, _: tensors.pop("val_labels"), "it lacks val_labels"),
    (lambda _, metadata: metadata.pop("logit_scale"), "logit_scale"),
    (put("train_groups", torch.zeros(6, dtype=torch.int64)), "it has train_groups but lacks val_groups"),
    (put("val_groups", torch.zeros(2, dtype=torch.int64)), "val_groups must be I64 of shape [3]"),
    (put("test_groups", torch.zeros(5)), "test_groups must be I64 of shape [5]"),
    (put("train_features", unit(1, 6, 7)), "train_features must be F16 or BF16 or F32 or F64 of shape [1, 6, 4]"),
    (put("test_features", torch.zeros(5, 4, dtype=torch.int64)), "got I64 of shape [5, 4]"),
    (put("text_negative", torch.ones(3)), "text_negative must be"),
    (lambda tensors, _: tensors.update(NO_TEST), "test_features must be"),
    (put("text_norms", torch.ones(3, 1)), "text_norms must be"),
    (put("train_labels", torch.zeros(6)), "train_labels must be I64 of shape [6]"),
    (at("train_features", (0, 2, 1), float("nan")), "expected finite rows of unit norm in train_features"),
    (at("test_features", (2, 1), float("inf")), "got the norm inf in row [2]"),
    (at("text_positive", (2,), 0.0), "of unit norm in text_positive, got the norm 0 in row [2]"),
    (at("val_features", (1,), 3.0), "got the norm 6 in row [1]"),
    (at("train_labels", (1,), 3), "expected train_labels from 0 to 2, one for each class name, got 0 to 3"),
    (at("test_labels", (1,), -1), "got -1 to 2"),
    (at("text_norms", (1,), 0.0), "text_norms must be positive"),
    (text("classnames", '["a", "", "c"]'), "classnames"),
    (text("classnames", '["cat", "dog", "cat"]'), "class names repeat: cat"),
    (text("logit_scale", "nan"), "logit_scale"), (text("logit_scale", "0"), "logit_scale"),
    (text("encoder", '{"model": "R", "pretrained": "", "precision": "int8", "fingerprint": {}}'), "encoder"),
])  # fmt: skip
def test_invalid_banks_are_refused(saved, rewrite, change, words):
    with pytest.raises(UserError) as caught:
        load_bank(rewrite(saved, change))
    message = str(caught.value)
    assert message.startswith(str(saved)) and words in message and "\n" not in message


def test_one_class_name_in_ten_may_repeat(saved, rewrite):
    def named(*names: str) -> Path:
        text = {name: unit(len(names), 4) for name in TEXT} | {"text_norms": torch.ones(len(names))}
        changes = {"classnames": json.dumps(names)}
        return rewrite(saved, lambda tensors, metadata: (tensors.update(text), metadata.update(changes)))

    assert load_bank(named(*map(str, range(18)), "0", "1")).classnames[-2:] == ["0", "1"]
    with pytest.raises(UserError, match="class names repeat: 0, 1"):
        load_bank(named(*map(str, range(17)), "0", "1"))


# In memory


def test_bank_of_some_classes():
    whole = make_bank(views=2)
    part = whole.of_classes(torch.tensor([0, 2]))
    labels = [part.train_labels.tolist(), part.val_labels.tolist(), part.test_labels.tolist()]
    assert labels == [[0, 0, 0, 1], [0, 1], [1, 0, 1]]
    assert torch.equal(part.train_features, whole.train_features[:, :4])
    assert torch.equal(part.test_features, whole.test_features[[0, 2, 4]])
    assert torch.equal(part.text_positive, whole.text_positive[[0, 2]])
    assert torch.equal(part.text_negative, whole.text_negative[[0, 2]])
    assert (part.classnames, part.text_norms.tolist(), part.encoder) == (["crème brûlée", "zürich"], [9, 11], ENCODER)
    assert whole.subsample("base").text_norms.tolist() == [9, 10]


def test_cache_keys_are_normalised_means():
    views = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 1, 0]], [[0, 1.0, 0, 0], [0, 0, 1, 0]]])
    bank = replace(make_bank(), train_features=views, train_labels=torch.tensor([0, 1]))
    half = 0.5**0.5
    torch.testing.assert_close(bank.cache_keys(), torch.tensor([[half, half, 0, 0], [0, 0, 1, 0]]))


def test_to_moves_every_tensor():
    moved = make_bank().to("meta")
    assert {getattr(moved, name).device.type for name in (*TENSORS, "text_positive", "text_norms")} == {"meta"}


# Samples of a file


def test_sample_equals_rows_of_the_bank(tiny_bank):
    """With two views; `test_every_type_is_read_whole_and_by_rows` has one view."""
    sampled, whole = sample_bank(BankFile(tiny_bank), FewShotSample(TRAIN, VAL)), load_bank(tiny_bank)
    rows = {"train_features": whole.train_features[:, TRAIN], "train_labels": whole.train_labels[TRAIN]}
    rows |= {"val_features": whole.val_features[VAL], "val_labels": whole.val_labels[VAL]}
    assert_same(sampled, replace(whole, **rows))


def test_only_sampled_rows_are_checked(tiny_bank, rewrite):
    nan = float("nan")
    rewrite(tiny_bank, at("train_features", (0, 4, 1), nan))  # not sampled
    assert sample_bank(BankFile(tiny_bank), FewShotSample(TRAIN, VAL)).train_features.isfinite().all()
    rewrite(tiny_bank, at("train_features", (1, 29, 6), nan))
    with pytest.raises(UserError, match=r"in train_features, got the norm nan in row \[1, 29\]"):
        sample_bank(BankFile(tiny_bank), FewShotSample(TRAIN, VAL))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_is_read_whole_and_by_rows(saved, rewrite, dtype):
    def change(tensors, _):
        tensors |= {name: tensors[name].to(dtype) for name in (*TENSORS[::2], *TEXT)}
        tensors["train_features"] = tensors["train_features"][0].clone()  # without an axis of views

    file, rounded = BankFile(rewrite(saved, change)), F.normalize(make_bank().train_features.to(dtype).float(), dim=-1)
    assert torch.equal(file.features("train"), rounded)
    for rows in ([], [2], [5, 0], [1, 1, 0]):
        assert torch.equal(file.features("train", rows), rounded[:, rows])
    assert (file.features("val", []).shape, file.digest) == ((0, 4), hash_file(saved))


def test_changed_bank_is_refused(saved, refused):
    file = BankFile(saved)
    saved.write_bytes(saved.read_bytes() + b" ")
    with refused("bank.changed", "has changed since it was opened; start again"):
        file.features("train")


def test_large_bank_is_hashed_by_sample(tiny_bank, rewrite, monkeypatch):
    def digest_of(row: int) -> str:
        file = BankFile(tiny_bank)
        return file.digest_of(lambda: sample_bank(file, FewShotSample([row, 4], [1])))

    assert digest_of(0) == digest_of(1) == hash_file(tiny_bank)
    monkeypatch.setattr(bank_module, "MAX_HASHED_BYTES", 100)
    before = digest_of(0), digest_of(1)
    rewrite(tiny_bank, lambda tensors, _: tensors["train_features"][:, 1].neg_())
    assert digest_of(0) == before[0] != before[1] != digest_of(1)


def test_large_bank_is_hashed_with_its_metadata(tiny_bank, rewrite, monkeypatch):
    monkeypatch.setattr(bank_module, "MAX_HASHED_BYTES", 100)

    def digest() -> str:
        file = BankFile(tiny_bank)
        return file.digest_of(lambda: sample_bank(file))

    before = digest()
    rewrite(tiny_bank, lambda _, metadata: metadata.update(logit_scale="50.0"))
    assert digest() != before


# Norms of text features


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu/openai", "ViT-B/32/openai", "my-ViT-B-32/openai", "known"])
def test_text_norms_are_stored_or_default(caplog, name):
    bank = replace(make_bank(), backbone=name)
    norms = torch.full((3,), 1.0 if name.startswith("my") else 9.9)
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        if name == "known":
            norms, text = bank.text_norms, text_with_norm(bank)
        else:
            text = text_with_norm(replace(bank, text_norms=None))
    torch.testing.assert_close(text, norms[:, None] * bank.text_positive)
    message = f"the bank of Toy lacks norms of text features: using {norms[0]:.1f} for all"
    assert [message in line for line in caplog.messages] == [True] * (name != "known")
    assert (repr(name) in caplog.text) == name.startswith("my")


# Copies of test images


@pytest.mark.parametrize(("name", "place", "words"), [("val", 3, "1 of 15 val"), ("train", (1, 4), "1 of 30 train")])
def test_copies_of_test_rows_are_refused(tiny_bank, name, place, words):
    bank, rows = load_bank(tiny_bank), {"train": range(30), "val": range(15)}
    features = getattr(bank, f"{name}_features").clone()
    features[place] = bank.test_features[7]
    same = replace(bank, **{f"{name}_features": features.clone()})
    with pytest.raises(UserError, match=f"{words} images are test images as well"):
        refuse_test_rows(same, rows)
    refuse_test_rows(same.without_test(), rows)
    features[place][-1] += 1e-6  # only whole rows count
    refuse_test_rows(replace(bank, **{f"{name}_features": features}), rows)


def test_run_on_test_images_writes_nothing(run, tiny_bank, tmp_path):
    bank = load_bank(tiny_bank)
    row, tested = ((labels == 4).nonzero()[-1].item() for labels in (bank.train_labels, bank.test_labels))
    features = bank.train_features.clone()
    features[:, row] = bank.test_features[tested]
    replace(bank, train_features=features).save(tiny_bank)
    message = f"1 of 12 train images are test images as well, such as row {row};"  # the row in the file
    assert message in run("--shots", "-1", "DATASET.SUBSAMPLE_CLASSES", "new", code=2)
    assert not (tmp_path / "run").exists()
