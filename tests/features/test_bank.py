"""The feature bank on disk: what it keeps, and one clear error for every fault."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph.datasets import Selection
from trainers.hegraph.features.bank import FeatureBank, draw_bank, load_bank
from trainers.hegraph.features.bank_file import BankFile, Encoder
from trainers.hegraph.utils.errors import UserError

ENCODER = Encoder(model="ViT-B-32", pretrained="openai", precision="amp", fingerprint={"model": "a", "weights": "é"})
TENSORS = ("train_features", "train_labels", "val_features", "val_labels", "test_features", "test_labels")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_bank(views: int = 1) -> FeatureBank:
    """K = 3 classes, d = 4; unequal numbers of training images."""
    return FeatureBank(
        train_features=unit(views, 6, 4, seed=1),
        train_labels=torch.tensor([0, 0, 0, 2, 1, 1]),
        text_positive=unit(3, 4, seed=2),
        text_negative=unit(3, 4, seed=3),
        classnames=["crème brûlée", "a/b", "zürich"],
        dataset="Toy",
        backbone="toy/weights",
        logit_scale=1 / 3,
        val_features=unit(3, 4, seed=4),
        val_labels=torch.tensor([0, 1, 2]),
        test_features=unit(5, 4, seed=5),
        test_labels=torch.tensor([2, 1, 0, 1, 2]),
        text_norms=torch.tensor([9.0, 10.0, 11.0]),
        encoder=ENCODER,
    )


@pytest.fixture
def raw(tmp_path) -> tuple[dict, dict]:
    """The tensors and metadata of a good bank, to be changed and written by `loaded`."""
    make_bank().save(tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


@pytest.fixture
def loaded(raw, tmp_path):
    """Writes the changed tensors and metadata, and loads them as a bank."""

    def load() -> FeatureBank:
        save_file(raw[0], tmp_path / "changed.safetensors", raw[1])
        return load_bank(tmp_path / "changed.safetensors")

    return load


@pytest.fixture
def fails(loaded):
    """The changed bank must fail with one line that names the file and holds some words."""

    def check(*words: str) -> None:
        with pytest.raises(UserError, match=r"changed\.safetensors") as caught:
            loaded()
        assert "\n" not in str(caught.value)
        assert [word for word in words if word not in str(caught.value)] == []

    return check


def assert_same(one: FeatureBank, other: FeatureBank) -> None:
    for name in FeatureBank.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        else:
            assert a == b, name


@pytest.mark.parametrize("views", [1, 3])
def test_a_saved_bank_loads_as_it_was(tmp_path, views):
    make_bank(views).save(tmp_path / "new" / "bank.safetensors")
    assert_same(load_bank(tmp_path / "new" / "bank.safetensors"), make_bank(views))
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["bank.safetensors"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, disk_full_after):
    with disk_full_after(500), pytest.raises(UserError, match=r"cannot write .*bank\.safetensors"):
        make_bank(views=10).save(tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


def test_features_without_views_become_one_view(raw, loaded):
    raw[0]["train_features"] = raw[0]["train_features"][0].clone()
    assert_same(loaded(), make_bank())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_become_unit_norm_float32(raw, loaded, dtype):
    raw[0].update({name: raw[0][name].to(dtype) for name in raw[0] if not name.endswith("labels")})
    bank = loaded()
    for features in (bank.train_features, bank.val_features, bank.test_features, bank.text_positive):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(bank.test_features, make_bank().test_features, rtol=0, atol=1e-3)


def test_what_is_optional_may_be_absent_and_what_is_unknown_is_ignored(raw, loaded):
    for name in ("val_features", "val_labels", "test_features", "test_labels", "text_norms"):
        del raw[0][name]
    for key in ("dataset", "backbone", "encoder"):
        del raw[1][key]
    raw[0]["superclass_labels"], raw[1]["notes"] = torch.tensor([0, 1]), "none"
    bank = loaded()
    assert (bank.dataset, bank.backbone) == ("changed", "unknown")
    assert bank.val_features is bank.test_labels is bank.text_norms is bank.encoder is None
    with pytest.raises(ValueError, match="no test images"):
        _ = bank.features_to_classify


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_truncated_file_is_named(tmp_path, keep):
    make_bank().save(tmp_path / "bank.safetensors")
    (tmp_path / "bank.safetensors").write_bytes((tmp_path / "bank.safetensors").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cannot read the feature bank .*bank\.safetensors: .+"):
        load_bank(tmp_path / "bank.safetensors")


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"train_features": Evil()}, tmp_path / "bank.safetensors")
    with pytest.raises(UserError, match="cannot read the feature bank"):
        load_bank(tmp_path / "bank.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [*TENSORS, "text_positive", "text_negative"])
def test_a_missing_tensor_is_named(raw, fails, name):
    del raw[0][name]
    fails(f"lacks {name};")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("train_features", unit(1, 6, 7)),
        ("val_features", unit(3, 7)),
        ("test_features", unit(1, 5, 4)),
        ("test_features", torch.empty(0, 4)),
        ("test_features", torch.zeros(5, 4, dtype=torch.int64)),
        ("test_features", torch.tensor(1.0)),
        ("text_positive", torch.ones(4)),
        ("text_positive", torch.ones(())),
        ("text_negative", unit(4, 4)),
        ("text_norms", torch.ones(3, 1)),
        ("train_labels", torch.zeros(6)),
        ("test_labels", torch.zeros(4, dtype=torch.int64)),
        ("val_labels", torch.eye(3, dtype=torch.int64)),
    ],
)
def test_another_form_is_named_with_what_came(raw, fails, name, tensor):
    raw[0][name] = tensor
    fails(f"{list(tensor.shape)!s}")


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("train_features", (0, 2, 1), float("nan"), "first at [0, 2, 1]"),
        ("test_features", (2, 1), float("inf"), "first at [2, 1]"),
        ("text_positive", (2,), 0.0, "unit-norm rows, got norms from 0 to 1"),
        ("val_features", (1,), 3.0, "unit-norm rows, got norms from 1 to 6"),
        ("train_labels", (1,), 3, "0 ... 2 (3 class names), got 0 ... 3"),
        ("test_labels", (1,), -1, "got -1 ... 2"),
        ("text_norms", (1,), 0.0, "text_norms must be positive, got 0 to 11"),
        ("text_norms", (0,), float("nan"), "text_norms must be positive"),
    ],
)
def test_a_value_that_cannot_be_is_named(raw, fails, name, place, value, words):
    raw[0][name][place] = value
    fails(name, words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("classnames", value) for value in ('{"a": 0}', "a, b, c", "[1, 2, 3]", '["a", "", "c"]', None)),
        *(("logit_scale", value) for value in ("hot", "nan", "0", "-4", "inf", None)),
        *(
            ("encoder", value)
            for value in (
                "{",
                "[]",
                '{"model": "RN50"}',
                '{"model": "", "pretrained": "", "precision": "fp32", "fingerprint": {}}',
                '{"model": "RN50", "pretrained": "", "precision": "int8", "fingerprint": {}}',
                '{"model": "RN50", "pretrained": "", "precision": "fp32", "fingerprint": {"a": 1}}',
            )
        ),
    ],
)
def test_metadata_that_cannot_be_are_refused_by_their_key(raw, fails, key, value):
    if value is None:
        del raw[1][key]
    else:
        raw[1][key] = value
    fails(f": {key}")


def test_many_class_names_that_repeat_are_refused_and_a_few_are_not(raw, fails, loaded):
    raw[1]["classnames"] = json.dumps(["cat", "dog", "cat"])
    fails("class names repeat: cat")
    names = [*map(str, range(11)), "0"]
    raw[1]["classnames"] = json.dumps(names)
    raw[0].update(text_positive=unit(12, 4), text_negative=unit(12, 4), text_norms=torch.ones(12))
    assert loaded().classnames == names


def test_a_bank_of_some_classes_has_their_rows_with_labels_from_0(tmp_path):
    some = make_bank(views=2).of_classes(torch.tensor([0, 2]))
    assert (some.train_labels.tolist(), some.val_labels.tolist(), some.test_labels.tolist()) == (
        [0, 0, 0, 1],
        [0, 1],
        [1, 0, 1],
    )
    assert torch.equal(some.train_features, make_bank(views=2).train_features[:, :4])
    assert torch.equal(some.test_features, make_bank().test_features[[0, 2, 4]])
    assert torch.equal(some.text_positive, make_bank().text_positive[[0, 2]])
    assert torch.equal(some.text_negative, make_bank().text_negative[[0, 2]])
    assert (some.classnames, some.text_norms.tolist(), some.encoder) == (["crème brûlée", "zürich"], [9, 11], ENCODER)
    assert make_bank().subsample("base").text_norms.tolist() == [9, 10]
    make_bank().save(tmp_path / "bank.safetensors")
    drawn = draw_bank(BankFile(tmp_path / "bank.safetensors"), Selection([0], [])).of_classes(torch.tensor([0, 2]))
    torch.testing.assert_close(drawn.with_test().test_features, some.test_features)


def test_without_test_a_bank_shows_none_of_its_test_images():
    bank = replace(make_bank(), read_test=lambda: unit(5, 4)).without_test()
    assert bank.test_features is bank.test_labels is bank.read_test is None
    assert bank.with_test() is bank


def test_cache_keys_are_the_renormalised_mean_over_views():
    views = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 1, 0]], [[0, 1.0, 0, 0], [0, 0, 1, 0]]])
    bank = replace(make_bank(), train_features=views, train_labels=torch.tensor([0, 1]))
    half = 0.5**0.5
    torch.testing.assert_close(bank.cache_keys(), torch.tensor([[half, half, 0, 0], [0, 0, 1, 0]]))
    assert replace(bank, logit_scale=1.0).cache_keys() is bank.cache_keys()
    torch.testing.assert_close(replace(bank, train_features=views[1:]).cache_keys(), views[1])


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = make_bank().to("meta")
    assert {getattr(moved, name).device.type for name in (*TENSORS, "text_positive", "text_norms")} == {"meta"}
    assert moved.classnames == make_bank().classnames
    assert moved.to("meta") is moved
