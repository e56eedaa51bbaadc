"""Runs Python programs as `python -m NAME` and `python FILE` do, each in a process of its own.

They are forked from one that has imported torch: that takes longer than most of what the tests run. A line on stdin is
a job, in JSON; a line on stdout is the exit codes of its processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import traceback

IMPORTED = (
    "torch", "torchvision", "open_clip", "safetensors.torch", "sklearn.datasets", "sklearn.metrics", "yacs.config",
    "scipy.io", "gdown", "tabulate", "torch.utils.tensorboard",
)  # fmt: skip


def serve() -> None:
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # the last two are the real Dassl's
            importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        children = []
        for rank in range(job["processes"]):
            child = os.fork()
            if not child:
                run(job, rank)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def run(job: dict, rank: int) -> None:
    """Becomes the program; does not return."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        file = job[name] + (f".{rank}" if rank else "")
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(job["cwd"])
    os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
    sys.path[:1] = [job["cwd"], *job["path"]]  # instead of this file's folder
    sys.argv = [job["program"], *job["arguments"]]
    if job["die_after_epoch"]:
        die_after(job["die_after_epoch"])
    code = 0
    try:
        if job["program"].endswith(".py"):
            runpy.run_path(job["program"], run_name="__main__")
        else:
            runpy.run_module(job["program"], run_name="__main__", alter_sys=True)
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


if __name__ == "__main__":
    serve()
