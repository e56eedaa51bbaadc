"""Python's search for garbage: paused while libraries are imported, and left out at the exit."""

import atexit
import gc

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.features.backbones import loading
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.garbage import without_garbage_search


def test_context_pauses_and_resumes_the_search():
    assert gc.isenabled()
    with without_garbage_search():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_context_leaves_a_disabled_search_disabled():
    gc.disable()
    try:
        with without_garbage_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_missing_library_resumes_the_search(monkeypatch):
    def missing(extra: str, name: str) -> None:
        assert not gc.isenabled()
        raise UserError(f"{name} needs {extra}")

    monkeypatch.setattr(loading, "require_extra", missing)
    with pytest.raises(UserError, match="timm:vit needs timm"):
        loading.library_of("timm:vit")
    assert gc.isenabled()


def test_command_ends_without_a_search(monkeypatch, capsys):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    assert main([]) == 0
    assert at_exit == [gc.freeze]
