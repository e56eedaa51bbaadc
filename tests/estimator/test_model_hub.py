"""Models on the Hugging Face Hub, which is a server on loopback here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fake_hub import TOKEN, FakeHub, Repository

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.models import hub

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> SimpleNamespace:
    """What came of `hub_session.py`: `found`, what the hub holds and was asked, and the folder of all that was kept."""
    home = tmp_path_factory.mktemp("home")
    with FakeHub() as server:
        server.repositories["other/thing"] = Repository(private=False)
        server.repositories["other/thing"].branches["main"] = {"config.json": b"{}", "run.py": b"raise SystemExit"}
        server.repositories["other/extras"] = Repository(private=False)
        server.repositories["other/extras"].branches["main"] = dict.fromkeys((*FILES, "run.py", "w.bin"), b"{}")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "TMPDIR": str(home), "HOME": str(home)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        command = [sys.executable, str(Path(__file__).with_name("hub_session.py"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(found=json.loads(done.stdout), stderr=done.stderr, server=server, home=home)


def test_a_model_is_uploaded_with_its_three_files(session):
    assert session.found["pushed"] == f"{session.server.address}/user/shapes"
    repository = session.server.repositories["user/shapes"]
    assert sorted(repository.branches["main"]) == FILES
    assert repository.messages[0] == "The first one"
    assert not repository.private
    assert session.server.repositories["user/secret"].private


def test_a_model_is_downloaded_by_its_name_and_revision(session):
    found = session.found
    assert (found["main"], found["branch"], found["private"], found["labels"]) == ("full", "T", "T", True)


def test_only_the_files_of_a_model_are_downloaded(session):
    assert session.found["files"] == FILES
    downloaded = {path.rpartition("/")[2] for _, path in session.server.requests if "/resolve/" in path}
    assert downloaded == set(FILES)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("pushed without a token", "cannot upload to http://127.0.0.1:"),
        ("pushed nowhere", "the repository must be USER/NAME, got 'shapes'"),
        ("private without a token", "there is no such model, or it is private and needs a token"),
        ("no such model", "user/absent is no folder here, and cannot be downloaded: there is no such model"),
        ("no such revision", "cannot be downloaded at revision 'v9': there is no such revision"),
        ("no model", "config.json is damaged"),
        ("no name", "a--b/c is no folder here, and cannot be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(session, step, message):
    kind, said = session.found[step]
    assert kind == "UserError"
    assert message in said
    assert "\n" not in said


def test_a_token_is_neither_kept_nor_logged_nor_shown(session):
    assert "HTTP" in session.found["log"]  # there was something that could have been logged
    everything = json.dumps(session.found) + session.stderr
    kept = b"".join(path.read_bytes() for path in session.home.rglob("*") if path.is_file())
    for token in (TOKEN, "hf_WrongOne"):
        assert token not in everything
        assert token.encode() not in kept
    uploaded = session.server.repositories["user/shapes"].branches
    assert not any(TOKEN.encode() in content for files in uploaded.values() for content in files.values())


def test_the_card_of_an_uploaded_model_has_what_the_hub_reads(session):
    card = session.server.repositories["user/shapes"].branches["main"]["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert {"license", "library_name", "pipeline_tag", "datasets", "metrics", "tags"} <= set(header)
    assert header["pipeline_tag"] == "image-classification"
    assert "base_model" not in header


def test_without_network_a_name_of_the_hub_is_one_clear_line_at_once(no_hub, monkeypatch):
    look = hub.snapshot_download

    def look_on_this_machine_only(repository: str, local_files_only: bool = False, **how: object) -> str:
        if not local_files_only:
            pytest.fail("huggingface_hub tries for a minute")
        return look(repository, local_files_only=True, **how)

    monkeypatch.setattr(hub, "snapshot_download", look_on_this_machine_only)
    with pytest.raises(UserError) as caught:
        HeGraphClassifier.from_pretrained("user/shapes")
    message = str(caught.value)
    assert message.startswith("user/shapes is no folder here; on the Hub: the model user/shapes is not on this machine")
    for words in ("http://127.0.0.1:9 cannot be reached", "config.json and model.safetensors", "the folder that holds"):
        assert words in message
    assert "\n" not in message


def test_without_network_nothing_is_uploaded(no_hub, data, quick):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 cannot be reached \(.*\); nothing was uploaded"):
        quick().fit(data.X, data.y).push_to_hub("user/shapes", token=TOKEN)


def test_without_network_a_model_of_the_cache_is_taken(no_hub, data, quick):
    saved = quick().fit(data.X, data.y)
    cached = no_hub / "models--user--shapes"
    saved.save_pretrained(cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert HeGraphClassifier.from_pretrained("user/shapes").predict(data.X).tolist() == saved.predict(data.X).tolist()


def test_a_folder_of_that_name_comes_before_the_hub(no_hub, data, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick().fit(data.X, data.y).save_pretrained("user/shapes")
    assert HeGraphClassifier.from_pretrained("user/shapes").n_features_in_ == 16


def test_a_token_in_the_text_of_an_error_is_hidden():
    assert hub._reason(ValueError(f"bad header Bearer {TOKEN}"), TOKEN) == "bad header Bearer ***"
