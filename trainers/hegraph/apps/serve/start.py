"""Start of the server in a process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...utils.command_line import run_cli
from ...utils.signals import INTERRUPTED, is_interrupt

if TYPE_CHECKING:
    from .settings import Settings


def serve_model(settings: Settings, listener: socket.socket, on_ready: Callable[[], object]) -> int:
    """Load the model, and serve it until the process is interrupted or terminated; returns the exit code 0.

    Raises:
        UserError: As in `create_app`.
    """
    from .app import create_app
    from .connections import serve_app

    serve_app(create_app(settings), settings, listener, on_ready)
    return 0


def run_quietly(command: Callable[[], int]) -> int:
    """Run a command as `run_cli` does, without a message if it is interrupted: a server has nothing to continue."""

    def run() -> int:
        try:
            return command()
        except (KeyboardInterrupt, Exception) as error:
            if is_interrupt(error):
                return INTERRUPTED
            raise

    return run_cli(run)
