"""A static host on this machine, and the runtime of the page from npm."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from trainers.hegraph.apps.static.runtime import VERSION

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hegraph-tests"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Handler of a static host, which logs nothing."""

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; the context is the address."""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def npm_runtime() -> Path:
    """Archive of onnxruntime-web, which npm downloads once to the user's cache; skip the test without it."""
    archive = CACHE / f"onnxruntime-web-{VERSION}.tgz"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "npm.lock"):
        if not archive.exists():
            npm = shutil.which("npm")
            if npm is None:
                pytest.skip("npm is not installed, which downloads onnxruntime-web")
            words = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent"]
            ran = subprocess.run(words, cwd=CACHE, capture_output=True, text=True, timeout=300)
            if ran.returncode or not archive.exists():
                pytest.skip(f"npm cannot download onnxruntime-web: {ran.stderr.strip()[-200:]}")
    return archive
