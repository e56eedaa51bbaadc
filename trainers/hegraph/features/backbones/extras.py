"""Extras of this package that a model needs. This module imports no library of models."""

from importlib.util import find_spec

from ...utils.errors import UserError


def require_extra(extra: str, name: str) -> None:
    """Check that the package of an extra of the same name is installed; UserError if not."""
    if find_spec(extra) is None:
        raise UserError(f"{name} needs the extra {extra}: pip install '.[{extra}]'")
