"""Every class of transformers, and timm: training, predictions, ONNX, server, comparison and teach project."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers.models")
pytest.importorskip("timm")

from browser import browsing
from random_models import KINDS, TWO_TOWERS, write_timm_model, write_transformers_model

from trainers.hegraph import load_backbone
from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel

pytestmark = pytest.mark.slow

ENCODERS = [*KINDS, "timm"]
NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2")


@pytest.fixture(scope="session")
def name_of(once) -> Callable[[str], str]:
    """Function of a class or "timm": name of its tiny random model."""

    def write(folder: Path) -> None:
        for kind in KINDS:
            write_transformers_model(folder / kind, kind)
        config = write_timm_model(folder / "timm", img_size=48) / "config.json"
        content = json.loads(config.read_text())
        content["pretrained_cfg"]["input_size"] = [3, 32, 32]  # smaller than the images of the positions
        config.write_text(json.dumps(content))

    root = once("tiny_encoders", write)
    return lambda kind: f"{'timm' if kind == 'timm' else 'transformers'}:{root / kind}"


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> list[Path]:
    """Files of the first test scan of each digit."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits_dataset()
    first: dict[str, Path] = {}
    for item in digits.test:
        if item.classname not in first:
            first[item.classname] = folder / f"{item.classname}.png"
            digits.open(item.path).save(first[item.classname])
    return [*first.values()]


@pytest.fixture(scope="session")
def trained(once, name_of) -> Callable[[str], Path]:
    """Function of a class: output folder of a training of two shots of the digits with its model; read-only."""

    def train(folder: Path, kind: str) -> None:
        words = ["train", "digits", "--backbone", name_of(kind), "--shots", "2", "--seed", "1"]
        assert main([*words, "--config-file", "mini", "--output-dir", str(folder), *QUICK]) == 0

    return lambda kind: once(f"trained_{kind}", lambda folder: train(folder, kind))


@pytest.fixture(scope="session")
def predicted(once, trained, scans) -> Callable[[str], np.ndarray]:
    """Function of a class: probabilities `[10, 10]` of the scans, as `predict` writes them."""

    def predict(folder: Path, kind: str) -> None:
        words = ["predict", trained(kind), *scans, "--top", "10", "--out", folder / "rows.jsonl"]
        assert main([*map(str, words)]) == 0

    def probabilities(kind: str) -> np.ndarray:
        file = once(f"predicted_{kind}", lambda folder: predict(folder, kind)) / "rows.jsonl"
        rows = [json.loads(line)["top"] for line in file.read_text().splitlines()]
        return in_order(rows, load_model(trained(kind)).classnames)

    return probabilities


def in_order(rows: list[list[dict]], names: tuple[str, ...]) -> np.ndarray:
    """Probabilities in the order of the classes."""
    found = [{each["class"]: each["probability"] for each in row} for row in rows]
    return np.array([[row[name] for name in names] for row in found])


@pytest.mark.parametrize("kind", ENCODERS)
def test_training_learns_the_digits(trained, name_of, kind):
    out = trained(kind)
    record = json.loads((out / "result.json").read_text())
    model = load_model(out)
    assert record["accuracy"] > 15  # random features still tell the digits apart better than chance
    assert record["config"]["MODEL.BACKBONE.NAME"] == name_of(kind) == model.backbone.model
    has_text = kind in TWO_TOWERS
    assert (record["accuracy_zero_shot"] is not None) == (model.prompts is not None) == model.has_text == has_text


@pytest.mark.parametrize("kind", ENCODERS)
def test_predictions_are_those_of_the_features(trained, predicted, scans, kind):
    model = load_model(trained(kind))
    features = load_backbone(model.backbone.model).encode_images([Image.open(file) for file in scans])
    np.testing.assert_allclose(predicted(kind), model.probabilities(features), atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_onnx_file_answers_as_predict(trained, predicted, scans, tmp_path, capfd, kind):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    assert main(["export", str(trained(kind)), "--onnx", str(tmp_path / "model.onnx")]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    backbone = ImageModel.load(load_model(trained(kind))).backbone
    pixels = torch.stack([backbone.preprocess(file) for file in scans]).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    [probabilities] = session.run(["probabilities"], {"pixel_values": pixels})
    np.testing.assert_allclose(probabilities, predicted(kind), atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_server_answers_as_predict(trained, predicted, scans, kind):
    for package in ("fastapi_offline", "httpx", "prometheus_fastapi_instrumentator"):
        pytest.importorskip(package, reason="the extras `serve` and `dev` are not installed")
    from fastapi.testclient import TestClient

    from trainers.hegraph.apps.serve.app import create_app
    from trainers.hegraph.apps.serve.settings import Settings

    files = [("files", (file.name, file.read_bytes())) for file in scans]
    with TestClient(create_app(Settings(model=trained(kind) / "model")), "http://127.0.0.1") as client:
        answers = client.post("/v1/predict/files?top=10", files=files).json()["predictions"]
        described = client.get("/v1/model").json()
    answered = in_order([answer["top"] for answer in answers], tuple(described["classes"]))
    np.testing.assert_allclose(answered, predicted(kind), atol=1e-5)
    assert described["backbone"] == load_model(trained(kind)).backbone.title


def test_comparison_mixes_encoders_with_and_without_text(name_of, tmp_path, capsys):
    names = [name_of(kind) for kind in ENCODERS]
    words = ["backbones", "--dataset-config-file", "digits", "--shots", "3", "--candidates", *names, "hegraph-mini"]
    assert main([*words, f"{NODE}.FEATURES.DIR", str(tmp_path), f"{NODE}.FEATURES.VIEWS", "2"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[: len(names) + 1]}
    assert rows.keys() == {*names, "hegraph-mini"}
    column = slice(header.index("zero-shot"), header.index("held-out"))
    with_text = {name for name, line in rows.items() if re.fullmatch(r"\d+\.\d\d", line[column].strip())}
    without_text = {name for name, line in rows.items() if not line[column].strip()}
    assert with_text == {*(name_of(kind) for kind in TWO_TOWERS), "hegraph-mini"}
    assert with_text | without_text == rows.keys()


@pytest.mark.parametrize("kind", ENCODERS)
def test_teach_project_is_trained_and_exported(name_of, scans, tmp_path, kind):
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    from trainers.hegraph.apps.teach.handlers import Teacher
    from trainers.hegraph.apps.teach.project import Project
    from trainers.hegraph.apps.teach.session import Session
    from trainers.hegraph.apps.teach.worker import Worker

    session = Session(Project(tmp_path / "project"), load_backbone(name_of(kind)), name_of(kind))
    teacher = Teacher(Worker(session), tmp_path)
    ask = {function.__name__: function for function in teacher.functions()}
    for file in scans[:3]:
        upload = shutil.copy(file, tmp_path)
        request = {"do": "add", "place": "", "files": [[upload, f"train/{file.stem}/{file.name}"]]}
        assert ask["teach_act"](request)["message"] == "1 image added"
    for steps in (session.update, session.evaluate):
        for _ in steps():
            pass
    facts = ask["teach_changes"]({"number": -1})["parts"]["slot:facts"]
    assert ("the encoder reads no text" in facts) == (kind not in TWO_TOWERS)
    assert ask["teach_export"]({"name": "model.zip"}).keys() == {"url"}
    assert session.model()[0].classnames == tuple(file.stem for file in sorted(scans[:3]))


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_teach_page_classifies_in_the_browser(name_of, scans, tmp_path, python, kind):
    folder = tmp_path / "project"
    for file in scans[:2]:
        (folder / "train" / file.stem).mkdir(parents=True)
        shutil.copy(file, folder / "train" / file.stem)
    (tmp_path / "profile").mkdir()
    words = ("teach", str(folder), "--backbone", name_of(kind))
    with browsing(tmp_path / "profile", *words, python=python) as page:
        page.open("#panel-classes form")
        page.wait(lambda: "images" in page.text("#top"))
        assert ("the encoder reads no text" in page.text("body")) == (kind not in TWO_TOWERS)
        page.tab("Try")
        page.upload(scans[1])
        page.wait(lambda: page.winner() == scans[1].stem)
