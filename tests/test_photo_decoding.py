"""Large photos of own images: every entry point decodes them as the model was trained."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.hegraph import HeGraphClassifier, load_cfg, load_dataset
from trainers.hegraph.__main__ import main
from trainers.hegraph.commands.predict import main as predict
from trainers.hegraph.datasets.images import open_image, pixel_hash
from trainers.hegraph.datasets.loading import load_own_images, load_unlabelled
from trainers.hegraph.experiments.image_task import ImageTask
from trainers.hegraph.experiments.run import run
from trainers.hegraph.features import extract
from trainers.hegraph.features.bank import BankFile
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.models.endpoint import open_input
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel

SIZE = (1200, 900)
VARIANT = "TRAINER.HEGRAPHADAPTER.VARIANT"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Own images: two classes of noisy photos, whose pixels change at a reduced scale."""
    root = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(5)
    for split, number in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for position in range(number):
                pixels = generator.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{position}.jpg", quality=90)
    return root


def paths(root: Path, split: str = "train") -> list[Path]:
    return sorted((root / split).rglob("*.jpg"))


@pytest.fixture(scope="module")
def reduced(folder, mini) -> torch.Tensor:
    return mini.with_decoding("auto").encode_images(paths(folder))


@pytest.fixture(scope="module")
def full(folder, mini) -> torch.Tensor:
    return mini.encode_images(paths(folder))


def configuration(*options: object) -> object:
    return load_cfg("folder", "mini", opts=[VARIANT, "training_free", "DATASET.NUM_SHOTS", -1, *options])


def task(folder: Path, *options: object) -> ImageTask:
    cfg = configuration("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", "", *options)
    return ImageTask(load_own_images(str(folder)), cfg, 1, "cpu")


def encoded(of: ImageTask) -> torch.Tensor:
    return of.encode(of.dataset, of.dataset.train, "train")


@pytest.fixture(scope="module")
def fitted(folder) -> HeGraphClassifier:
    return HeGraphClassifier(config="mini", variant="training_free").fit(paths(folder), [0, 0, 1, 1])


def trained(folder: Path, output: Path, *options: object) -> Path:
    keys = ["DATASET.ROOT", str(folder), "OUTPUT_DIR", str(output), "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", ""]
    run(configuration(*keys, *options))
    return output / "model"


def without_record(model: Path) -> None:
    """Make a folder that an older version wrote."""
    config = json.loads((model / "config.json").read_text())
    del config["backbone"]["decode"]
    (model / "config.json").write_text(json.dumps(config))


def test_reduced_photos_give_other_features(reduced, full):
    assert not torch.equal(reduced, full)
    assert (reduced * full).sum(dim=1).min() > 0.9


def test_own_images_are_reduced(folder, reduced):
    assert torch.equal(encoded(task(folder)), reduced)


def test_option_full_decodes_own_images_at_full_size(folder, full):
    assert torch.equal(encoded(task(folder, "INPUT.DECODE", "full")), full)


def test_table_of_own_images_is_reduced(folder, reduced, tmp_path):
    rows = [f"{path},{path.parent.name}\n" for path in paths(folder)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    assert torch.equal(encoded(task(tmp_path / "labels.csv")), reduced)


def test_packed_own_images_are_reduced(folder, reduced, tmp_path):
    # `datasets` alone may be the folder of tests
    packed = pytest.importorskip("datasets.arrow_dataset", reason="datasets is not installed, to write Parquet")
    bytes_of = [{"bytes": path.read_bytes(), "path": None} for path in paths(folder)]
    table = packed.Dataset.from_dict({"image": bytes_of, "label": ["cat", "cat", "dog", "dog"]})
    table.to_parquet(tmp_path / "train.parquet")
    assert torch.equal(encoded(task(tmp_path)), reduced)


def test_published_data_set_is_never_reduced(mini):
    digits = load_dataset("Digits")
    assert digits.source is None
    of = ImageTask(digits, load_cfg("digits", "mini"), 1, "cpu")
    assert (of.cfg.encoding.decode, of.decode, of.backbone_config().decode) == ("auto", "full", "full")
    views = ImageViews(digits, digits.train, mini.with_decoding("auto").preprocess)
    assert views.decode == "full"


def test_keys_of_published_features_have_no_decoding(mini, monkeypatch):
    keys = []
    monkeypatch.setattr(extract, "hash_json", lambda settings: keys.append(settings) or "0" * 64)
    digits = load_dataset("Digits")
    of = ImageTask(digits, load_cfg("digits", "mini", opts=["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", ""]), 1, "cpu")
    of.encode(digits, digits.train[:2], "train")
    assert "decode" not in keys[0]


def test_full_and_reduced_features_have_different_files(folder, full, reduced, tmp_path):
    features = []
    for decode in ("auto", "full", "auto"):
        of = task(folder, "INPUT.DECODE", decode, "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path))
        features.append(encoded(of))
    assert len([*tmp_path.rglob("train-*.safetensors")]) == 2
    assert all(map(torch.equal, features, (reduced, full, reduced)))


def test_unlabelled_photos_are_decoded_as_the_training_images(folder, reduced, full):
    images = load_unlabelled(folder / "train")
    assert torch.equal(task(folder).encode(images, images.test, "unlabelled"), reduced)
    of = task(folder, "INPUT.DECODE", "full")
    assert torch.equal(of.encode(images, images.test, "unlabelled"), full)
    digits = ImageTask(load_dataset("Digits"), load_cfg("digits", "mini"), 1, "cpu")
    views = ImageViews(images, images.test, digits.backbone.preprocess)
    assert views.decode == "full"


def test_views_are_equal_in_any_batch_size(folder):
    views = []
    for size in (3, 256):
        of = task(folder, "DATALOADER.TEST.BATCH_SIZE", size, "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", 3)
        views.append(of.bank().train_features)
    assert torch.allclose(*views, atol=1e-6)


def test_run_records_the_decoding_and_predict_follows_it(folder, tmp_path, reduced, full, capsys):
    for decode, features in (("auto", reduced), ("full", full)):
        model = trained(folder, tmp_path / decode, "INPUT.DECODE", decode)
        saved = load_model(model)
        assert saved.backbone.decode == decode
        capsys.readouterr()
        assert predict([str(model), *map(str, paths(folder)), "--format", "jsonl", "--top", "1"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = saved.probabilities(features).amax(dim=1).tolist()
        assert [row["top"][0]["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_bank_carries_the_decoding_to_its_model(folder, tmp_path):
    task(folder).write_bank(tmp_path / "bank.safetensors")
    assert BankFile(tmp_path / "bank.safetensors").encoder.decode == "auto"
    cfg = configuration("OUTPUT_DIR", str(tmp_path / "out"))
    run(cfg, bank_file=tmp_path / "bank.safetensors")
    assert load_model(tmp_path / "out").backbone.decode == "auto"


def test_older_model_decodes_at_full_size(folder, tmp_path, full):
    model = trained(folder, tmp_path / "run")
    without_record(model)
    loaded = ImageModel.load(model)
    assert loaded.model.backbone.decode == "full"
    assert torch.equal(loaded.features(paths(folder)), full)


def test_evaluation_decodes_as_the_model_was_trained(folder, tmp_path, monkeypatch):
    model = trained(folder, tmp_path / "run")
    decodings = []
    monkeypatch.setattr(ImageViews, "_read", recording(ImageViews._read, decodings))
    for name in ("auto", "full"):
        if name == "full":
            without_record(model)
        keys = ["DATASET.ROOT", str(folder), "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", ""]
        run(configuration(*keys, "OUTPUT_DIR", str(tmp_path / f"test-{name}")), model_dir=model)
        assert {*decodings} == {name}
        decodings.clear()


def recording(read, decodings: list):
    def wrapped(self, positions):
        decodings.append(self.decode)
        return read(self, positions)

    return wrapped


def test_classifier_reduces_paths_and_hashes_full_pixels(folder, fitted, reduced):
    model = fitted.model_
    assert model.backbone.decode == "auto"
    assert model.image_ids == tuple(pixel_hash(open_image(path)) for path in paths(folder))
    expected = model.probabilities(reduced).numpy()
    assert fitted.predict_proba(paths(folder)) == pytest.approx(expected, abs=1e-5)


def test_saved_classifier_predicts_as_before(folder, fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    expected = fitted.predict_proba(paths(folder, "test"))
    assert np.array_equal(loaded.predict_proba(paths(folder, "test")), expected)


def test_older_classifier_is_extended_at_full_size(folder, fitted, tmp_path, mini):
    fitted.save_pretrained(tmp_path / "model")
    without_record(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model", backbone="mini")
    loaded.options = {**loaded.options, "INPUT.TRANSFORMS": ["normalize"], "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS": 1}
    loaded.partial_fit(paths(folder, "test"), [0, 1])
    assert loaded.model_.backbone.decode == "full"
    added = loaded.model_.support_set.features[0, -2:]
    assert torch.allclose(added, mini.encode_images(paths(folder, "test")), atol=1e-6)


def test_train_more_decodes_packed_images_as_files(folder, fitted, tmp_path):
    """The files are the test images in class folders, and then in a tar shard."""
    fitted.save_pretrained(tmp_path / "model")
    shutil.copytree(folder / "test", tmp_path / "files" / "train")
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for number, path in enumerate(paths(folder, "test")):
            shard.add(path, f"{number}.jpg")
            label = tmp_path / "label"
            label.write_text(path.parent.name)
            shard.add(label, f"{number}.cls")
    features = []
    for root, out in (("files", "first"), ("train-0.tar", "second")):
        words = ["--root", str(tmp_path / root), "--out", str(tmp_path / out)]
        assert main(["train-more", str(tmp_path / "model"), *words]) == 0
        features.append(load_model(tmp_path / out).support_set.features)
    assert torch.equal(*features)


def test_classifier_of_a_published_data_set_is_not_reduced(folder):
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", variant="training_free")
    assert classifier.fit(paths(folder), [0, 0, 1, 1]).model_.backbone.decode == "full"


def test_endpoint_decodes_bytes_as_predict(folder, fitted, mini, reduced, full):
    for decode, features in (("auto", reduced), ("full", full)):
        backbone = mini.with_decoding(decode)
        images = [open_input(path.read_bytes(), backbone) for path in paths(folder)]
        assert torch.equal(backbone.encode_images(images), features)


def test_server_decodes_as_predict(folder, fitted, mini, reduced):
    server = pytest.importorskip("trainers.hegraph.apps.serve.server", reason="the extra `serve` is not installed")
    of = server.Server(ImageModel(fitted.model_, mini))
    pixels = [of._read(path.read_bytes()) for path in paths(folder)]
    assert torch.equal(torch.cat([*of._features(pixels)]), reduced)


def test_teach_encodes_photos_at_a_reduced_scale(folder, mini, reduced):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    from trainers.hegraph.apps.teach.project import Project
    from trainers.hegraph.apps.teach.session import Session

    session = Session(Project(folder), mini, "mini")
    assert session.origin.backbone.decode == "auto"
    pictures = [picture for of_class in session.view.contents.classes.values() for picture in of_class]
    session.encoded_images.encode(pictures)
    rows = torch.stack([session.encoded_images.features[picture.digest] for picture in pictures])
    assert torch.allclose(rows, reduced, atol=1e-6)
