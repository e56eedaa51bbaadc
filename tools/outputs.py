"""Run the commands of the pages, and fill in their outputs.

    python -m tools.outputs [PAGE ...]

An output is a block of text below its commands:

    ```bash
    hegraph predict output/pictures pictures/zero
    ```

    <!-- output: 3 1 -->
    ```text
    ...
    ```
    <!-- /output -->

`3 1` selects the first three lines and the last line; without numbers, all lines are shown. All blocks of a page run in
order in one folder, apart from those that begin with "# needs ". The folder is a copy of a checkout in which the
commands of `START` have run. `tests/test_docs.py` compares the pages with the outputs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.hegraph.utils.files import atomic_path

from .warm_python import warm_python

ROOT = Path(__file__).parent.parent
PYTHON = Path(sys.executable)
START = ROOT / "docs" / "getting-started.md"
PAGES = [
    START,
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *(ROOT / "docs" / "reference" / f"{name}.md" for name in ("configuration", "protocol", "backbones")),
    *(ROOT / "docs" / "results" / f"{name}.md" for name in ("accuracy", "reproduce")),
]
BLOCK = re.compile(
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```\n"
    r"(?P<marker>\n<!-- output(?:: (?P<first>\d+)(?: (?P<last>\d+))?)? -->\n```text\n)?"
    r"(?(marker)(?P<output>.*?)(?P<end>^```\n<!-- /output -->\n))",
    re.DOTALL | re.MULTILINE,
)
DRIVER = """
import json, sys
for line in sys.stdin:
    exec(compile(json.loads(line), "page", "exec"), globals())
    print("\\0", flush=True)
"""
MEASURED = re.compile(r"[\d.,]+ (s\b|ms\b|min\b|MB\b|images/s|a second|per second)|\d+(\.\d+)?e-?\d+")
DECIMAL = re.compile(r"(\d+)\.\d+( %)?")
TOLERANCE, TOLERANCE_BELOW_ONE = 3, 0.03  # of percentages and of fractions, for other processors


def add_programs(folder: Path, python: Path = PYTHON) -> Path:
    """Add `bin/python` and `bin/hegraph`, which run with an interpreter, to a folder; returns the folder."""
    (folder / "bin").mkdir()
    for name, words in (("python", ""), ("hegraph", "-m hegraph ")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{python}" {words}"$@"\n')
        program.chmod(0o755)
    return folder


def make_checkout(folder: Path, python: Path = PYTHON) -> Path:
    """Fill a folder with links to the entries of the checkout, and with programs as in `add_programs`."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("output", "data"):
            (folder / entry.name).symlink_to(entry)
    installed = folder / "lib" / "hegraph"  # the package under the name that pip gives it
    installed.mkdir(parents=True)
    for entry in [*(ROOT / "trainers" / "hegraph").iterdir(), ROOT / "configs"]:
        (installed / entry.name).symlink_to(entry)
    return add_programs(folder, python)


def copy_checkout(checkout: Path, folder: Path) -> Path:
    """Copy a checkout with its outputs to a new folder, so that no page changes the outputs of another."""
    return Path(shutil.copytree(checkout, folder.resolve(), symlinks=True))


@contextmanager
def interpreter(folder: Path) -> Iterator[Callable[[str, str], str]]:
    """Yield a function that runs the code of a block in `folder` and returns its output."""
    programs = folder / "bin"
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(programs / "python"),
        "PYTHONPATH": str(folder / "lib"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder, "env": environment}
    words = [programs / "python", "-c", DRIVER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, **pipes) as python:

        def run(language: str, code: str) -> str:
            if language == "bash":
                ran = subprocess.run(["bash", "-c", code], **pipes)
                text, failed = ran.stdout, ran.returncode > 1  # 1: an image or a data set has a problem
            else:
                python.stdin.write(json.dumps(code) + "\n")
                python.stdin.flush()
                text, line = "", python.stdout.readline()
                while line not in ("", "\0\n"):
                    text, line = text + line, python.stdout.readline()
                failed = not line
            if failed or "Traceback (most recent call last)" in text:
                raise RuntimeError(f"{code}\n{text}")
            return text.replace(f"{folder}/", "")

        try:
            yield run
        finally:
            python.stdin.close()


def excerpt(text: str, first: str | None, last: str | None) -> str:
    """First and last lines of an output, with "..." in between."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    if first and int(first) + int(last or 0) < len(lines):
        lines = [*lines[: int(first)], "...", *lines[len(lines) - int(last or 0) :]]
    return "".join(f"{line}\n" for line in lines)


def filled(page: str, folder: Path) -> str:
    """Run the blocks of a page in a checkout and return the page with their outputs."""
    with interpreter(folder) as run:

        def replace(block: re.Match[str]) -> str:
            if block["code"].startswith("# needs "):
                return block[0]
            text = run(block["language"], block["code"])
            head = block[0][: block.start("output") - block.start()] if block["marker"] else block[0]
            return f"{head}{excerpt(text, block['first'], block['last'])}{block['end']}" if block["marker"] else head

        return BLOCK.sub(replace, page)


def agree(stored: str, printed: str) -> bool:
    """Compare two pages by their words. Times may differ, and decimals a little."""
    texts = [" ".join(MEASURED.sub("N", text).split()) for text in (stored, printed)]
    if len({DECIMAL.sub("N", text) for text in texts}) > 1:
        return False
    for one, other in zip(*(DECIMAL.finditer(text) for text in texts)):
        tolerance = TOLERANCE if one[2] or one[1] != "0" else TOLERANCE_BELOW_ONE
        if abs(float(one[0].removesuffix(" %")) - float(other[0].removesuffix(" %"))) > tolerance:
            return False
    return True


def main() -> None:
    chosen = [Path(word).resolve() for word in sys.argv[1:]] or PAGES
    with tempfile.TemporaryDirectory() as temporary, warm_python() as python:
        checkout = Path(temporary).resolve() / "start"
        checkout.mkdir()
        make_checkout(checkout, python)
        for number, page in enumerate([START, *(page for page in chosen if page != START)]):
            old = page.read_text(encoding="utf-8")
            new = filled(old, copy_checkout(checkout, Path(temporary, str(number))) if number else checkout)
            if page in chosen and not agree(old, new):
                with atomic_path(page) as path:
                    path.write_text(new, encoding="utf-8")
                sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
