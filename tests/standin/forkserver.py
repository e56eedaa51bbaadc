"""Function of a forked process that runs a Python program as `python -m NAME` and `python FILE` do.

`hosts.py` forks it from a process that has imported torch, which saves most of the time of a test.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
IMPORTED = (
    "torch", "torchvision", "open_clip", "safetensors.torch", "sklearn.datasets", "sklearn.metrics", "yacs.config",
    "scipy.io", "gdown", "tabulate", "torch.utils.tensorboard",
)  # fmt: skip


def run(words: Sequence[str], path: Sequence[str], log: str, environment: dict[str, str], die_after_epoch: int) -> None:
    """Run a program and exit with its code.

    Args:
        words: Name of the program, and its arguments.
        path: Working folder, and further entries of PYTHONPATH.
        log: Path of the output files, without their suffixes .out and .err.
        environment: Further environment variables.
        die_after_epoch: Number of training epochs after which the process is killed; 0 for no kill.
    """
    for number, name in enumerate((os.devnull, f"{log}.out", f"{log}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(path[0])
    os.environ.update(environment)
    ours = {"", str(TESTS), str(TESTS.parent), str(TESTS / "standin")}
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in ours)]
    sys.argv = list(words)
    warnings.simplefilter("ignore")
    code: object = 0
    try:
        if die_after_epoch:
            die_after(die_after_epoch)
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_after(epoch: int) -> None:
    """Kill this process after a number of training epochs."""
    training_class = importlib.import_module("trainers.hegraph.method.training.loop").AdapterTraining
    end_epoch = training_class.end_epoch

    def end_and_die(training, loss) -> None:
        end_epoch(training, loss)
        if training.epoch == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    training_class.end_epoch = end_and_die
