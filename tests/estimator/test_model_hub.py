"""Models on the Hugging Face Hub, which is a dict here that stands in for huggingface_hub's functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.models import hub

TOKEN = "hf_TheRightOne"
FILES = ["README.md", "config.json", "model.safetensors"]


class Hub:
    """Keeps the files of each branch of a repository, whether it is private, and messages; snapshots go to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private, self.branches, self.messages = folder, {}, {}, []

    def __call__(self, token: str | None = None) -> Hub:
        if token != TOKEN:
            raise PermissionError(f"401: bad token {token}")
        return self

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private.setdefault(name, private)
        self.branches.setdefault((name, None), {})

    def create_branch(self, name: str, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.branches.setdefault((name, branch), {})

    def upload_folder(self, repo_id, folder_path, revision, commit_message, allow_patterns) -> None:
        self.branches[repo_id, revision] |= {file: (folder_path / file).read_bytes() for file in allow_patterns}
        self.messages.append(commit_message)

    def snapshot(self, name, revision=None, token=None, allow_patterns=(), local_files_only=False) -> str:
        if name not in self.private or (self.private[name] and token != TOKEN):
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # which wants a response
        if (name, revision) not in self.branches:
            raise RevisionNotFoundError.__new__(RevisionNotFoundError)
        folder = self.folder / name / str(revision)
        folder.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            (folder / file).write_bytes(self.branches[name, revision][file])
        return str(folder)


@pytest.fixture
def the_hub(tmp_path, monkeypatch) -> Hub:
    found = Hub(tmp_path / "snapshots")
    monkeypatch.setattr(hub, "HfApi", found)
    monkeypatch.setattr(hub, "snapshot_download", found.snapshot)
    return found


def test_a_model_is_uploaded_with_its_three_files_and_downloaded_by_its_name_and_revision(the_hub, data, quick):
    first, second = quick().fit(data.X, data.y), quick(variant="T").fit(data.X, data.y)
    pushed = first.push_to_hub("user/shapes", token=TOKEN, commit_message="The first one")
    assert pushed == f"{hub.constants.ENDPOINT}/user/shapes"
    second.push_to_hub("user/shapes", token=TOKEN, revision="text")
    second.push_to_hub("user/secret", token=TOKEN, private=True)
    assert the_hub.private == {"user/shapes": False, "user/secret": True}
    assert the_hub.messages[:2] == ["The first one", "Upload a HeGraphAdapter model"]
    assert [sorted(files) for files in the_hub.branches.values()] == [FILES] * 3
    assert TOKEN.encode() not in b"".join(b"".join(files.values()) for files in the_hub.branches.values())
    load = HeGraphClassifier.from_pretrained
    assert load("user/shapes").predict(data.X).tolist() == first.predict(data.X).tolist()
    assert load("user/shapes", revision="text").model_.variant == "T"
    assert TOKEN not in repr(load("user/secret", token=TOKEN).get_params())


def test_what_the_hub_refuses_is_said_in_one_line_without_the_token(the_hub, data, quick):
    model = quick().fit(data.X, data.y)
    the_hub.create_repo("user/secret", private=True, exist_ok=True)
    load = HeGraphClassifier.from_pretrained
    for step, message in (
        (lambda: model.push_to_hub("user/shapes", token="hf_WrongOne"), r"cannot upload to .*bad token \*\*\*"),
        (lambda: load("user/secret"), "there is no such model or revision, or it is private and needs a token"),
        (lambda: load("user/absent"), r"user/absent is no folder here, and cannot be had from \S+: there"),
        (lambda: load("user/secret", "v9", token=TOKEN), "at revision 'v9': there is no such"),
    ):
        with pytest.raises(UserError, match=message) as error:
            step()
        assert "hf_" not in str(error.value)
        assert "\n" not in str(error.value)


def test_without_network_nothing_is_uploaded_or_downloaded_and_a_model_of_the_cache_or_a_folder_is_taken(
    no_hub, data, quick, tmp_path, monkeypatch
):
    saved = quick().fit(data.X, data.y)
    with pytest.raises(UserError, match="cannot upload to http://127.0.0.1:9"):
        saved.push_to_hub("user/shapes", token=TOKEN)
    with pytest.raises(UserError, match=r"^user/shapes is no folder here.* had from http://127.0.0.1:9: .*refused"):
        HeGraphClassifier.from_pretrained("user/shapes")
    cached = no_hub / "models--user--shapes"
    saved.save_pretrained(cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert HeGraphClassifier.from_pretrained("user/shapes").predict(data.X).tolist() == saved.predict(data.X).tolist()
    monkeypatch.chdir(tmp_path)
    quick(variant="T").fit(data.X, data.y).save_pretrained("user/shapes")  # a folder comes before the Hub
    assert HeGraphClassifier.from_pretrained("user/shapes").model_.variant == "T"
