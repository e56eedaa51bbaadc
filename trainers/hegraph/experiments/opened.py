"""What runs of one process can share: the feature bank and the backbone that were opened last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..features.bank_file import BankFile
from ..utils.files import file_version

if TYPE_CHECKING:
    from ..backbones.clip import Backbone


class Opened:
    """Keeps one bank and one backbone, so that the next run that asks for the same does not open it again.

    No run changes what it gets: banks and backbones are frozen.
    """

    def __init__(self) -> None:
        self._bank: tuple[object, BankFile] | None = None
        self._backbone: tuple[object, Backbone] | None = None

    def bank(self, path: Path) -> BankFile:
        """A feature bank, opened again only if the file is another or has changed.

        Raises:
            UserError: As `BankFile`.
        """
        key = _version(path)
        if self._bank is None or key is None or self._bank[0] != key:
            self._bank = None  # the test features of two banks need not fit the memory
            self._bank = key, BankFile(path)
        return self._bank[1]

    def backbone(self, name: str, pretrained: str, device: str, precision: str, identity: dict) -> Backbone:
        """A frozen CLIP.

        Args:
            name, pretrained, device, precision: As `load_backbone` takes them.
            identity: From `backbone_identity`; it changes whenever the weights do.

        Raises:
            UserError: As `load_backbone`.
        """
        key = name, pretrained, device, precision, identity
        if self._backbone is None or self._backbone[0] != key:
            from ..backbones.loading import load_backbone  # imports open_clip

            self._backbone = None
            self._backbone = key, load_backbone(name, pretrained, device, precision)
        return self._backbone[1]


def _version(path: Path) -> object:
    try:
        return file_version(path)
    except OSError:  # `BankFile` says what is wrong
        return None
