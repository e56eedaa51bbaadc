"""Ctrl-C while a command still imports what it needs is no traceback. The import of this module sees to that.

`report` sees to it afterwards. Only the commands import this module, as the first of the package's.
"""

from __future__ import annotations

import sys
from types import TracebackType

_others = sys.excepthook


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    while error is not None and not isinstance(error, KeyboardInterrupt):  # an import may turn it into an ImportError
        cause = error.__cause__ or error.__context__
        if cause is None:
            _others(kind, error, trace)
            return
        error = cause
    sys.stderr.write("\ninterrupted\n")


sys.excepthook = _say_interrupted
