"""Import of Tip-Adapter's cache folders."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph import UserError, load_bank, load_cfg
from trainers.hegraph.commands.features import main
from trainers.hegraph.features.extract import encode_prompts
from trainers.hegraph.features.tip import import_tip, read_classnames

K, D, SHOTS, TEST = 3, 8, 2, 4
NAMES = ["cat", "dog", "bee"]
ONE_HOT = F.one_hot(torch.arange(K).repeat_interleave(SHOTS), K)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.float(), dim=-1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Cache folder of Tip-Adapter's main.py, with half-precision unnormalised means; and text features."""
    folder = tmp_path / "toy_birds"
    folder.mkdir()
    files = {"keys_2shots": draw(D, K * SHOTS, seed=0).half(), "values_2shots": ONE_HOT.half()}
    for split, seed in (("val", 1), ("test", 2)):
        files |= {f"{split}_f": draw(TEST, D, seed=seed).half(), f"{split}_l": torch.tensor([2, 0, 1, 2])}
    files |= {"text_positive": draw(K, D, seed=3), "text_negative": draw(D, K, seed=4)}
    for name, tensor in files.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder


@pytest.fixture
def command(folder, tmp_path, capsys):
    """Function that runs the command with flags, and returns its bank or, without a bank, the line of its error."""

    def run(*flags: str):
        (tmp_path / "names.json").write_text(json.dumps(NAMES))
        out = tmp_path / "made" / "bank.safetensors"
        arguments = ["import-tip", str(folder), "--out", str(out), "--classnames", str(tmp_path / "names.json")]
        code = main([*arguments, *flags])
        printed, error = capsys.readouterr()
        if code == 0:
            bank = load_bank(out)
            assert f"{len(bank.train_labels)} training images, 3 classes" in printed
            return bank
        assert (code, error[:7], error.count("\n"), out.exists()) == (2, "error: ", 1, False)
        return error

    return run


def test_import_tip_writes_a_bank(command):
    bank = command()
    assert bank.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (bank.classnames, bank.dataset, bank.backbone, bank.logit_scale) == (NAMES, "toy_birds", "unknown", 100)
    assert bank.val_labels.tolist() == bank.test_labels.tolist() == [2, 0, 1, 2]
    torch.testing.assert_close(bank.train_features, unit(draw(D, K * SHOTS, seed=0).half().t())[None])
    torch.testing.assert_close(bank.val_features, unit(draw(TEST, D, seed=1).half()))
    torch.testing.assert_close(bank.test_features, unit(draw(TEST, D, seed=2).half()))
    torch.testing.assert_close(bank.text_positive, unit(draw(K, D, seed=3)))
    torch.testing.assert_close(bank.text_negative, unit(draw(D, K, seed=4).t()))


def test_transposed_square_matrices_are_recognised(folder):
    size = K * SHOTS
    square = unit(draw(size, size, seed=0))
    files = {"val_f": square[:TEST], "test_f": square[:TEST], "text_positive": square, "text_negative": square.t()}
    for name, tensor in (files | {"values_2shots": torch.eye(size), "keys_2shots": square.t()}).items():
        torch.save(tensor, folder / f"{name}.pt")
    bank = import_tip(folder, [f"class {k}" for k in range(size)])
    for features in (bank.train_features[0], bank.text_positive, bank.text_negative):
        torch.testing.assert_close(features, square)
    keys = square.t() / 2
    keys[0] /= keys[0].norm()  # a single vector of unit norm is not enough
    torch.save(keys, folder / "keys_2shots.pt")
    found = import_tip(folder, [f"class {k}" for k in range(size)]).train_features[0]
    torch.testing.assert_close(found, unit(keys.t()))
    torch.save(square, folder / "keys_2shots.pt")
    with pytest.raises(UserError, match=r"keys_2shots\.pt: expected the shape \[d, n\].* transpose it"):
        import_tip(folder, [f"class {k}" for k in range(size)])


def test_text_is_encoded_by_a_backbone(folder, command, mini, tmp_path):
    for name in ("text_positive", "text_negative", "val_f", "val_l"):  # val is optional
        (folder / f"{name}.pt").unlink()
    torch.save(draw(mini.width, K * SHOTS, seed=0), folder / "keys_2shots.pt")
    torch.save(draw(TEST, mini.width, seed=1), folder / "test_f.pt")
    bank = command("--dataset-config-file", "digits", "--config-file", "mini")
    assert (bank.dataset, bank.backbone, bank.val_features) == ("Digits", mini.name, None)
    assert bank.logit_scale == pytest.approx(mini.logit_scale)
    text = encode_prompts(mini, "Digits", NAMES, load_cfg().encoding, tmp_path)
    torch.testing.assert_close(bank.text_positive, text["positive"])
    torch.testing.assert_close(bank.text_norms, text["norms"])


def test_text_is_encoded_in_the_precision_option(folder, mini, tmp_path):
    torch.save(draw(mini.width, K * SHOTS, seed=0), folder / "keys_2shots.pt")
    for name in ("val_f", "test_f"):
        torch.save(draw(TEST, mini.width, seed=1), folder / f"{name}.pt")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    out = tmp_path / "bank.safetensors"
    key = ["TRAINER.HEGRAPHADAPTER.PREC", "bf16"]
    flags = ["--out", str(out), "--classnames", str(tmp_path / "names.json"), "--config-file", "mini"]
    assert main(["import-tip", str(folder), *key, *flags, "--dataset-config-file", "digits"]) == 0
    found = load_bank(out).text_positive
    exact = encode_prompts(mini, "Digits", NAMES, load_cfg().encoding, tmp_path)["positive"]
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["keys_2shots.pt", "text_negative.pt"])
def test_malicious_pickle_is_not_executed(folder, command, tmp_path, name):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save(Evil(), folder / name)
    error = command()
    assert name in error and not (tmp_path / "executed").exists()
    assert "weights_only=False" not in error  # torch's message names this option


@pytest.mark.parametrize(("name", "content", "words"), [
    ("keys_2shots.pt", None, "keys_<S>shots.pt"),
    ("text_positive.pt", None, "text_positive.pt is missing"),
    ("test_f.pt", b"PK\x03\x04" + bytes(60), "test_f.pt is damaged or not a tensor"),
    ("keys_2shots.pt", {"keys": torch.zeros(2)}, "one tensor, got a dict"),
    ("keys_2shots.pt", draw(D, 5, seed=0), "N = 5 columns"),
    ("keys_2shots.pt", torch.full((D, K * SHOTS), torch.inf), "rows of unit norm in train_features"),
    ("test_f.pt", draw(D, seed=0), "expected the shape [n, d], got [8]"),
    ("values_2shots.pt", torch.zeros(6, 4), "got the shape [6, 4]"),
    ("values_2shots.pt", ONE_HOT * 0.7, "one-hot"),
    ("values_2shots.pt", ONE_HOT.to(torch.complex64), "real numbers"),
    ("test_l.pt", torch.tensor([2, 0, 0.7, 2]), "integer labels"),
    ("val_l.pt", torch.tensor([2, 0, 3, 2]), "expected val_labels from 0 to 2"),
    ("text_positive.pt", draw(4, D, seed=0), "with K = 3"),
])  # fmt: skip
def test_invalid_cache_folders_are_refused(folder, command, name, content, words):
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)
    assert words in command()


def test_several_shot_counts_need_a_choice(folder, command):
    torch.save(draw(D, K, seed=9), folder / "keys_1shots.pt")
    torch.save(torch.eye(K), folder / "values_1shots.pt")
    assert "got keys_1shots.pt, keys_2shots.pt; add --shots S" in command()
    assert command("--shots", "1").train_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "text"), [
    ("names.json", '["ant", "bee"]'), ("names.txt", "ant\n\n bee \n"), ("names", '\n [\n"ant",\n"bee"]\n'),
])  # fmt: skip
def test_class_names_are_read_from_json_or_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_classnames(tmp_path / name) == ["ant", "bee"]


@pytest.mark.parametrize("text", ["[]", "[1]", '["ant", "bee"', ""])
def test_invalid_class_names_are_refused(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError, match=r"names\.json"):
        read_classnames(tmp_path / "names.json")
