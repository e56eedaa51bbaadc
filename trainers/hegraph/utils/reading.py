"""Reading files that may hold anything: JSON, YAML, text, tensors. Nothing in a file is ever executed.

Every reader of the package goes through these. A file that cannot be used is the user's mistake, told in one line that
names the file: one that is missing, closed to the user, no regular file, cut off, nested too deeply, or that holds
numbers which no computation can use.
"""

from __future__ import annotations

import json
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open

from .errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INT = 2**63  # what a tensor, a database and most other languages hold
MAX_LENGTH, MAX_DEPTH, MAX_VALUES = 200_000, 50, 100_000  # of a configuration; PyYAML needs seconds for this length


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """The door for a file that a stranger may have made: whatever its block raises becomes one line for the user.

    The block holds what opens, parses and checks the file, and no more: a mistake of the program in it would be blamed
    on the file. What the block must not do is execute anything that the file says.

    Args:
        path: The file. It has to be a regular one, since opening a named pipe or a device may wait for ever.
        what: What it should be, with its article: "a feature bank".

    Raises:
        UserError: That the file cannot be read, or is damaged or no such thing, with what the library said. One that
            the block raises passes through.
    """
    check_regular(path, "cannot read")
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not {what}: {first_line(error)}") from error


def check_regular(path: Path, what: str) -> None:
    """Raises UserError if there is no regular file that can be opened; opening a pipe would wait for ever.

    Args:
        path: The file.
        what: How the message begins, such as "cannot read the model".
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"{what} {path}: {first_line(error)}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{what} {path}: Is a directory")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} {path}: it is no regular file")
    if not os.access(path, os.R_OK):  # the library of .safetensors files would say that it is not there
        raise UserError(f"{what} {path}: Permission denied")


def read_text(path: Path, what: str = "cannot read") -> str:
    """The text of a file in UTF-8, without the mark that Windows puts at its start.

    Raises:
        UserError: If the file cannot be read, or is not UTF-8; the message begins with `what`.
    """
    try:
        return _decoded(path, what, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: not text in UTF-8 ({first_line(error)})") from error


def read_json(path: Path, finite: bool = True) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        finite: As of `parse_json`.

    Raises:
        UserError: If the file is missing, unreadable, or holds what `parse_json` refuses.
    """
    try:
        return parse_json(_decoded(path, "cannot read", "utf-8"), finite)
    except ValueError as error:
        reason = str(error).removeprefix(f"cannot read {path}: ")
        raise UserError(f"cannot read {path} as JSON: {reason}") from error


def parse_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: The JSON.
        finite: Whether NaN and numbers out of range are refused here. False leaves that to a schema that names the
            field.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, names a key twice, or holds NaN, a number out of range, or
            half of a surrogate pair, which no file and no terminal can take.
    """
    numbers: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _float, "parse_int": _int}
    try:
        value = json.loads(text, object_pairs_hook=_unique, **(numbers if finite else {}))
        if "\\u" in text:  # only an escape can make a half of a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise ValueError(f"it holds half of a surrogate pair, {half!a:.20}") from None


def read_yaml(path: Path, what: str = "cannot read") -> Any:
    """Reads a YAML file. Tags that would make objects of Python are refused.

    Raises:
        UserError: If the file is missing, unreadable, not YAML, too long for a configuration, names a key twice, or is
            nested too deeply or without end.
    """
    text = read_text(path, what)
    if len(text) > MAX_LENGTH:
        raise UserError(f"{what} {path}: it has {len(text)} characters; a configuration has at most {MAX_LENGTH}")
    try:
        value = yaml.load(text, _Loader)
        _check_size(value)
        return value
    except RecursionError as error:
        raise UserError(f"{path} is not YAML: it is nested too deeply") from error
    except (AttributeError, LookupError) as error:  # PyYAML's own, of a value such as !!bool x
        raise UserError(f"{path} is not YAML: a value is not of the type that its tag says") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # ValueError: a date such as 2020-13-45
        raise UserError(f"{path} is not YAML: {first_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"it holds the key {twice!a:.60} twice")
        return super().construct_mapping(node, deep)


def _check_size(value: Any) -> None:
    """Raises ValueError for a value that contains itself, or that aliases make larger than any file would be."""
    waiting, count = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError("it is nested too deeply, or without end")
        if isinstance(value, dict):
            waiting += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(entry, depth + 1) for entry in value]


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a `.safetensors` file. No code in the file is executed.

    Args:
        path: The file.
        what: What the file should be, such as "the adapter"; the error message uses it.

    Raises:
        UserError: If the file is missing or damaged, or holds complex numbers.
    """
    check_regular(path, f"cannot read {what}")
    try:
        with safe_open(path, framework="pt") as file:
            # The copies have the memory alignment that torch gives its own tensors. The last bit of a matrix product
            # can depend on the alignment, and tensors that were read must give the results of those that were written.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (`file` is no dict)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {what} {path}: {first_line(error)}") from error
    except (RuntimeError, MemoryError, AttributeError, KeyError) as error:  # too large, or a type that torch lacks
        raise UserError(f"cannot read {what} {path}: torch cannot hold its tensors ({error!r:.80})") from error
    for name, tensor in tensors.items():
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} must hold real numbers, got {kind}")
    return tensors, metadata


def read_torch(path: Path, what: str) -> Any:
    """Reads a file that `torch.save` wrote: tensors and plain values. No code in the file is executed.

    Args:
        path: The file.
        what: What the file should be, such as "the checkpoint"; the error message uses it.

    Raises:
        UserError: If the file cannot be read.
        DamagedFile: If it can, and holds something else.
    """
    import torch  # which the files of data sets do not need

    check_regular(path, f"cannot read {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of types of tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file torch.load raises whatever its bytes lead to
        raise DamagedFile(f"{what} {path} is damaged ({type(error).__name__})") from error
    try:
        odd = next(((place, problem) for place, t in _tensors_in(content) if (problem := why_unusable(t))), None)
    except RecursionError as error:
        raise DamagedFile(f"{what} {path} is damaged (it is nested too deeply)") from error
    if odd is not None:
        raise DamagedFile(f"{what} {path} is damaged ({odd[0] or 'its tensor'} {odd[1]})")
    return content


class DamagedFile(UserError):
    """A file that can be read, but not understood."""


def why_unusable(tensor: Tensor) -> str:
    """What keeps a tensor from being computed with as a matrix of real numbers; "" if nothing does."""
    import torch

    if tensor.is_quantized:
        return "is quantized; dequantize it"
    if tensor.is_meta:
        return "has no values: it is a tensor of the device meta"
    if tensor.layout != torch.strided:
        return f"is of the layout {str(tensor.layout).removeprefix('torch.')}; make it dense"
    if tensor.is_nested:
        return "is a nested tensor; make it one matrix"
    return "holds complex numbers, not real ones" if tensor.is_complex() else ""


def _decoded(path: Path, what: str, encoding: str) -> str:
    check_regular(path, what)
    try:
        return path.read_text(encoding=encoding)
    except OSError as error:
        raise UserError(f"{what} {path}: {first_line(error)}") from error


def _tensors_in(content: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts, lists and tuples, each with the last key that leads to it."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors_in(value, str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors_in(value, place)
    elif hasattr(content, "layout"):
        yield place, content


def _refuse_constant(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds {digits:.20}, which is out of range")
    return number


def _int(digits: str) -> int:
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
