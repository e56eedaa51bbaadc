"""A Tip-Adapter cache whose numbers cannot be what they are taken for is refused, and no bank appears."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.features.__main__ import main
from trainers.hegraph.features.bank import load_bank

K, D, N = 3, 6, 6  # N = d hides a transposed matrix


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    torch.save(unit(N, D, seed=0).t(), folder / "keys_2shots.pt")
    torch.save(F.one_hot(torch.arange(K).repeat_interleave(2), K).half(), folder / "values_2shots.pt")
    for split, seed in (("val", 1), ("test", 2)):
        torch.save(unit(4, D, seed=seed), folder / f"{split}_f.pt")
        torch.save(torch.tensor([2, 0, 1, 2]), folder / f"{split}_l.pt")
    for name, seed in (("positive", 3), ("negative", 4)):
        torch.save(unit(K, D, seed=seed), folder / f"text_{name}.pt")
    (tmp_path / "names.txt").write_text("cat\ndog\nbee\n")
    return folder


@pytest.fixture
def imported(folder, tmp_path, capsys):
    """Runs the command; returns the exit code and the line on stderr."""

    def run() -> tuple[int, str]:
        names, out = str(tmp_path / "names.txt"), str(tmp_path / "bank.safetensors")
        code = main(["import-tip", str(folder), "--out", out, "--classnames", names])
        assert (tmp_path / "bank.safetensors").exists() == (code == 0)
        return code, capsys.readouterr().err

    return run


def test_the_cache_as_it_should_be_is_imported(imported, tmp_path):
    assert imported() == (0, "")
    assert load_bank(tmp_path / "bank.safetensors").train_labels.tolist() == [0, 0, 1, 1, 2, 2]


def one_hot() -> torch.Tensor:
    return F.one_hot(torch.arange(K).repeat_interleave(2), K).float()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("values_2shots.pt", torch.zeros(N, K), "one-hot"),
        ("values_2shots.pt", torch.ones(N, K), "one-hot"),
        ("values_2shots.pt", one_hot() * 0.7, "one-hot"),
        ("values_2shots.pt", one_hot() * 0.9 + 0.1 / K, "one-hot"),
        ("values_2shots.pt", torch.full((N, K), torch.nan), "NaN"),
        ("values_2shots.pt", one_hot()[:, : K - 1], "3 class names"),
        ("values_2shots.pt", one_hot().to(torch.complex64), "real numbers"),
        ("keys_2shots.pt", unit(N, D, seed=0), "transpose it"),
        ("keys_2shots.pt", torch.full((D, N), torch.inf), "infinite"),
        ("keys_2shots.pt", unit(N, D, seed=0).t().to(torch.complex64) * 1j, "real numbers"),
        ("keys_2shots.pt", unit(N, D, seed=0).to_sparse(), "layout sparse_coo"),
        ("keys_2shots.pt", torch.empty(D, N, device="meta"), "device meta"),
        ("keys_2shots.pt", torch.quantize_per_tensor(unit(D, N, seed=0), 0.1, 0, torch.qint8), "quantized"),
        ("test_l.pt", torch.tensor([2, 0, 0.7, 2]), "whole numbers, the labels; got 0.7"),
        ("test_l.pt", torch.tensor([True, False, True, False]), "got booleans"),
        ("val_l.pt", torch.tensor([2, 0, torch.nan, 2]), "NaN"),
        ("val_l.pt", torch.tensor([2, 0, 3, 2]), "val_labels must lie in 0 ... 2"),
        ("text_positive.pt", torch.zeros(K, D), "text_positive"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused_in_one_line(folder, imported, name, tensor, words):
    torch.save(tensor, folder / name)
    code, error = imported()
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert len(error) < 300


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("kept", ["f", "l"])
def test_features_and_labels_come_together(folder, imported, split, kept):
    lost = folder / f"{split}_{'l' if kept == 'f' else 'f'}.pt"
    lost.unlink()
    code, error = imported()
    assert (code, error) == (2, f"error: {lost} is missing\n")


def test_a_message_never_names_the_temporary_file(folder, imported, tmp_path):
    torch.save(torch.tensor([2, 0, 3, 2]), folder / "val_l.pt")
    _, error = imported()
    assert str(tmp_path / "bank.safetensors") in error
    assert ".tmp" not in error
