"""Text for one line of a terminal: shortened, without control characters, and as short as a message may be.

Names of classes are compared in one form.
"""

import unicodedata

MAX_MESSAGE = 280  # characters of a message, without the word "error" before it


def shortened(text: str, most: int) -> str:
    """Shorten a text to its start and its end, of at most `most` characters together."""
    end = (most - 5) // 3
    return text if len(text) <= most else f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"


def one_line(message: str) -> str:
    """Format a message as one line of at most `MAX_MESSAGE` printable characters."""
    return shortened(printable(" ".join(message.split())), MAX_MESSAGE)


def printable(text: str) -> str:
    r"""Escape control characters and lone surrogates of a text, as `\n`, `\x1b`, `\udcff` and so on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def normalized_name(text: str) -> str:
    """Class name in the form in which names are compared: Unicode's form NFC without outer white space."""
    return unicodedata.normalize("NFC", text.strip())


def shown(value: object) -> str:
    """Format a value as one line of about 80 characters, also an integer too long for Python to format."""
    try:
        return printable(f"{value!r:.80}")
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is too long to show"
