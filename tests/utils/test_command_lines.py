"""A message that names a command names it as the user of this copy of the package calls it."""

from __future__ import annotations

import pytest

from trainers.hegraph.utils import commands

CALLS = {
    "": ("python -m trainers.hegraph", "hegraph"),
    "--shots 1": ("python -m trainers.hegraph --shots 1", "hegraph --shots 1"),
    "datasets": ("python -m trainers.hegraph.datasets", "hegraph datasets"),
    "datasets check --root X": (
        "python -m trainers.hegraph.datasets check --root X",
        "hegraph datasets check --root X",
    ),
}


@pytest.mark.parametrize("arguments", CALLS)
def test_in_a_checkout_a_command_runs_a_module(arguments):
    assert commands.command(arguments) == CALLS[arguments][0]


@pytest.mark.parametrize("arguments", CALLS)
def test_once_installed_a_command_is_the_console_command(arguments, monkeypatch):
    monkeypatch.setattr(commands, "PACKAGE", "hegraph")
    assert commands.command(arguments) == CALLS[arguments][1]
