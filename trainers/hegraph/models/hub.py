"""Download and upload of model folders, from and to the Hugging Face Hub.

A token is passed to huggingface_hub only: it is not stored, and no message contains it. Only the three files of a model
folder are downloaded, and none of them contains code.
"""

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from ..utils.errors import UserError, first_line
from .card import base_model_of, model_card
from .folder import CARD, CONFIG, TENSORS, save_model
from .saved import SavedModel

FILES = [CONFIG, TENSORS, CARD]
ENDPOINT_FILES = ["handler.py", "requirements.txt", "hegraph/*"]  # uploaded on request, never downloaded
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_folder(name: str, revision: str | None, token: str | None) -> Path:
    """Folder of a model: a local path, or the downloaded files of "USER/NAME" on the Hub.

    Files that are cached are not downloaded. Arguments as of `HeGraphClassifier.from_pretrained`.

    Raises:
        UserError: If the Hub refuses, or a local folder has a revision.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        if revision is not None:
            raise UserError(f"expected USER/NAME on the Hub for the revision {revision!r}, got {name}")
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=FILES))
    except Exception as error:  # type depends on the version of huggingface_hub
        at = f" at revision {revision!r}" if revision else ""
        source = f"{constants.ENDPOINT}{at}: {_reason(error, token)}"
        raise UserError(f"{name} is not a local folder, and cannot be downloaded from {source}") from None


def push_model(
    model: SavedModel,
    repository: str,
    token: str | None,
    revision: str | None,
    private: bool,
    message: str,
    endpoint: bool = False,
) -> str:
    """Upload a model folder, and return its address; arguments as of `HeGraphClassifier.push_to_hub`.

    Raises:
        UserError: If the Hub cannot be reached or refuses.
    """
    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"expected a repository USER/NAME, got {repository!r}")
    address = f"{constants.ENDPOINT}/{repository}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_model(model, path, endpoint)
        (path / CARD).write_text(model_card(model, base_model_of(model.backbone)), encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            if revision:
                api.create_branch(repository, branch=revision, exist_ok=True)
            patterns = [*FILES, *(ENDPOINT_FILES if endpoint else ())]
            api.upload_folder(
                repo_id=repository, folder_path=path, revision=revision, commit_message=message, allow_patterns=patterns
            )
        except Exception as error:  # type depends on the version of huggingface_hub
            raise UserError(f"cannot upload to {address}: {_reason(error, token)}") from None
    return address


def _reason(error: Exception, token: str | None) -> str:
    """Reason of an error of the Hub, in one line without the token."""
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return "no such model or revision, or it is private and needs a token"
    reason = first_line(error)
    return reason.replace(token, "***") if token else reason
