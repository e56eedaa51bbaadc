"""Serves the page on this machine until it is interrupted."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import UserError, say
from .pictures import MAX_BYTES, limit_decoding

if TYPE_CHECKING:  # it imports torch, and a port in use is said before
    from ..models.images import ImageModel

GRADIO = "gradio>=6.31,<7"  # as in pyproject.toml
HIGHEST_PORT = 65535
WAITING = 20  # images that wait for their answer; further ones are refused


def require_gradio() -> None:
    """Raises UserError if Gradio is not installed. Its usage statistics are switched off before it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs Gradio; run: {sys.executable} -m pip install '{GRADIO}'") from error


def check_address(host: str, port: int) -> None:
    """Checks that a port of this machine is free.

    Raises:
        UserError: If it is not, or the host is none of this machine.
    """
    if not 1 <= port <= HIGHEST_PORT:
        raise UserError(f"--port must lie in 1 ... {HIGHEST_PORT}, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from error


def serve(images: ImageModel, folder: Path, host: str, port: int) -> None:
    """Serves the page of a model until the process is interrupted or terminated.

    What is uploaded is kept in a temporary folder, which is deleted at the end.

    Args:
        images: The model with its backbone.
        folder: Its model folder, for thumbnails.
        host: The address to listen on.
        port: The port to listen on.

    Raises:
        UserError: If the page cannot be served there.
    """
    with tempfile.TemporaryDirectory(prefix="hegraph-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        for variable in ("NO_PROXY", "no_proxy"):  # Gradio asks itself whether it answers
            os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), "localhost,127.0.0.1"]))
        limit_decoding()
        from .page import PAGE_CSS, build_page, theme  # imports Gradio, which reads the environment

        page = build_page(images, folder).queue(max_size=WAITING)
        try:
            page.launch(
                server_name=host, server_port=port, share=False, ssr_mode=False, pwa=False, mcp_server=False,
                prevent_thread_lock=True, quiet=True, max_file_size=MAX_BYTES, footer_links=[], run_history=False,
                enable_monitoring=False, theme=theme(), css=PAGE_CSS,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}, port {port}: {error}; choose another --port or --host"
            ) from error
        try:
            say(f"http://{host}:{port} shows the page; Ctrl+C ends it\n")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            page.close(verbose=False)
