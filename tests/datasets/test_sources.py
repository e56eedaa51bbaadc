"""The mirrors in the entries of the registry: well formed, complete, and pinned or checked."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from file_server import sum_of

from trainers.hegraph.datasets.fetch.sources import Source
from trainers.hegraph.datasets.registry import stored_datasets


def chain(source: Source) -> list[Source]:
    return [source, *(chain(source.otherwise) if source.otherwise else [])]


STORED = stored_datasets()
EVERY = [
    pytest.param(name, source, id=f"{name}-{source.file}")
    for name, entry in STORED.items()
    for first in entry.sources
    for source in chain(first)
]


@pytest.mark.parametrize("name", STORED)
def test_the_sources_of_a_data_set_bring_its_images_and_its_split(name):
    entry = STORED[name]
    targets = [target for source in entry.sources for target in source.targets]
    needed = {entry.images or "cars_train", entry.split_file or "classnames.txt"} - {"classnames.txt"}
    if "imagenet" in entry.folder:
        needed.add("classnames.txt")
    if entry.by_hand:
        targets.append(entry.by_hand.target)
    assert needed <= set(targets)
    assert len(targets) == len(set(targets))
    files = [source.file for first in entry.sources for source in chain(first)]
    assert len(files) == len(set(files))  # each is found again by its name


@pytest.mark.parametrize(("name", "source"), EVERY)
def test_a_source_is_well_formed(name, source):
    assert source.urls
    for url in source.urls:
        assert re.fullmatch(r"gdrive:[\w-]{25,44}|https://[\w.-]+\.[a-z]+/[\w.~/-]+[\w]", url), url
    assert source.size is None or source.size > 0
    assert source.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", source.checksum)
    assert bool(source.unpack) or not (source.inner or source.otherwise)
    for path in (source.file, source.inner, *source.targets, *(member.path for member in source.unpack)):
        assert not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
    assert "/" not in source.file
    if source.otherwise:
        assert set(source.targets) <= set(source.otherwise.targets)


@pytest.mark.parametrize(("name", "source"), EVERY)
def test_an_address_that_may_change_its_content_is_pinned_or_checked(name, source):
    moving = [url for url in source.urls if "/main/" in url]
    assert not moving or source.checksum or name == "ImageNetSketch"  # whose commit is not known


def test_the_sums_of_the_split_files_are_those_of_the_real_files(shared):
    compared = []
    for name, entry in STORED.items():
        for source in entry.sources:
            path = shared / "data" / "splits" / source.file
            if path.exists():
                assert (source.size, source.checksum) == (path.stat().st_size, sum_of(path.read_bytes())), name
                compared.append(source.file)
    assert set(compared) == {path.name for path in (shared / "data" / "splits").iterdir()}
