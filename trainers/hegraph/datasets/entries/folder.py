"""The user's own images, in one of the forms of `own.FORMS`."""

from __future__ import annotations

from ..entry import LoaderEntry
from ..own import NAME, load_own_images

ENTRY = LoaderEntry(name=NAME, aliases=("folder",), load=load_own_images)
