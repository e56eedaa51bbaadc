"""Program that runs the command line until the first training step, and prints its peak memory in bytes.

It exits without clean-up, and so does `LEAST`, with which it is compared.
"""

import os
import sys

from .timing import peak_memory

# Arguments of the interpreter for a program with the imports of every training with torch. Optimizers import
# torch._dynamo, which takes as long as torch itself
LEAST = ("-c", "import os, torch; torch.optim.AdamW([torch.ones(1)], fused=True); os._exit(0)")


def main() -> None:
    """Run the command line until its first step."""
    from trainers.hegraph.__main__ import main as command_line
    from trainers.hegraph.method.training.loop import AdapterTraining

    real = AdapterTraining.step

    def step_and_exit(self: AdapterTraining, *batch: object) -> None:
        real(self, *batch)
        sys.stdout.write(str(peak_memory()))
        sys.stdout.flush()
        os._exit(0)

    AdapterTraining.step = step_and_exit
    sys.exit(command_line())


if __name__ == "__main__":
    main()
