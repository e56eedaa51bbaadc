"""Start of a server on this machine: its address, and the pages that Gradio shows. Gradio is optional."""

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command_line import echo
from ..utils.errors import UserError, first_line

if TYPE_CHECKING:
    from gradio import Blocks

GRADIO = "gradio>=6.31,<7"  # the extra "demo" of pyproject.toml
MAX_QUEUE = 20  # waiting requests; further ones are refused


def require_gradio() -> None:
    """Raise UserError if Gradio is not installed. Switch off its usage statistics before the first import."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs Gradio; run: {sys.executable} -m pip install '{GRADIO}'") from error


def check_address(host: str, port: int) -> None:
    """Raise UserError if the port is in use or the host is not an address of this machine."""
    bind(host, port).close()


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to an address. It does not listen yet, so clients are refused until a server does.

    Raises:
        UserError: If the port is in use or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port == 0:  # the system would choose a random port
            raise ValueError("expected a port from 1 to 65535")
        listener = socket.socket(family)
        try:
            if os.name == "posix":  # the port may have been used a moment before
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, ValueError) as error:
        problem = f"cannot listen on {host}, port {port}: {first_line(error)}"
        raise UserError(f"{problem}; choose another --port or --host") from error
    return listener


def page_address(host: str, port: int) -> str:
    """URL of a server; an IPv6 address is in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def launch_page(build: "Callable[[Path], Blocks]", host: str, port: int, css: str = "", **options: Any) -> None:
    """Serve a page until the process is interrupted or terminated.

    Args:
        build: Function from the temporary folder for uploads, which is deleted at the end, to the page.
        host, port: Address of the page.
        css: Style sheet, added to the one of the demo.
        options: Further arguments of Gradio's `launch`.
    """
    from starlette.middleware import Middleware

    from ..datasets.images import MAX_BYTES
    from .access import Guard
    from .demo.page import CSS, gradio_theme

    with tempfile.TemporaryDirectory(prefix="hegraph-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        for variable in ("NO_PROXY", "no_proxy"):  # Gradio sends requests to its own server
            os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), "localhost,127.0.0.1"]))
        page = build(Path(uploads)).queue(max_size=MAX_QUEUE)
        name = f"[{host}]" if ":" in host else host  # IPv6 in a URL
        guard = Middleware(Guard, host=host, framed="SPACE_ID" in os.environ)  # a Space is shown in a frame
        page.launch(
            server_name=name, server_port=port, share=False, ssr_mode=False, pwa=False, mcp_server=False,
            prevent_thread_lock=True, quiet=True, footer_links=[], run_history=False,
            enable_monitoring=False, theme=gradio_theme(), css=CSS + css,
            app_kwargs={"middleware": [guard]}, **{"max_file_size": MAX_BYTES} | options,
        )  # fmt: skip
        try:
            echo(f"{page_address(host, port)} shows the page; Ctrl+C ends it\n")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            page.close(verbose=False)
