"""Read untrusted files: JSON, YAML, text and tensors. No code in a file is executed.

All readers use `reading`, which converts the errors of libraries to one line with the name of the file. The schema of a
file is a `StrictModel` of pydantic, which `validate` applies.
"""

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
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError
from safetensors import safe_open

from .errors import UserError, first_line
from .files import METADATA

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INT = 2**63  # of tensors, databases and most other languages
MAX_LENGTH, MAX_DEPTH, MAX_VALUES = 200_000, 50, 100_000  # of a YAML file; PyYAML needs seconds for this length
MAX_JSON = 2**28  # bytes, a hundred times the split file of a large data set

# Types of numbers and names in schemas
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]

Schema = TypeVar("Schema")


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Context that converts all exceptions to a `UserError` about a file.

    The block should only open, parse and check the file, so that no error of the program is attributed to the file.

    Args:
        path: Regular file; a named pipe or a device could block forever.
        kind: Expected kind of file, with its article: "a feature bank".

    Raises:
        UserError: If the file cannot be read, is damaged or of another kind. A `UserError` of the block is not changed.
    """
    check_regular(path)
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}", "file.read") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not {kind}: {first_line(error)}", "file.damaged") from error


def check_regular(path: Path) -> None:
    """Raise UserError unless a path is a regular file that can be opened."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"cannot read {path}: {first_line(error)}", "file.read") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {path}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is no regular file'}")
    if not os.access(path, os.R_OK):  # safetensors would report a missing file
        raise UserError(f"cannot read {path}: Permission denied")


def read_text(path: Path, kind: str = "text in UTF-8") -> str:
    """Read a text file in UTF-8, without a byte order mark; UserError if it cannot be read."""
    with reading(path, kind):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Read a JSON file of limited size; UserError if it cannot be read, is too large or no valid JSON."""
    with reading(path, "JSON"):
        if (size := path.stat().st_size) > MAX_JSON:
            raise ValueError(f"expected at most {MAX_JSON:,} bytes, got {size:,}")
        return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If the text is not JSON, is nested too deeply, or has a duplicate key, NaN, a number out of range or
            a lone surrogate, which files and terminals cannot encode.
    """
    try:
        numbers: Any = {"parse_constant": _number, "parse_float": _number, "parse_int": _integer}
        value = json.loads(text, object_pairs_hook=_unique, **numbers)
        if "\\u" in text:  # only an escape can be a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (RecursionError, UnicodeEncodeError) as error:
        raise ValueError(first_line(error)) from None


def read_yaml(path: Path, kind: str) -> Any:
    """Read a YAML file of limited size and depth, without duplicate keys and without tags of Python objects.

    Raises:
        UserError: If the file cannot be read, is too large or nested too deeply, or is no such YAML.
    """
    with reading(path, kind):
        text = path.read_text(encoding="utf-8-sig")
        if len(text) > MAX_LENGTH:
            raise ValueError(f"expected at most {MAX_LENGTH} characters, got {len(text)}")
        value = yaml.load(text, _Loader)
        _check_size(value)
        return value


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys; PyYAML would use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        _unique([(key.value, key) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"])
        return super().construct_mapping(node, deep)


def _check_size(value: Any) -> None:
    """Raise ValueError for a value that contains itself, or that aliases make too large."""
    waiting = [(value, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError("it is nested too deeply, or recursive")
        if isinstance(value, (dict, list, tuple)):
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)]


def read_tensors(path: Path, kind: str) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Read the tensors of real numbers and the metadata of a `.safetensors` file.

    Raises:
        UserError: If the file cannot be read, or is damaged.
    """
    with reading(path, kind):
        with safe_open(path, framework="pt") as file:
            # Copies have the memory alignment of torch, on which the last bit of a matrix product can depend. Results
            # must not depend on whether a tensor was computed or read.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (`file` is no dict)
            metadata = read_metadata(file)
        _check_tensors(tensors)
    return tensors, metadata


def read_metadata(file: Any) -> dict[str, str]:
    """Read the metadata of an open `.safetensors` file, from `write_tensors` or another program."""
    metadata = file.metadata() or {}
    return dict(parse_json(metadata[METADATA])) if METADATA in metadata else metadata


def read_torch(path: Path, kind: str) -> Any:
    """Read tensors and plain values that `torch.save` wrote.

    Raises:
        UserError: If the file cannot be read, is damaged, or has anything else, such as code.
    """
    import torch  # slow import

    with reading(path, kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensor types that are rejected below
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its text explains how to execute the code
            raise ValueError("it does not hold tensors and plain values") from error
        _check_tensors(content)
    return content


def _check_tensors(content: Any, place: str = "its tensor") -> None:
    """Raise ValueError for a tensor in nested dicts, lists and tuples that is not dense or not of real numbers."""
    import torch

    if isinstance(content, dict):
        for key, value in content.items():
            _check_tensors(value, str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            _check_tensors(value, place)
    elif isinstance(content, torch.Tensor):
        unusable = content.is_quantized or content.is_meta or content.is_nested or content.is_complex()
        unusable |= content.is_floating_point() and content.dtype.itemsize == 1  # torch does not compute with float8
        if unusable or content.layout != torch.strided:
            kind = f"{content.dtype}, {content.layout}, {content.device}"
            raise ValueError(f"{place} must be dense and hold real numbers, got {kind}")


class StrictModel(BaseModel):
    """Schema without missing keys, unknown keys or conversion of values."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LenientModel(BaseModel):
    """Schema that ignores unknown keys."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def validate(schema: type[Schema], value: Any, where: str, convert: bool = False) -> Schema:
    """Validate a value by a type or schema.

    Args:
        schema: Type, or model of pydantic, which decides about conversion itself.
        value: Value to validate.
        where: Start of the error message.
        convert: Whether to convert values, such as NumPy's numbers in arguments.

    Raises:
        UserError: If the value does not match.
    """
    try:
        is_model = isinstance(schema, type(BaseModel))  # on Python 3.10 isinstance(list[int], type) is true
        return TypeAdapter(schema).validate_python(value, strict=None if is_model or convert else True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_line(error)}", "schema") from error


def is_plain_url(text: str) -> bool:
    """Whether a text is an address of HTTP or HTTPS without a user, a password, a query and a fragment."""
    try:
        url = TypeAdapter(HttpUrl).validate_python(text)
        (url.host or "").encode("idna")  # as in a DNS query
    except ValueError:
        return False
    return text.isprintable() and not (url.username or url.password or url.query or url.fragment)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it has {digits:.20}, which is out of range")
    return number


def _integer(digits: str) -> int:
    number = int(digits)  # ValueError for thousands of digits
    if not -LARGEST_INT <= number < 2 * LARGEST_INT:
        raise ValueError(f"it has {digits:.20}{'...' if len(digits) > 20 else ''}, which is out of range")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {duplicate!a:.60} twice")
    return unique
