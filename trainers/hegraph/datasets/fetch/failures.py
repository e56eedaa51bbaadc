"""Why a file could not be fetched from one mirror, or from any."""

from __future__ import annotations

from ...utils.errors import UserError


class Broken(Exception):
    """A mirror, or what came from it, is of no use. The message is a reason in one line."""


class Damaged(Broken):
    """An archive cannot be read, so it is removed. One that only lacks an expected member is kept for the user."""


class Interrupted(Exception):
    """One try failed, but another may not."""


class Unreachable(UserError):
    """No mirror gives a file."""
