"""The pages of docs/reference that come from the code are current, and have every public name, command and key."""

import re
import sys

import pytest

import trainers.hegraph
from tools.reference_pages import FOLDER, MAKERS, attributes, filled, openapi, table
from trainers.hegraph.__main__ import SUBCOMMANDS
from trainers.hegraph.results.records import RunRecord

NEEDED = {"api.md": "griffe", "http.md": "fastapi"}  # page -> package that makes it


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def headings(name: str) -> set[str]:
    return set(re.findall(r"^#{2,4} (.+)$", text_of(name), re.MULTILINE))


@pytest.mark.parametrize("name", MAKERS)
def test_page_is_current(name):
    pytest.importorskip(NEEDED.get(name, "sys"))
    if name == "command-line.md" and sys.version_info >= (3, 13):
        pytest.skip("argparse of Python 3.13 writes short and long flags in another form")
    words = filled(name).split()
    assert text_of(name).split() == words, f"run python -m tools.reference_pages {name}"


def test_api_page_has_every_public_name():
    assert set(trainers.hegraph.__all__) - {"__version__"} <= headings("api.md")


def test_command_line_page_has_every_command():
    inner = "hegraph results compare", "hegraph datasets check", "hegraph features extract", "hegraph label check"
    assert {"hegraph", *(f"hegraph {name}" for name in SUBCOMMANDS), *inner} <= headings("command-line.md")
    assert text_of("command-line.md").count("usage: hegraph") == len(headings("command-line.md"))


def test_http_page_has_every_request():
    pytest.importorskip("fastapi", reason="fastapi is not installed, which serves a model")
    requests = {f"{verb.upper()} {path}" for path, verbs in openapi()["paths"].items() for verb in verbs}
    assert requests and requests <= headings("http.md")


def test_record_page_explains_every_key():
    meanings = attributes(RunRecord.__doc__ or "")
    assert set(RunRecord.model_fields) <= set(meanings)
    assert [name for name in ("http.md", "record.md") if "|  |" in text_of(name)] == []


@pytest.mark.parametrize("name", ["http.md", "record.md"])
def test_keys_of_a_table_have_meanings_of_their_own(name):
    row = re.compile(r"^\| `\w+` \| [^|]+ \| (.+) \|$", re.MULTILINE)
    for section in re.split(r"^##", text_of(name), flags=re.MULTILINE):
        meanings = row.findall(section)
        assert len({*meanings}) == len(meanings), section.partition("\n")[0]


def test_examples_of_the_api_page_are_blocks_of_code():
    outside = re.sub(r"^```\w+\n.*?^```$", "", text_of("api.md"), flags=re.DOTALL | re.MULTILINE)
    assert ">>> " not in outside


def test_attributes_are_read_from_a_docstring():
    text = """Title.

    Attributes:
        a, b: First line
            and second.
        c: Other.

    Raises:
        UserError: Never.
    """
    assert attributes(text) == {"a": "First line and second.", "b": "First line and second.", "c": "Other."}


def test_bars_in_cells_are_escaped():
    assert table(("key",), [("a|b",)]) == "| key |\n| --- |\n| a\\|b |\n"
