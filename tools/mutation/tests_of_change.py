"""Run the tests for a changed source file until the first failure.

Cosmic-ray runs this for each mutant. The tests of the package of the changed file run first, then all others. Slow
tests run only if HEGRAPH_MUTATION is "slow".
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "trainers/hegraph/"
# Tests of single files. The tests of a folder are in the folder of its name in tests/
OF_FILES = {
    "__init__.py": "tests/test_command_line.py",
    "__main__.py": "tests/test_command_line.py",
    "config.py": "tests/test_config.py",
    "config_files.py": "tests/test_config.py",
}


def belonging_tests(paths: Sequence[str]) -> list[str]:
    """Paths of the tests of changed packages and files."""
    inside = [path.removeprefix(PACKAGE) for path in paths if path.startswith(PACKAGE)]
    found = [OF_FILES[path] if path in OF_FILES else nearest_folder(path) for path in inside]
    return list(dict.fromkeys(test for test in found if Path(test).exists()))


def nearest_folder(path: str) -> str:
    """Folder of tests that belongs to a source file: the one of its folder, or else of the nearest folder above it."""
    folders = (f"tests/{parent.as_posix()}" for parent in Path(path).parents)
    return next(folder for folder in folders if Path(folder).exists())


def main() -> int:
    """Run the tests; returns the exit code of pytest, 0 if all pass."""
    diff = ["git", "diff", "--name-only", "--", "trainers"]
    near = belonging_tests(subprocess.run(diff, capture_output=True, text=True, check=True).stdout.split())
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--runslow"] if os.environ.get("HEGRAPH_MUTATION") == "slow" else []
    if near and (code := subprocess.run([*command, *near]).returncode):
        return code
    return subprocess.run([*command, "-n", "2", *(f"--ignore={test}" for test in near)]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
