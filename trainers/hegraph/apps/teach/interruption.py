"""Interruption of a long computation with torch by another thread."""

import threading
from typing import Any

from torch.overrides import TorchFunctionMode


class Interrupted(Exception):
    """The event of `Interruptible` was set."""


class Interruptible(TorchFunctionMode):
    """Context in which every operation of torch in this thread raises `Interrupted` once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.event.is_set():
            raise Interrupted
        return func(*args, **(kwargs or {}))
