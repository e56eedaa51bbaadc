"""Does single runs, each in a process of its own: `python alone.py` reads a JSON list of command lines from stdin.

The processes are forked from this one, which has imported what runs import and done nothing with it: that takes longer
than a run.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo  # an optimizer imports it

from trainers.hegraph.__main__ import main


def run(arguments: list[str]) -> None:
    """Becomes the process of a single run; does not return."""
    code = 1
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    codes = []
    for arguments in json.load(sys.stdin):
        child = os.fork()
        if not child:
            run(arguments)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit(max(codes))
