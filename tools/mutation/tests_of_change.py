"""Runs the tests that could notice the one source file that differs from the last commit, until the first that fails.

Cosmic-ray calls this for every mutant: first the tests of the package, which notice most, then all others. Without a
change all tests run. They are those of bare `pytest`; with HEGRAPH_MUTATION=slow also those that take long.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "trainers/hegraph/"
# A single file -> its tests; the tests of a package are the folder of its name below tests/
OF_FILES = {
    "__init__.py": "tests/test_command_line.py",
    "__main__.py": "tests/test_command_line.py",
    "config.py": "tests/test_config.py",
    "config_files.py": "tests/test_config.py",
    "trainer.py": "tests/test_trainer.py",
}


def belonging_tests(paths: Sequence[str]) -> list[str]:
    """Tests of the changed packages and files, each once."""
    inside = [path.removeprefix(PACKAGE) for path in paths if path.startswith(PACKAGE)]
    found = [OF_FILES[path] if path in OF_FILES else f"tests/{path.split('/')[0]}" for path in inside]
    return list(dict.fromkeys(test for test in found if Path(test).exists()))


def main() -> int:
    """Returns pytest's exit code: 0 if no test has noticed the change."""
    diff = ["git", "diff", "--name-only", "--", "trainers"]
    near = belonging_tests(subprocess.run(diff, capture_output=True, text=True, check=True).stdout.split())
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--runslow"] if os.environ.get("HEGRAPH_MUTATION") == "slow" else []
    if near and (code := subprocess.run([*command, *near]).returncode):
        return code
    return subprocess.run([*command, "-n", "2", *(f"--ignore={test}" for test in near)]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
