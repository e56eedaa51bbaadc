"""File names as text. A name may hold any byte but NUL and "/": line breaks, and bytes that are no characters."""

from __future__ import annotations

from ..utils.errors import printable


def utf8(text: str) -> str:
    r"""Text that every file and program takes: a byte that is no character becomes `\xff`, with its value."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    r"""Text for people, in one line: control characters, too, become `\n`, `\x1b` and so on."""
    return printable(utf8(text))
