"""python -m trainers.hegraph.results NAME SOURCE ...: see `commands.py`."""

from __future__ import annotations

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
