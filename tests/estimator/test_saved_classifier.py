"""Saving and loading of classifiers, equality with the command line, and the Hugging Face Hub.

Mocks replace the functions of huggingface_hub that need the network.
"""

import json
import os
import shutil
from unittest.mock import MagicMock

import numpy as np
import pytest
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.numpy import load_file

from trainers.hegraph import HeGraphClassifier, UserError, load_bank, load_dataset
from trainers.hegraph.models import hub

TOKEN = "hf_TheRightOne"
NODE = "TRAINER.HEGRAPHADAPTER."
load = HeGraphClassifier.from_pretrained


@pytest.mark.parametrize("labels", [[30, -1, 7, 8], ["zebra", "ant", "cow", "bee"], [False, True]], ids=str)
def test_labels_of_any_type_are_restored(labels, data, quick, tmp_path):
    rows = data.y < len(labels)
    X, y = data.X[rows], np.array(labels)[data.y[rows]]
    saved = quick().fit(X, y)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for classifier in (saved, loaded):
        np.testing.assert_array_equal(classifier.classes_, np.unique(labels))
        predicted = classifier.predict(X)
        assert predicted.dtype == y.dtype and (predicted == y).mean() > 0.9 and classifier.n_features_in_ == 16
        assert classifier.model_.classnames == tuple(map(str, np.unique(labels)))
    # cache keys are stored in float16
    np.testing.assert_allclose(loaded.predict_proba(X), saved.predict_proba(X), atol=2e-3)


def test_saving_a_loaded_classifier_is_lossless(data, quick, tmp_path):
    one, two, names = tmp_path / "one", tmp_path / "two", ("ant", "bee", "cow", "dog")
    quick(alpha_c=3.5, beta_c=2.5).fit(data.X, data.y, classnames=names).save_pretrained(one)
    loaded = load(one)
    assert (loaded.variant, loaded.random_state, loaded.logit_scale) == ("full", 1, 100.0)
    assert (loaded.model_.classifier.alpha, loaded.model_.classifier.beta) == (3.5, 2.5)
    assert (loaded.model_.classnames, loaded.model_.labels) == (names, (0, 1, 2, 3))
    loaded.save_pretrained(two)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_loaded_classifier_finds_its_backbone(digits, digit_classifier, quick, tmp_path):
    digit_classifier.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.backbone == "hegraph-mini"
    np.testing.assert_array_equal(loaded.predict(digits.tests), digit_classifier.predict(digits.tests))
    features = np.random.default_rng(0).normal(size=(30, loaded.n_features_in_))
    assert load(tmp_path).predict(features).shape == (30,)  # without a backbone
    quick().fit(features, digits.labels).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="backbone"):
        load(tmp_path).predict(digits.tests)
    assert load(tmp_path, backbone="hegraph-mini").predict(digits.tests).shape == (20,)


def test_runs_of_the_command_line_can_be_extended(finished_run_once):
    loaded = load(finished_run_once)
    model, rows = loaded.model_, np.eye(16, dtype=np.float32)
    assert loaded.classes_.tolist() == ["ant", "bee", "cow", "dog", "elk"] and loaded.random_state == 1
    assert set(loaded.predict(rows)) <= set(loaded.classes_)
    assert sum(model.images) == len(model.support_set.labels) == model.trained_on.num_train
    loaded.add_class("fox", rows[:2], text_features=rows[3])
    assert loaded.classes_.tolist() == [*model.classnames, "fox"] and loaded.model_.images[-1] == 2
    assert loaded.model_.trained_on.config["OPTIM.MAX_EPOCH"] == model.trained_on.config["OPTIM.MAX_EPOCH"]
    assert "OPTIM.LR" in model.trained_on.config and "OPTIM.LR" not in loaded.options  # it depends on the shots
    with pytest.raises(UserError, match="expected USER/NAME on the Hub for the revision 'v1'"):
        load(finished_run_once, revision="v1")


def test_is_known_uses_the_stored_quantiles(data, quick):
    classifier = quick(text_features=data.text).fit(data.X, data.y)
    logits = classifier.decision_function(data.X) / classifier.model_.temperature
    energy, quantiles = np.log(np.exp(logits).sum(axis=1)), classifier.model_.known.quantiles
    for rate, known in ((0.9, classifier.is_known(data.X, rate=0.9)), (0.95, classifier.is_known(data.X))):
        assert known.dtype == np.bool_ and 60 < known.sum() < 120
        np.testing.assert_array_equal(known, energy >= np.interp(1 - rate, np.arange(101) / 100, quantiles))
    rows = [list(data.y).index(label) for label in (0, 1)]  # one image of each of two classes
    with pytest.raises(UserError, match="has no scores of known images"):
        quick(text_features=data.text[:2]).fit(data.X[rows], [0, 1]).is_known(data.X)


@pytest.mark.parametrize("rate", [95, 0, float("nan"), "most", None])
def test_invalid_open_set_rates_are_refused(model, data, rate):
    with pytest.raises(UserError, match=f"rate: .* got {rate!r}"):
        model.is_known(data.X, rate=rate)


# Equal data, shots and seed give the bytes of the command line


@pytest.mark.parametrize("options", [{}, {f"{NODE}VARIANT": "T", f"{NODE}LEARN_METAPATH": True, "OPTIM.MAX_EPOCH": 3}])
def test_features_give_the_model_of_the_command_line(run, tiny_bank, tmp_path, options):
    words = tuple(str(word) for pair in options.items() for word in pair)
    _, out = run("--shots", "4", "--seed", "3", quick=words)
    bank = load_bank(tiny_bank)
    picked = [row for row, _, _ in json.loads((out / "split.json").read_text())["train"]]
    text = {"text_features": bank.text_positive, "negative_text_features": bank.text_negative}
    classifier = HeGraphClassifier(options=options, random_state=3, **text)
    X, y = bank.train_features[:, picked].transpose(0, 1), bank.train_labels[picked]
    classifier.fit(X, y, classnames=bank.classnames).save_pretrained(tmp_path / "model")
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "run/model")]
    assert written[0] == written[1]
    one, other = (json.loads((tmp_path / p / "config.json").read_text()) for p in ("model", "run/model"))
    for key in ("method", "variant", "classnames", "class_ids", "width", "logit_scale", "fusion", "transfer"):
        assert one[key] == other[key]
    assert one["trained_on"]["config"] == other["trained_on"]["config"]


def test_images_give_the_model_of_the_command_line(finished_digits_once, tmp_path):
    rows = json.loads((finished_digits_once / "split.json").read_text())["train"]
    dataset = load_dataset("Digits")
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", random_state=1)
    pictures = [dataset.open(path) for path, _, _ in rows]
    classifier.fit(pictures, [label for _, label, _ in rows], classnames=dataset.classnames)
    classifier.save_pretrained(tmp_path)
    written = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, finished_digits_once / "model")]
    assert written[0] == written[1]
    predicted = load_file(finished_digits_once / "predictions.safetensors")["predicted"]
    test = dataset.test[:100]
    np.testing.assert_array_equal(classifier.predict([dataset.open(i.path) for i in test]), predicted[:100])


# The Hub


@pytest.fixture
def model(data, quick) -> HeGraphClassifier:
    return quick().fit(data.X, data.y)


def test_push_and_load_by_revision(model, data, tmp_path, monkeypatch):
    files, make_api, download = tmp_path / "files", MagicMock(), MagicMock(return_value=str(tmp_path / "files"))
    api = make_api.return_value
    api.upload_folder.side_effect = lambda folder_path, **_: shutil.copytree(folder_path, files, dirs_exist_ok=True)
    monkeypatch.setattr(hub, "HfApi", make_api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    pushed = model.push_to_hub("user/shapes", token=TOKEN, commit_message="The first one")
    assert pushed == f"{hub.constants.ENDPOINT}/user/shapes"
    make_api.assert_called_with(token=TOKEN)
    api.create_repo.assert_called_with("user/shapes", private=False, exist_ok=True)
    api.create_branch.assert_not_called()
    upload = api.upload_folder.call_args.kwargs
    assert (upload["repo_id"], upload["revision"], upload["commit_message"]) == ("user/shapes", None, "The first one")
    assert sorted(upload["allow_patterns"]) == sorted(os.listdir(files))
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in files.iterdir())
    model.push_to_hub("user/secret", token=TOKEN, revision="text", private=True)
    api.create_repo.assert_called_with("user/secret", private=True, exist_ok=True)
    api.create_branch.assert_called_with("user/secret", branch="text", exist_ok=True)
    assert api.upload_folder.call_args.kwargs["revision"] == "text"
    loaded = load("user/secret", "text", token=TOKEN)
    download.assert_called_with("user/secret", revision="text", token=TOKEN, allow_patterns=upload["allow_patterns"])
    assert loaded.predict(data.X).tolist() == model.predict(data.X).tolist()
    assert TOKEN not in repr(loaded.get_params())


def test_push_adds_the_files_of_an_endpoint(installed, model, monkeypatch):
    make_api = MagicMock()
    monkeypatch.setattr(hub, "HfApi", make_api)
    model.push_to_hub("user/shapes", token=TOKEN, endpoint=True)
    uploaded = make_api.return_value.upload_folder.call_args.kwargs["allow_patterns"]
    assert {"handler.py", "requirements.txt", "hegraph/*"} == {*uploaded} - {*hub.FILES}


def test_uploaded_card_names_the_backbone(model, tmp_path, monkeypatch):
    cards, make_api = [], MagicMock()
    upload = make_api.return_value.upload_folder
    upload.side_effect = lambda folder_path, **_: cards.append((folder_path / "README.md").read_text())
    monkeypatch.setattr(hub, "HfApi", make_api)
    named = model.model_.backbone.model_copy(update={"model": "RN50-quickgelu", "pretrained": "openai"})
    model.model_ = model.model_.model_copy(update={"backbone": named})
    model.push_to_hub("user/shapes", token=TOKEN)
    assert "\nbase_model: timm/resnet50_clip.openai\n" in cards[0]
    model.save_pretrained(tmp_path / "model")  # open_clip, which knows the name, takes a second to import
    assert "base_model" not in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(("error", "reason"), [
    (PermissionError(f"401: bad token {TOKEN}\nRequest 7"), r"bad token \*\*\*$"),
    *((kind.__new__(kind), "no such model or revision, or it is private")
      for kind in (RepositoryNotFoundError, RevisionNotFoundError)),
])  # fmt: skip
def test_hub_errors_hide_the_token(model, monkeypatch, error, reason):
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(hub, name, MagicMock(side_effect=error))
    with pytest.raises(UserError, match=f"^cannot upload to {hub.constants.ENDPOINT}/user/shapes: .*{reason}"):
        model.push_to_hub("user/shapes", token=TOKEN)
    with pytest.raises(UserError, match=rf"^user/shapes is not a local folder.* at revision 'v9': .*{reason}"):
        load("user/shapes", "v9", token=TOKEN)


def test_offline_models_come_from_cache_or_folder(no_hub, model, data, quick, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected a repository USER/NAME, got 'shapes'"):
        model.push_to_hub("shapes")
    with pytest.raises(UserError, match="cannot upload to http://127.0.0.1:9"):
        model.push_to_hub("user/shapes", token=TOKEN)
    with pytest.raises(UserError, match=r"^user/shapes is not a local folder.* downloaded from http://127.0.0.1:9: \w"):
        load("user/shapes")
    model.save_pretrained(no_hub / "models--user--shapes" / "snapshots" / "0123")
    (no_hub / "models--user--shapes" / "refs").mkdir()
    (no_hub / "models--user--shapes" / "refs" / "main").write_text("0123")
    assert load("user/shapes").predict(data.X).tolist() == model.predict(data.X).tolist()
    monkeypatch.chdir(tmp_path)
    quick(variant="T").fit(data.X, data.y).save_pretrained("user/shapes")  # a folder has precedence over the Hub
    assert load("user/shapes").model_.variant == "T"
