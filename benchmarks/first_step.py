"""A program to time: the command line, which ends with the first step of training and writes its peak memory in bytes.

It leaves without the clean-up of a process that ends by itself, and so does `LEAST`.
"""

import os
import sys

from .timing import peak_memory

# Arguments of the interpreter: imports that every training with torch needs. The optimizers import torch._dynamo, which
# takes as long as torch itself
LEAST = ("-c", "import os, torch; torch.optim.AdamW([torch.ones(1)], fused=True); os._exit(0)")


def main() -> None:
    """Runs the command line up to its first step."""
    from trainers.hegraph.__main__ import main as command_line
    from trainers.hegraph.training.loop import AdapterTraining

    real = AdapterTraining.step

    def only(self: AdapterTraining, *batch: object) -> None:
        real(self, *batch)
        sys.stdout.write(str(peak_memory()))
        sys.stdout.flush()
        os._exit(0)

    AdapterTraining.step = only
    sys.exit(command_line())


if __name__ == "__main__":
    main()
