"""Files of an inference endpoint, loaded as its toolkit does."""

import base64
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from trainers.hegraph import HeGraphClassifier, UserError, load_few_shot
from trainers.hegraph.models.endpoint import EndpointHandler
from trainers.hegraph.models.folder import load_model, save_model
from trainers.hegraph.models.package import requirements

# The toolkit puts the folder on the path, and loads the class from handler.py
TOOLKIT = """
import importlib.util, json, sys
from PIL import Image
folder, picture = sys.argv[1:]
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", f"{folder}/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
print(json.dumps(handler({"inputs": Image.open(picture), "parameters": {"top_k": 2}})))
"""


@pytest.fixture(scope="module")
def scan() -> Image.Image:
    digits = load_few_shot("Digits", "", 1, 1)
    return digits.open(digits.test[0].path)


@pytest.fixture
def handler(finished_digits_once) -> EndpointHandler:
    return EndpointHandler(str(finished_digits_once / "model"))


@pytest.fixture
def content(scan) -> bytes:
    file = io.BytesIO()
    scan.save(file, "PNG")
    return file.getvalue()


def test_folder_runs_as_the_toolkit_loads_it(installed, finished_digits_once, scan, tmp_path):
    classifier = HeGraphClassifier.from_pretrained(finished_digits_once / "model")
    classifier.save_pretrained(tmp_path / "model", endpoint=True)
    scan.save(tmp_path / "scan.png")
    words = [sys.executable, "-c", TOOLKIT, str(tmp_path / "model"), str(tmp_path / "scan.png")]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer[0]["label"] == classifier.predict([scan])[0]
    assert answer[0]["score"] == pytest.approx(classifier.predict_proba([scan]).max(), abs=1e-5)
    lines = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in lines)


def test_loading_runs_no_handler(installed, finished_digits_once, tmp_path):
    HeGraphClassifier.from_pretrained(finished_digits_once / "model").save_pretrained(tmp_path / "model", endpoint=True)
    (tmp_path / "model" / "handler.py").write_text("raise SystemExit")
    assert len(load_model(tmp_path / "model").classnames) == 10


def test_all_kinds_of_input_have_equal_answers(handler, scan, content):
    encoded = base64.b64encode(content).decode()
    lines = base64.encodebytes(content).decode()
    inputs = [scan, content, encoded, lines, f"data:image/png;base64,{encoded}"]
    answers = handler({"inputs": inputs})
    assert len(answers) == 5 and len(answers[0]) == 5
    for answer in [*answers, handler({"inputs": content})]:
        assert [each["label"] for each in answer] == [each["label"] for each in answers[0]]
        assert answer[0]["score"] == pytest.approx(answers[0][0]["score"], abs=1e-5)


def test_list_of_one_image_has_a_list_of_answers(handler, content):
    [answer] = handler({"inputs": [content]})
    assert answer == handler({"inputs": content})


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ("/etc/a.png", "endpoint.base64"),
        ("http://127.0.0.1", "endpoint.base64"),
        (7, "endpoint.type"),
        (None, "endpoint.type"),
    ],
)
def test_paths_and_addresses_are_not_opened(handler, inputs, code, refused):
    with refused(code):
        handler({"inputs": inputs})


@pytest.mark.parametrize("data", [[], "inputs", None, {"inputs": b"", "parameters": []}, {"parameters": "top_k"}])
def test_requests_of_another_form_are_refused(handler, data, refused):
    with refused("endpoint.request", "expected a mapping"):
        handler(data)


@pytest.mark.parametrize("top", [3, "3", " 3 "])
def test_number_of_classes_may_be_text(handler, content, top):
    assert len(handler({"inputs": bytearray(content), "parameters": {"top_k": top}})) == 3


@pytest.mark.parametrize("top", [0, "-1", "three", 1.5, True])
def test_other_numbers_of_classes_are_refused(handler, content, top):
    with pytest.raises(UserError, match="top_k"):
        handler({"inputs": content, "parameters": {"top_k": top}})


# Requirements of an installed distribution with extras
DECLARED = [
    "torch>=2.4",
    "timm>=1.0.20; extra == 'timm'",
    'transformers>=5.4; extra == "transformers"',
    "x; extra == 'dev'",
]


@pytest.mark.parametrize(
    "backbone, packages",
    [
        ("", []),
        ("hegraph-mini", []),
        ("ViT-B-16-quickgelu", []),
        ("ViT-B-16-SigLIP2", ["transformers>=5.4"]),
        ("xlm-roberta-base-ViT-B-32", ["transformers>=5.4"]),
        ("timm:test_vit.r160_in1k", ["timm>=1.0.20"]),
        ("transformers:openai/clip-vit-base-patch32", ["transformers>=5.4"]),
    ],
)
def test_requirements_include_the_library_of_the_backbone(backbone, packages, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.models.package.requires", lambda name: DECLARED)
    assert requirements(backbone) == ["torch>=2.4", *packages]


def test_requirements_of_a_bundle_come_from_its_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.models.package.requires", lambda name: DECLARED)
    config = {"model_cfg": {"embed_dim": 8, "text_cfg": {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert requirements(f"local-dir:{tmp_path}") == ["torch>=2.4", "transformers>=5.4"]
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(UserError, match='expected a model of open_clip in .*, with the key "model_cfg"'):
        requirements(f"local-dir:{tmp_path}")


def test_endpoint_of_a_timm_model_requires_timm(finished_digits_once, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.models.package.requires", lambda name: DECLARED)
    model = load_model(finished_digits_once / "model")
    encoder = model.backbone.model_copy(update={"model": "timm:test_vit.r160_in1k"})
    save_model(model.model_copy(update={"backbone": encoder}), tmp_path / "model", endpoint=True)
    assert (tmp_path / "model" / "requirements.txt").read_text() == "torch>=2.4\ntimm>=1.0.20\n"
