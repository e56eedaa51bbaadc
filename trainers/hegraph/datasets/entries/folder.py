"""The user's own images: a folder of class folders, or a CSV file."""

from __future__ import annotations

from ..entry import LoaderEntry
from ..folder import NAME, load_image_folder

ENTRY = LoaderEntry(name=NAME, aliases=("folder",), load=load_image_folder)
