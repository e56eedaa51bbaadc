"""Tip-Adapter's cache folder becomes a bank; nothing in it is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.__main__ import main
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.features.extract import encode_prompts
from trainers.hegraph.features.tip import import_tip, read_classnames
from trainers.hegraph.utils.errors import UserError

K, D, SHOTS, TEST = 3, 8, 2, 4
NAMES = ["cat", "dog", "bee"]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(draw(*shape, seed=seed), dim=-1)


@pytest.fixture
def folder(tmp_path):
    """As Tip-Adapter's main.py leaves it, half precision and unnormalised means included."""
    folder = tmp_path / "toy_birds"
    folder.mkdir()
    labels = torch.arange(K).repeat_interleave(SHOTS)
    torch.save(draw(D, K * SHOTS, seed=0).half(), folder / f"keys_{SHOTS}shots.pt")
    torch.save(F.one_hot(labels, K).half(), folder / f"values_{SHOTS}shots.pt")
    for split, seed in (("val", 1), ("test", 2)):
        torch.save(draw(TEST, D, seed=seed).half(), folder / f"{split}_f.pt")
        torch.save(torch.tensor([2, 0, 1, 2]), folder / f"{split}_l.pt")
    torch.save(draw(K, D, seed=3), folder / "text_positive.pt")
    torch.save(draw(D, K, seed=4), folder / "text_negative.pt")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture
def bank_file(tmp_path):
    return tmp_path / "made" / "bank.safetensors"


@pytest.fixture
def command(folder, bank_file):
    names = str(folder.parent / "names.json")

    def run(*arguments: str) -> int:
        return main(["import-tip", str(folder), "--out", str(bank_file), "--classnames", names, *arguments])

    return run


@pytest.fixture
def refused(command, bank_file, capsys):
    """Runs the command; it must exit with 2, say one line with some words and leave no bank."""

    def check(*words: str) -> str:
        assert command() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and not bank_file.exists()
        assert [word for word in words if word not in error] == []
        return error

    return check


def test_the_command_makes_a_bank_that_loads(command, bank_file, capsys):
    assert command() == 0
    assert "6 training images, 3 classes" in capsys.readouterr().out
    bank = load_bank(bank_file)
    assert bank.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (bank.classnames, bank.dataset, bank.backbone, bank.logit_scale) == (NAMES, "toy_birds", "unknown", 100)
    assert bank.val_labels.tolist() == bank.test_labels.tolist() == [2, 0, 1, 2]
    keys = F.normalize(draw(D, K * SHOTS, seed=0).half().float().t(), dim=-1)
    torch.testing.assert_close(bank.train_features, keys[None])
    torch.testing.assert_close(bank.val_features, F.normalize(draw(TEST, D, seed=1).half().float(), dim=-1))
    torch.testing.assert_close(bank.test_features, F.normalize(draw(TEST, D, seed=2).half().float(), dim=-1))
    torch.testing.assert_close(bank.text_positive, F.normalize(draw(K, D, seed=3), dim=-1))
    torch.testing.assert_close(bank.text_negative, F.normalize(draw(D, K, seed=4).t(), dim=-1))


def test_square_matrices_that_lie_the_other_way_are_refused_or_turned(folder, refused):
    size = K * SHOTS
    for split in ("val", "test"):
        torch.save(unit(TEST, size), folder / f"{split}_f.pt")
    for name, text in (("positive", unit(size, size)), ("negative", unit(size, size).t())):
        torch.save(text, folder / f"text_{name}.pt")
    torch.save(F.one_hot(torch.arange(size), size), folder / f"values_{SHOTS}shots.pt")
    torch.save(unit(size, size).t(), folder / f"keys_{SHOTS}shots.pt")
    bank = import_tip(folder, [f"class {k}" for k in range(size)])
    for features in (bank.train_features[0], bank.text_positive, bank.text_negative):
        torch.testing.assert_close(features, unit(size, size))
    torch.save(unit(size, size), folder / f"keys_{SHOTS}shots.pt")
    refused("keys_2shots.pt", "transpose it")


def test_the_text_may_be_encoded_and_the_data_set_named(folder, command, bank_file, backbone, tmp_path):
    for file in folder.glob("text_*.pt"):
        file.unlink()
    torch.save(draw(backbone.width, K * SHOTS, seed=0), folder / f"keys_{SHOTS}shots.pt")
    torch.save(draw(TEST, backbone.width, seed=1), folder / "test_f.pt")
    for name in ("val_f.pt", "val_l.pt"):  # they are optional
        (folder / name).unlink()
    assert command("--dataset-config-file", "digits", "--config-file", "mini") == 0
    bank = load_bank(bank_file)
    assert (bank.dataset, bank.backbone, bank.val_features) == ("Digits", backbone.name, None)
    assert bank.logit_scale == pytest.approx(backbone.logit_scale)
    text = encode_prompts(backbone, "Digits", NAMES, load_cfg().encoding, tmp_path)
    torch.testing.assert_close(bank.text_positive, text["positive"])
    torch.testing.assert_close(bank.text_norms, text["norms"])


@pytest.mark.parametrize("name", ["keys_2shots.pt", "text_negative.pt"])
def test_a_malicious_pickle_is_refused_and_not_executed(folder, refused, tmp_path, name):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save(Evil(), folder / name)
    error = refused(name)
    assert not (tmp_path / "executed").exists()
    assert "weights_only=False" not in error  # torch's own message tells how to execute it


def one_hot(value: float = 1.0) -> torch.Tensor:
    return F.one_hot(torch.arange(K).repeat_interleave(2), K) * value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("keys_2shots.pt", None, "keys_<S>shots.pt"),
        ("text_positive.pt", None, "text_positive.pt is missing"),
        ("test_f.pt", b"PK\x03\x04" + bytes(60), "test_f.pt is damaged or not a tensor"),
        ("keys_2shots.pt", {"keys": torch.zeros(2)}, "one tensor, got a dict"),
        ("keys_2shots.pt", draw(D, 5, seed=0), "N = 5 columns"),
        ("keys_2shots.pt", torch.full((D, K * SHOTS), torch.inf), "rows of train_features must be finite"),
        ("keys_2shots.pt", unit(D, K * SHOTS).to_sparse(), "sparse_coo"),
        ("values_2shots.pt", torch.zeros(6, 4), "its shape is [6, 4]"),
        ("values_2shots.pt", one_hot(0.7), "one-hot"),
        ("values_2shots.pt", one_hot().to(torch.complex64), "real numbers"),
        ("test_l.pt", torch.tensor([2, 0, 0.7, 2]), "whole numbers"),
        ("val_l.pt", torch.tensor([2, 0, 3, 2]), "val_labels must lie in 0 ... 2"),
        ("text_positive.pt", draw(4, D, seed=0), "with K = 3"),
    ],
)
def test_what_is_missing_damaged_or_cannot_be_meant_is_refused(folder, refused, name, content, words):
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)
    refused(words)


def test_several_shot_counts_must_be_chosen_from(folder, refused, command, bank_file):
    torch.save(draw(D, K, seed=9), folder / "keys_1shots.pt")
    torch.save(torch.eye(K), folder / "values_1shots.pt")
    refused("keys_1shots.pt", "keys_2shots.pt", "--shots")
    assert command("--shots", "1") == 0
    assert load_bank(bank_file).train_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [("names.json", '["ant", "bee"]'), ("names.txt", "ant\n\n bee \n"), ("names", '\n [\n"ant",\n"bee"]\n')],
)
def test_class_names_are_read_from_json_or_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_classnames(tmp_path / name) == ["ant", "bee"]


@pytest.mark.parametrize("text", ["[]", "[1]", '["ant", "bee"', ""])
def test_class_names_that_are_no_list_are_refused(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError, match=r"names\.json"):
        read_classnames(tmp_path / "names.json")
