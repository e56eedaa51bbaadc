"""Reading files that may hold anything: JSON, YAML, text, tensors. Nothing in a file is ever executed.

Every reader of the package goes through `reading`, the door for files of strangers. A file that cannot be used is told
in one line, which names the file and says what the library said that reads such files. What a file must hold is
declared with pydantic beside the code that reads it, as a `Part`; `check` compares a value with it.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import safe_open

from .errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INT = 2**63  # what a tensor, a database and most other languages hold
MAX_LENGTH, MAX_DEPTH, MAX_VALUES = 200_000, 50, 100_000  # of a configuration; PyYAML needs seconds for this length
MAX_JSON = 2**28  # bytes, a hundred times what the split file of a large data set has

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]

Shape = TypeVar("Shape")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """The door for a file that a stranger may have made: whatever its block raises becomes one line for the user.

    The block opens, parses and checks the file, and no more: a mistake of the program would be blamed on the file.

    Args:
        path: The file. It has to be a regular one, since opening a named pipe or a device may wait for ever.
        what: What it should be, with its article: "a feature bank".

    Raises:
        UserError: That the file cannot be read, or is damaged or no such thing, with what the library said. One of the
            block's own passes through.
    """
    check_regular(path)
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not {what}: {first_line(error)}") from error


def check_regular(path: Path) -> None:
    """Raises UserError if there is no regular file that can be opened."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {path}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is no regular file'}")
    if not os.access(path, os.R_OK):  # the library of .safetensors files would say that it is not there
        raise UserError(f"cannot read {path}: Permission denied")


def read_text(path: Path, what: str = "text in UTF-8") -> str:
    """The text of a file in UTF-8, without the mark that Windows puts at its start; errors as of `reading`."""
    with reading(path, what):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """The value of a JSON file, which may not be too long for memory; errors are those of `reading`."""
    with reading(path, "JSON"):
        if (size := path.stat().st_size) > MAX_JSON:
            raise ValueError(f"it has {size:,} bytes, and at most {MAX_JSON:,} are read")
        return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError if it is none, is nested too deeply, names a key twice, or holds NaN, a
    number out of range, or half of a surrogate pair, which no file and no terminal can take.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_number, parse_float=_number, parse_int=_integer
        )
        if "\\u" in text:  # only an escape can make a half of a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (RecursionError, UnicodeEncodeError) as error:
        raise ValueError(first_line(error)) from None


def read_yaml(path: Path, what: str) -> Any:
    """The value of a YAML file. Tags that would make objects of Python are refused; errors are those of `reading`.

    It may neither name a key twice nor be too long for a configuration, nested too deeply or without end.
    """
    with reading(path, what):
        text = path.read_text(encoding="utf-8-sig")
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it has {len(text)} characters, and at most {MAX_LENGTH} are allowed")
        value = yaml.load(text, _Loader)
        _check_size(value)
        return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        _unique([(key.value, key) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"])
        return super().construct_mapping(node, deep)


def _check_size(value: Any) -> None:
    """Raises ValueError for a value that contains itself, or that aliases make larger than any file would be."""
    waiting, count = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError("it is nested too deeply, or without end")
        if isinstance(value, (dict, list, tuple)):
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)]


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, of real numbers, and the metadata of a `.safetensors` file; errors are those of `reading`."""
    with reading(path, what):
        with safe_open(path, framework="pt") as file:
            # The copies have the memory alignment that torch gives its own tensors. The last bit of a matrix product
            # can depend on the alignment, and tensors that were read must give the results of those that were written.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (`file` is no dict)
            metadata = file.metadata() or {}
        _check_tensors(tensors)
    return tensors, metadata


def read_torch(path: Path, what: str) -> Any:
    """What `torch.save` wrote: tensors and plain values. Code in the file is refused; errors are those of `reading`."""
    import torch  # which the files of data sets do not need

    with reading(path, what), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of types of tensors that are refused below
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # whose text tells how to have the code executed
            raise ValueError("it does not hold tensors and plain values") from error
        _check_tensors(content)
    return content


def _check_tensors(content: Any, place: str = "its tensor") -> None:
    """Raises ValueError for a tensor in nested dicts, lists and tuples that is no matrix of real numbers."""
    import torch

    if isinstance(content, dict):
        for key, value in content.items():
            _check_tensors(value, str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            _check_tensors(value, place)
    elif isinstance(content, torch.Tensor):
        odd = content.is_quantized or content.is_meta or content.is_nested or content.is_complex()
        odd |= content.is_floating_point() and content.dtype.itemsize == 1  # with which torch does not compute
        if odd or content.layout != torch.strided:
            came = f"{content.dtype}, {content.layout}, {content.device}"
            raise ValueError(f"{place} must be dense and hold real numbers, got {came}")


class StrictModel(BaseModel):
    """A part of a file: no key may be missing, none may be unknown, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LenientModel(BaseModel):
    """A part of a file that may hold further keys, which are not read."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def validate(shape: type[Shape], value: Any, where: str, convert: bool = False) -> Shape:
    """A value that was read, in its declared form. Nothing is converted, unless the form says so. UserError, with
    `where`, for a value of another form. `convert` is for arguments in Python: NumPy's numbers are numbers as well.
    """
    try:
        says_itself = isinstance(shape, type(BaseModel))  # on Python 3.10 isinstance(list[int], type) is true
        return TypeAdapter(shape).validate_python(value, strict=None if says_itself or convert else True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_line(error)}") from error


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds {digits:.20}, which is out of range")
    return number


def _integer(digits: str) -> int:
    number = int(digits)  # of thousands of digits, ValueError
    if not -LARGEST_INT <= number < 2 * LARGEST_INT:
        raise ValueError(f"it holds {digits:.20}{'...' if len(digits) > 20 else ''}, which is out of range")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds the key {twice!a:.60} twice")
    return found
