"""Runs the tests that belong to the one source file that differs from the last commit, until the first that fails.

Cosmic-ray calls this for every mutant. Without a change, it runs the tests of all files that are mutated.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# Start of a source's path -> pytest's arguments; the tests that are worked out by hand are quick and stand first
BASELINES = [
    "tests/baselines/test_closed_form.py",
    "tests/baselines/test_options.py",
    "tests/baselines/test_steps_by_hand.py",
    "tests/baselines/test_cached_by_hand.py",
    "tests/baselines/test_trained_by_hand.py",
    "tests/baselines/test_proto_clip_by_hand.py",
    "tests/baselines/test_coop.py",
    "tests/baselines/test_contract.py",
    "tests/baselines/test_saving.py",
]
TESTS = {
    "trainers/hegraph/baselines/": BASELINES,
    "trainers/hegraph/training/choice.py": ["tests/training/test_choice.py", "tests/experiments/test_fitting.py"],
    "trainers/hegraph/training/loop.py": ["tests/training/test_step_by_hand.py", "tests/training/test_loop.py"],
    "trainers/hegraph/experiments/fitting.py": ["tests/experiments/test_fitting.py"],
    "trainers/hegraph/experiments/run.py": [
        "tests/experiments/test_fitting.py",
        "tests/experiments/test_run_in_order.py",
    ],
    "trainers/hegraph/experiments/evaluation.py": ["tests/experiments/test_evaluation.py"],
}


def belonging_tests(paths: Sequence[str]) -> list[str]:
    """The tests that belong to the changed sources; those of all sources if none has changed."""
    starts = [start for start in TESTS if not paths or any(path.startswith(start) for path in paths)]
    return list(dict.fromkeys(test for start in starts for test in TESTS[start]))


def main() -> int:
    """Returns pytest's exit code."""
    changed = subprocess.run(
        ["git", "diff", "--name-only", "--", "trainers"], capture_output=True, text=True, check=True
    ).stdout.split()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *belonging_tests(changed)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
