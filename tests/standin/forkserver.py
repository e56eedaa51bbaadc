"""What a process of its own does that runs a Python program as `python -m NAME` and `python FILE` do.

`hosts.py` forks it from one that has imported torch: that takes longer than most of what the tests run.
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
    """Becomes a program; does not return.

    Args:
        words: The program, and its arguments.
        path: The folder it is started in, and what is on PYTHONPATH.
        log: Where its output goes, to files that end in .out and .err.
        die_after_epoch: After how many epochs of training it is killed; 0 for never.
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
    """As if somebody killed the process after so many epochs of training, whatever drives it."""
    training_class = importlib.import_module("trainers.hegraph.training.loop").AdapterTraining
    end_epoch = training_class.end_epoch

    def end_and_die(training, loss) -> None:
        end_epoch(training, loss)
        if training.epoch == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    training_class.end_epoch = end_and_die
