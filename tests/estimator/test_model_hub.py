"""Models on the Hugging Face Hub; mocks stand in for the functions of huggingface_hub that need the network."""

from __future__ import annotations

import os
import shutil
from unittest.mock import MagicMock

import pytest
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.models import hub

TOKEN = "hf_TheRightOne"
load = HeGraphClassifier.from_pretrained


@pytest.fixture
def model(data, quick) -> HeGraphClassifier:
    return quick().fit(data.X, data.y)


def test_three_files_are_uploaded_and_downloaded_by_name_and_revision(model, data, tmp_path, monkeypatch):
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
    about = api.upload_folder.call_args.kwargs
    assert (about["repo_id"], about["revision"], about["commit_message"]) == ("user/shapes", None, "The first one")
    assert sorted(about["allow_patterns"]) == sorted(os.listdir(files))
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in files.iterdir())
    model.push_to_hub("user/secret", token=TOKEN, revision="text", private=True)
    api.create_repo.assert_called_with("user/secret", private=True, exist_ok=True)
    api.create_branch.assert_called_with("user/secret", branch="text", exist_ok=True)
    assert api.upload_folder.call_args.kwargs["revision"] == "text"
    loaded = load("user/secret", "text", token=TOKEN)
    download.assert_called_with("user/secret", revision="text", token=TOKEN, allow_patterns=about["allow_patterns"])
    assert loaded.predict(data.X).tolist() == model.predict(data.X).tolist()
    assert TOKEN not in repr(loaded.get_params())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(f"401: bad token {TOKEN}\nRequest 7"), r"bad token \*\*\*$"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            "there is no such model or revision, or it is private",
        ),
        (RevisionNotFoundError.__new__(RevisionNotFoundError), "there is no such model or revision, or it is private"),
    ],
    ids=["token", "repository", "revision"],
)
def test_what_the_hub_refuses_is_said_without_the_token(error, said, model, monkeypatch):
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(hub, name, MagicMock(side_effect=error))
    with pytest.raises(UserError, match=f"^cannot upload to {hub.constants.ENDPOINT}/user/shapes: .*{said}"):
        model.push_to_hub("user/shapes", token=TOKEN)
    with pytest.raises(UserError, match=rf"^user/shapes is no folder here.* at revision 'v9': .*{said}"):
        load("user/shapes", "v9", token=TOKEN)


def test_without_network_a_model_of_the_cache_or_a_folder_is_taken(no_hub, model, data, quick, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="must be USER/NAME, got 'shapes'"):
        model.push_to_hub("shapes")
    with pytest.raises(UserError, match="cannot upload to http://127.0.0.1:9"):
        model.push_to_hub("user/shapes", token=TOKEN)
    with pytest.raises(UserError, match=r"^user/shapes is no folder here.* had from http://127.0.0.1:9: .*refused"):
        load("user/shapes")
    model.save_pretrained(no_hub / "models--user--shapes" / "snapshots" / "0123")
    (no_hub / "models--user--shapes" / "refs").mkdir()
    (no_hub / "models--user--shapes" / "refs" / "main").write_text("0123")
    assert load("user/shapes").predict(data.X).tolist() == model.predict(data.X).tolist()
    monkeypatch.chdir(tmp_path)
    quick(variant="T").fit(data.X, data.y).save_pretrained("user/shapes")  # a folder comes before the Hub
    assert load("user/shapes").model_.variant == "T"
