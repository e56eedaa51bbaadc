"""Python's search for garbage: paused while libraries are imported, and left out at the exit."""

import atexit
import gc
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.features.backbones import loading
from trainers.hegraph.utils import garbage
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.garbage import without_garbage_search

ROOT = Path(__file__).parents[2]


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
    assert at_exit == [garbage.freeze_objects]


@pytest.mark.parametrize("prints_leaks", [False, True])
def test_objects_stay_in_the_search_if_leaks_are_printed(monkeypatch, prints_leaks):
    frozen = []
    monkeypatch.setattr(garbage, "is_nanobind_loaded", lambda: prints_leaks)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("all"))
    garbage.freeze_objects()
    assert frozen == ([] if prints_leaks else ["all"])


def test_nanobind_is_found_by_its_metaclass():
    kept = type("nb_meta", (type,), {"__module__": "nanobind"})  # as a library creates it
    assert kept in type.__subclasses__(type) and garbage.is_nanobind_loaded()


@pytest.mark.slow
def test_triton_prints_nothing_at_the_end():
    pytest.importorskip("triton", reason="triton is not installed, which torch needs on GPUs")
    code = "import triton; from trainers.hegraph.utils.garbage import skip_search_at_exit; skip_search_at_exit()"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
