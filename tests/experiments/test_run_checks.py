"""Refusals before anything is trained, and files that a run must not overwrite."""

import itertools
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from trainers.hegraph import UserError, load_bank, load_cfg
from trainers.hegraph.baselines import method_options
from trainers.hegraph.experiments import run as run_module
from trainers.hegraph.experiments.checks import reason_not_saved
from trainers.hegraph.utils import processes

NODE = "TRAINER.HEGRAPHADAPTER"


@pytest.fixture
def no_training(monkeypatch):
    """No method is fitted in this test, and no model is adapted to unlabelled images."""
    for name in ("fit", "adapt_model"):
        monkeypatch.setattr(run_module, name, lambda *_: pytest.fail("it trains"))


@pytest.fixture
def banks(tiny_bank, tmp_path, unit_features) -> dict[str, Path]:
    """Banks of the same images, some of whose parts are missing or different."""
    bank = load_bank(tiny_bank)
    narrow = {name: unit_features(*getattr(bank, name).shape[:-1], 8) for name in ("text_positive", "text_negative")}
    features = bank.train_features.clone()
    features[:, 3] = bank.test_features[7]
    no_val = {"val_features": None, "val_labels": None}
    base = bank.test_labels < 3
    changes = {
        "tiny": {}, "no_val": no_val, "no_test": {"test_features": None, "test_labels": None},
        "backbone": {"backbone": "RN50"}, "tested": {"train_features": features},
        "base_test": {"test_features": bank.test_features[base], "test_labels": bank.test_labels[base]},
        "narrow": narrow | no_val | {"train_features": unit_features(2, 30, 8)},
    }  # fmt: skip
    for name, change in changes.items():
        made = replace(bank, **change)
        (made.without_test() if name in ("tested", "narrow") else made).save(tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in changes}


@pytest.mark.parametrize(("bank", "flags", "message"), [
    ("no_val", "--shots -1 --unlabelled pool", "Tiny has no images left for --unlabelled pool"),
    ("no_test", "--unlabelled test", "Tiny has no test images; give --unlabelled pool, or a path"),
    ("tiny", "--unlabelled backbone.safetensors", "holds features of 'RN50'"),
    ("no_test", "--unlabelled narrow.safetensors", "[M, 16] of unlabelled images, got [30, 8]"),
    ("tiny", "--unlabelled tested.safetensors", "1 of 45 unlabelled images are test images as well, such as image 4"),
    ("tiny", "--trainer CLIPAdapter --unlabelled pool", "CLIPAdapter has no class weights to adapt"),
    ("tiny", "--trainer TipAdapter --target-datasets Tiny:new", "TipAdapter has no rule for other classes"),
    ("base_test", "--target-datasets Tiny:new", "has no test images of the new classes"),
    ("base_test", "--unlabelled test DATASET.SUBSAMPLE_CLASSES new", "Tiny has no test images"),
    ("tiny", "--trainer CoOp", "CoOp learns prompts through the text tower; give images"),
    ("tiny", "--trainer StatA --unlabelled test TRAINER.STATA.BASE GDA", "unknown value of TRAINER.STATA.BASE 'GDA'"),
    ("tiny", "--trainer StatA", "StatA predicts all test images together: give --unlabelled test"),
    ("tiny", "--unlabelled test --target-datasets Tiny:new", "leave out the targets"),
    ("no_val", "--select val", "Tiny has no val images"),
    ("tiny", f"--select val {NODE}.SELECT []", f"--select val needs {NODE}.SELECT"),
])  # fmt: skip
def test_impossible_run_is_refused_before_training(
    run, no_training, banks, tmp_path, monkeypatch, bank, flags, message
):
    monkeypatch.chdir(tmp_path)
    assert message in run(*flags.split(), bank=banks[bank], quick=(), code=2)
    assert not (tmp_path / "run" / "result.json").exists()


def test_selection_on_val_concerns_hegraphadapter_only(run, banks):
    record, _ = run("--trainer", "GDA", f"{NODE}.SELECT_ON", "val", bank=banks["no_val"], quick=())
    assert record["selected_on"] == "last_step"


def test_pool_is_used_without_test_images(run, banks):
    record, _ = run("--unlabelled", "pool", bank=banks["no_test"])
    assert record["unlabelled"]["num_images"] == 35 and record["accuracy"] is None


def test_unlabelled_images_cannot_adapt_to_other_classes(run, finished_run_once, no_training, tiny_bank, tmp_path):
    renamed = tmp_path / "renamed.safetensors"
    replace(load_bank(tiny_bank), classnames=list("vwxyz")).save(renamed)
    words = ("--eval-only", "--model-dir", str(finished_run_once), "--unlabelled", "pool")
    assert "adapts to classes of the model, but Tiny has others" in run(*words, bank=renamed, code=2)


@pytest.mark.parametrize(("name", "unlabelled", "multilabel", "reason"), [
    ("HeGraphAdapter", "test", False, "its prediction of a test image depends on the other ones"),
    ("HeGraphAdapter", "pool", True, ""), ("ZeroShot", "", False, ""),
    ("ZeroShot", "", True, "it chooses no thresholds for several labels per image, as HeGraphAdapter does"),
    ("ProKeR", "", False, "each image of its cache has a weight for every class"),
])  # fmt: skip
def test_reason_why_a_run_saves_no_model(name, unlabelled, multilabel, reason):
    cfg = load_cfg(method=method_options(name), opts=["TRAINER.NAME", name, "DATASET.UNLABELLED", unlabelled])
    assert reason_not_saved(SimpleNamespace(cfg=cfg, multilabel=multilabel)) == reason


def test_thumbnails_need_a_model_that_is_saved(tmp_path):
    opts = ["TRAINER.NAME", "ZeroShot", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = load_cfg("digit_scenes", "mini", method=method_options("ZeroShot"), opts=opts)
    with pytest.raises(UserError, match="--keep-thumbnails needs a model folder, and ZeroShot saves none: it chooses"):
        run_module.run(cfg, keep_thumbnails=True)


def test_test_of_a_model_cannot_skip_training(finished_run_once, tiny_bank, tmp_path):
    with pytest.raises(UserError, match="train=False .* model_dir"):
        run_module.run(load_cfg(opts=["OUTPUT_DIR", str(tmp_path / "o")]), tiny_bank, finished_run_once, train=False)


def test_process_group_cannot_share_a_training(tiny_bank, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with pytest.raises(UserError, match="expected one process"):
        run_module.run(load_cfg(opts=["OUTPUT_DIR", str(tmp_path / "out")]), tiny_bank)


# Images


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes with three training images and two test images each."""
    seeds = itertools.count()
    for split, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(3)):
        if split == "train" or number < 2:
            pixels = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(next(seeds)))
            path = tmp_path / "photos" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * pixels).byte().numpy()).save(path)
    return tmp_path / "photos"


@pytest.fixture
def run_on_photos(run, photos, tmp_path):
    """Function that runs all images of `photos` with flags; returns the error line."""

    def start(*flags: str, code: int = 2, name: str = "run"):
        words = ["--root", str(photos), "--dataset-config-file", "folder", "--config-file", "mini", "--shots", "-1"]
        features = f"{NODE}.FEATURES.DIR", str(tmp_path / "features")
        return run(*words, *flags, *features, name=name, bank=None, code=code)

    return start


def without_test(photos: Path) -> list[str]:
    shutil.rmtree(photos / "test")
    return ["--unlabelled", "test"]


def all_sampled(photos: Path) -> list[str]:
    return ["--unlabelled", "pool"]


def all_unreadable(photos: Path) -> list[str]:
    (photos.parent / "damaged").mkdir()
    (photos.parent / "damaged" / "1.png").write_bytes(b"no image")
    return ["--unlabelled", str(photos.parent / "damaged"), "--skip-unreadable"]


def copied(photos: Path) -> list[str]:
    (photos.parent / "other").mkdir()
    shutil.copy(photos / "test" / "cat" / "1.png", photos.parent / "other" / "copy.png")
    return ["--unlabelled", str(photos.parent / "other")]


def unreadable_target(photos: Path) -> list[str]:
    (photos / "test" / "dog" / "1.png").write_bytes(b"no image")
    return ["--target-domains", "ImageFolder"]


@pytest.mark.parametrize(("arrange", "message"), [
    (without_test, "ImageFolder has no test images"),
    (all_sampled, "ImageFolder has no images left for --unlabelled pool"),
    (all_unreadable, "none of 1 unlabelled images can be read, such as 1.png"),
    (copied, "other/copy.png"),  # before it is encoded
    (unreadable_target, "test/dog/1.png"),
])  # fmt: skip
def test_impossible_images_are_refused_before_training(run_on_photos, no_training, photos, arrange, message):
    assert message in run_on_photos(*arrange(photos))


def test_pool_of_images_is_used_without_test_images(run_on_photos, photos):
    shutil.rmtree(photos / "test")
    record, _ = run_on_photos("--shots", "1", "--unlabelled", "pool", code=0)
    assert record["unlabelled"]["num_images"] == 4 and record["accuracy"] is None


def test_model_is_not_tested_without_test_images(run_on_photos, photos, tmp_path):
    run_on_photos(code=0)
    shutil.rmtree(photos / "test")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "OUTPUT_DIR", str(tmp_path / "elsewhere"))
    assert "ImageFolder has no test images" in run_on_photos(*flags)


@pytest.mark.parametrize(("trainer", "code"), [("HeGraphAdapter", 2), ("GDA", 0)])
def test_former_training_images_are_not_tested(run_on_photos, photos, tmp_path, trainer, code):
    """Class folders are split again when images are added; only HeGraphAdapter recognises images of another folder."""
    for file in sorted(photos.rglob("*.png")):
        (photos / file.parent.name).mkdir(exist_ok=True)
        file.rename(photos / file.parent.name / f"{file.parent.parent.name}{file.name}")
    for split in ("train", "test"):
        shutil.rmtree(photos / split)
    run_on_photos("--trainer", trainer, code=0)
    flags = ("--trainer", trainer, "--eval-only", "--model-dir", str(tmp_path / "run"))
    for number in range(5):
        Image.new("RGB", (20, 20), (50 * number, 0, 0)).save(photos / "cat" / f"{number}.png")
    message = r"\d test images were training images of .*run/model, such as (cat|dog)/t.*\.png"
    (tmp_path / "link").symlink_to(tmp_path)
    for root in (photos, tmp_path / "link" / ".." / tmp_path.name / "photos"):
        assert re.search(message, run_on_photos("--root", str(root), *flags, name="test"))
    others = Path(shutil.copytree(photos, tmp_path / "others"))
    run_on_photos("--root", str(others), *flags, name="test", code=code)


@pytest.mark.parametrize("name", ["pool", "test"])
def test_folder_called_like_a_keyword_is_mentioned(run, tmp_path, monkeypatch, caplog, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with caplog.at_level(logging.WARNING):
        run("--unlabelled", name)
        assert f"for the path, write ./{name}" in caplog.text
    assert f"{name} has to be encoded" in run("--unlabelled", f"./{name}", name="path", code=2)


# Files of the output folder

WRITTEN = ("adapter", "predictions", "text_nodes")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("flag", ["--features", "--unlabelled"])
def test_run_does_not_overwrite_its_inputs(run, no_training, tiny_bank, tmp_path, flag, name):
    out = tmp_path / "run"
    out.mkdir()
    bank = Path(shutil.copy(tiny_bank, out / f"{name}.safetensors"))
    replace(load_bank(bank), test_features=None, test_labels=None).save(bank)
    content = bank.read_bytes()
    message = run(bank=bank, code=2) if flag == "--features" else run(flag, str(bank), code=2)
    assert f"{bank} is read by this command, and is not overwritten" in message
    assert bank.read_bytes() == content and [*out.iterdir()] == [bank]


def test_descriptions_are_not_overwritten(run_on_photos, no_training, tmp_path):
    (tmp_path / "run").mkdir()
    descriptions = tmp_path / "run" / "split.json"
    descriptions.write_text('{"cat": ["a cat."], "dog": ["a dog."]}')
    message = run_on_photos(f"{NODE}.PROMPTS.DESCRIPTIONS", str(descriptions))
    assert "split.json is read by this command" in message and "a cat." in descriptions.read_text()


def test_bank_in_a_model_folder_is_not_replaced(run, finished_run, no_training, tiny_bank):
    bank = Path(shutil.copy(tiny_bank, finished_run / "model" / "bank.safetensors"))
    (finished_run / "result.json").unlink()
    assert "bank.safetensors is read by this command" in run("OUTPUT_DIR", str(finished_run), bank=bank, code=2)
    assert bank.is_file()


def test_evaluation_does_not_overwrite_the_bank(run, finished_run_once, tiny_bank, tmp_path):
    (tmp_path / "run").mkdir()
    bank = Path(shutil.copy(tiny_bank, tmp_path / "run" / "predictions.safetensors"))
    message = run("--eval-only", "--model-dir", str(finished_run_once), bank=bank, code=2)
    assert "predictions.safetensors is read by this command" in message
    load_bank(bank)


@pytest.mark.parametrize(("place", "message"), [
    ("adapter.safetensors", "is no file but a folder"), ("model", "not overwritten"),
    ("model-epoch3", "not overwritten"),
])  # fmt: skip
def test_outputs_must_be_replaceable_before_training(run, no_training, tmp_path, place, message):
    (tmp_path / "run" / place).mkdir(parents=True)
    (tmp_path / "run" / place / "notes.txt").touch()
    assert message in run(code=2)
