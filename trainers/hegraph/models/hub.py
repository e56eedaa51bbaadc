"""Model folders on the Hugging Face Hub: downloads one, uploads one.

A token is handed to huggingface_hub and kept nowhere else; no message holds it. Only the three files of a model folder
are downloaded, and none of them is run.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from ..utils.errors import UserError, first_line
from .card import base_model_of, model_card
from .folder import CARD, CONFIG, TENSORS, find_model_folder, save_model
from .saved import SavedModel

FILES = [CONFIG, TENSORS, CARD]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_model(name: str, revision: str | None, token: str | None) -> Path:
    """The model folder that a user means: one here, the output folder of a run, or else "USER/NAME" on the Hub.

    Of a model on the Hub, what the cache lacks is downloaded; where the Hub cannot be reached, the cache has to do.
    Arguments are as of `HeGraphClassifier.from_pretrained`. UserError if there is no such model to be had.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        if revision is not None:
            raise UserError(f"revision {revision!r} is of a model on the Hub, and {name} is none")
        return find_model_folder(Path(name))
    try:
        return find_model_folder(Path(snapshot_download(name, revision=revision, token=token, allow_patterns=FILES)))
    except Exception as error:  # of huggingface_hub, requests or httpx: it depends on the version
        at = f" at revision {revision!r}" if revision else ""
        said = f"{name} is no folder here, and cannot be had from {constants.ENDPOINT}{at}: {_reason(error, token)}"
        raise UserError(said) from None


def push_model(
    model: SavedModel, repository: str, token: str | None, revision: str | None, private: bool, message: str
) -> str:
    """Uploads a model folder, and returns its address; arguments as of `HeGraphClassifier.push_to_hub`.

    Raises:
        UserError: If the Hub cannot be reached or refuses.
    """
    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"the repository must be USER/NAME, got {repository!r}")
    address = f"{constants.ENDPOINT}/{repository}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_model(model, path)
        (path / CARD).write_text(model_card(model, base_model_of(model.backbone)), encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            if revision:
                api.create_branch(repository, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=path, revision=revision, commit_message=message, allow_patterns=FILES
            )
        except Exception as error:  # of huggingface_hub, requests or httpx: it depends on the version
            raise UserError(f"cannot upload to {address}: {_reason(error, token)}") from None
    return address


def _reason(error: Exception, token: str | None) -> str:
    """Why the Hub refused, in one line without the token."""
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return "there is no such model or revision, or it is private and needs a token"
    reason = first_line(error)
    return reason.replace(token, "***") if token else reason
