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
    )


@pytest.fixture
def raw(tmp_path):
    """The tensors and metadata of a good bank, to be spoilt and written by `write`."""
    make_bank().save(tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


@pytest.fixture
def fails(raw, tmp_path):
    """Writes the spoilt tensors, loads them, and returns the one-line error, which names the file."""

    def check(*words: str) -> str:
        path = tmp_path / "spoilt.safetensors"
        save_file(raw[0], path, raw[1])
        with pytest.raises(UserError) as caught:
            load_bank(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        for word in words:
            assert word in message
        return message

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
    bank = make_bank(views)
    bank.save(tmp_path / "bank.safetensors")
    assert_same(load_bank(tmp_path / "bank.safetensors"), bank)


def test_a_bank_and_its_draws_keep_how_the_backbone_is_loaded(tmp_path):
    replace(make_bank(), encoder=ENCODER).save(tmp_path / "bank.safetensors")
    drawn = draw_bank(BankFile(tmp_path / "bank.safetensors"), Selection([0, 3, 4], []))
    for bank in (load_bank(tmp_path / "bank.safetensors"), drawn, drawn.without_test().of_classes(torch.tensor([1]))):
        assert bank.encoder == ENCODER


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "got []"),
        ('{"model": "RN50"}', "pretrained: Field required"),
        ('{"model": "", "pretrained": "", "precision": "fp32", "fingerprint": {}}', "model: "),
        ('{"model": "RN50", "pretrained": "", "precision": "int8", "fingerprint": {}}', "precision: "),
        ('{"model": "RN50", "pretrained": "", "precision": "fp32", "fingerprint": {"a": 1}}', "fingerprint.a: "),
    ],
)
def test_what_does_not_say_how_a_backbone_is_loaded_is_refused(raw, fails, encoder, said):
    raw[1]["encoder"] = encoder
    fails("the metadata encoder must say how the backbone is loaded: ", said)


def test_saving_makes_the_folder_and_leaves_one_file(tmp_path):
    make_bank().save(tmp_path / "new" / "folder" / "bank.safetensors")
    assert [f.name for f in (tmp_path / "new" / "folder").iterdir()] == ["bank.safetensors"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, disk_full_after):
    with disk_full_after(500), pytest.raises(UserError, match=r"cannot write .*bank\.safetensors"):
        make_bank(views=10).save(tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


def test_features_without_views_become_one_view(raw, tmp_path):
    raw[0]["train_features"] = raw[0]["train_features"][0]
    save_file(raw[0], tmp_path / "flat.safetensors", raw[1])
    bank = load_bank(tmp_path / "flat.safetensors")
    assert bank.train_features.shape == (1, 6, 4)
    assert_same(bank, make_bank())


def test_float16_is_accepted_and_becomes_unit_norm_float32(raw, tmp_path):
    for name in list(raw[0]):
        if not name.endswith("labels"):
            raw[0][name] = raw[0][name].half()
    save_file(raw[0], tmp_path / "half.safetensors", raw[1])
    bank = load_bank(tmp_path / "half.safetensors")
    for features in (bank.train_features, bank.val_features, bank.test_features, bank.text_positive):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(bank.test_features, make_bank().test_features, rtol=0, atol=1e-3)


def test_val_and_test_may_be_absent(raw, tmp_path):
    for name in ("val_features", "val_labels", "test_features", "test_labels"):
        del raw[0][name]
    save_file(raw[0], tmp_path / "bank.safetensors", raw[1])
    bank = load_bank(tmp_path / "bank.safetensors")
    assert bank.val_features is None
    assert bank.test_labels is None


def test_tensors_of_other_names_are_ignored(raw, tmp_path):
    raw[0]["superclass_labels"] = torch.tensor([0, 1])
    raw[0]["notes"] = torch.zeros(2, 2)
    save_file(raw[0], tmp_path / "bank.safetensors", raw[1])
    assert_same(load_bank(tmp_path / "bank.safetensors"), make_bank())


def test_names_missing_from_the_metadata_get_defaults(raw, tmp_path):
    del raw[1]["dataset"], raw[1]["backbone"]
    save_file(raw[0], tmp_path / "birds.safetensors", raw[1])
    bank = load_bank(tmp_path / "birds.safetensors")
    assert (bank.dataset, bank.backbone) == ("birds", "unknown")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the feature bank .*nowhere\.safetensors"):
        load_bank(tmp_path / "nowhere.safetensors")


def test_a_folder_is_not_a_bank(tmp_path):
    with pytest.raises(UserError, match="cannot read the feature bank"):
        load_bank(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "bank.safetensors"
    make_bank().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cannot read the feature bank .*bank\.safetensors: .+"):
        load_bank(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"train_features": Evil()}, tmp_path / "bank.safetensors")
    with pytest.raises(UserError, match="cannot read the feature bank"):
        load_bank(tmp_path / "bank.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["train_features", "train_labels", "text_positive", "text_negative"])
def test_a_missing_tensor_is_named(raw, fails, name):
    del raw[0][name]
    fails(f"lacks {name};")


@pytest.mark.parametrize("name", ["val_features", "val_labels", "test_features", "test_labels"])
def test_features_and_labels_come_together(raw, fails, name):
    del raw[0][name]
    fails(f"lacks {name};")


@pytest.mark.parametrize("key", ["classnames", "logit_scale"])
def test_missing_metadata_is_named(raw, fails, key):
    del raw[1][key]
    fails(key, "metadata")


@pytest.mark.parametrize("name", ["train_features", "val_features", "test_features", "text_negative"])
def test_another_width_is_named_with_both_numbers(raw, fails, name):
    raw[0][name] = unit(*raw[0][name].shape[:-1], 7)
    fails(name, "7", "d = 4")


@pytest.mark.parametrize("name", ["test_features", "text_negative"])
def test_views_are_for_training_images_only(raw, fails, name):
    raw[0][name] = raw[0][name].unsqueeze(0)
    fails(name, "[rows, d]")


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("name", ["train_features", "test_features", "text_positive"])
def test_features_of_too_few_dimensions_are_named(raw, fails, name, shape):
    raw[0][name] = torch.ones(shape)
    fails(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["train_features", "test_features", "text_positive"])
def test_values_that_are_not_finite_are_named_with_their_place(raw, fails, name, value):
    raw[0][name][..., 2, 1] = value
    fails(name, "NaN", "2, 1]")


@pytest.mark.parametrize("name", ["train_features", "val_features", "test_features", "text_negative"])
def test_rows_that_are_not_unit_norm_are_named(raw, fails, name):
    raw[0][name] = raw[0][name] * 3
    fails(name, "unit-norm", "3")


def test_a_zero_row_is_not_unit_norm(raw, fails):
    raw[0]["test_features"][1] = 0
    fails("test_features", "unit-norm")


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("name", ["train_labels", "val_labels", "test_labels"])
def test_labels_out_of_range_are_named(raw, fails, name, label):
    raw[0][name][1] = label
    fails(name, "0 ... 2", str(label))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_labels_of_another_type_are_named(raw, fails, dtype):
    raw[0]["train_labels"] = raw[0]["train_labels"].to(dtype)
    fails("train_labels", "int64", str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("name", ["train_labels", "test_labels"])
def test_labels_of_another_length_are_named(raw, fails, name):
    expected = len(raw[0][name])
    raw[0][name] = raw[0][name][:-1].clone()
    fails(name, f"{expected} int64 labels", f"[{expected - 1}]")


def test_one_hot_labels_are_refused(raw, fails):
    raw[0]["train_labels"] = F.one_hot(raw[0]["train_labels"])
    fails("train_labels", "[6, 3]")


@pytest.mark.parametrize("name", ["text_positive", "text_negative"])
def test_text_rows_and_class_names_are_as_many(raw, fails, name):
    raw[0][name] = unit(4, 4)
    fails(name, "4 rows", "3 class names")


def test_a_bank_without_test_rows_says_so(raw, fails):
    raw[0]["test_features"], raw[0]["test_labels"] = torch.empty(0, 4), torch.empty(0, dtype=torch.long)
    fails("test_features")


@pytest.mark.parametrize("value", ['{"a": 0}', "a, b, c", "[1, 2, 3]", '["a", null, "c"]', '["a", "", "c"]'])
def test_class_names_that_are_not_a_list_of_strings_are_refused(raw, fails, value):
    raw[1]["classnames"] = value
    fails("classnames")


def test_repeated_class_names_are_named(raw, fails):
    raw[1]["classnames"] = json.dumps(["cat", "dog", "cat"])
    fails("cat")


@pytest.mark.parametrize("value", ["hot", "nan", "0", "-4", "inf"])
def test_a_logit_scale_that_is_not_a_positive_number_is_refused(raw, fails, value):
    raw[1]["logit_scale"] = value
    fails("logit_scale")


def test_select_takes_train_and_val_rows_in_order_and_keeps_test_whole():
    bank = make_bank(views=2)
    task = bank.select(Selection(train=[4, 0, 3], val=[2, 0]))
    assert torch.equal(task.train_features, bank.train_features[:, [4, 0, 3]])
    assert task.train_labels.tolist() == [1, 0, 2]
    assert torch.equal(task.val_features, bank.val_features[[2, 0]])
    assert task.val_labels.tolist() == [2, 0]
    assert torch.equal(task.test_features, bank.test_features)
    assert torch.equal(task.test_labels, bank.test_labels)
    assert torch.equal(task.text_positive, bank.text_positive)
    assert len(bank.train_labels) == 6


def test_select_works_without_val(raw, tmp_path):
    del raw[0]["val_features"], raw[0]["val_labels"]
    save_file(raw[0], tmp_path / "bank.safetensors", raw[1])
    assert load_bank(tmp_path / "bank.safetensors").select(Selection(train=[0], val=[])).val_features is None


def test_cache_keys_are_the_renormalised_mean_over_views():
    views = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 1, 0]], [[0, 1.0, 0, 0], [0, 0, 1, 0]]])
    bank = FeatureBank(**make_bank().__dict__ | {"train_features": views, "train_labels": torch.tensor([0, 1])})
    half = 0.5**0.5
    torch.testing.assert_close(bank.cache_keys(), torch.tensor([[half, half, 0, 0], [0, 0, 1, 0]]))


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = make_bank().to("meta")
    assert {getattr(moved, name).device.type for name in (*TENSORS, "text_positive", "text_negative")} == {"meta"}
    assert moved.classnames == make_bank().classnames
