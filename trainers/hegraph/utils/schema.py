"""What a file must hold, declared with pydantic and checked before any of it is used.

Each format is declared beside the code that reads it, as a `Part`; `check` compares a value with it.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .errors import UserError, first_line

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]

Shape = TypeVar("Shape")


class Part(BaseModel):
    """A part of a file: no key may be missing, none may be unknown, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpenPart(BaseModel):
    """A part of a file that may hold further keys, which are not read."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def check(shape: type[Shape], value: Any, where: str, convert: bool = False) -> Shape:
    """A value that was read, in its declared form. Nothing is converted, unless the form says so. UserError, with
    `where`, for a value of another form. `convert` is for arguments in Python: NumPy's numbers are numbers as well.
    """
    try:
        says_itself = isinstance(shape, type(BaseModel))  # on Python 3.10 isinstance(list[int], type) is true
        return TypeAdapter(shape).validate_python(value, strict=None if says_itself or convert else True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_line(error)}") from error
