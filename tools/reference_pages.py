"""Write the pages of docs/reference that come from the code: `python -m tools.reference_pages`.

`api.md` has the docstrings of the public names, `command-line.md` the help of every command, `http.md` the requests and
answers of the server, and `record.md` the keys of `result.json`. Each page has a head written by hand, and below the
line `MARK` the text that this tool writes. `tests/test_reference_pages.py` checks that the pages are current.
"""

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.hegraph.utils.files import atomic_path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
MARK = "<!-- made by python -m tools.reference_pages -->\n"

Schema = Mapping[str, Any]  # JSON schema of a value

# Sections of the page of the Python API -> names in the package
API = {
    "Classifier": ("HeGraphClassifier", "LabelIssue", "compare_backbones"),
    "Experiments": ("load_cfg", "run"),
    "Data sets": ("load_dataset", "load_few_shot"),
    "Features": ("load_backbone", "Backbone", "load_bank", "FeatureBank"),
    "Method": ("build_graph", "HeteroGraph", "HeGraphModel", "ModelOptions"),
    "HTTP server": ("apps.serve.app.create_app", "apps.serve.settings.Settings"),
    "Errors": ("UserError",),
}
# Sections of a docstring that list names, as griffe calls them -> title
LISTS = {"parameters": "Parameters", "attributes": "Attributes", "raises": "Raises", "returns": "Returns"}


PAGE = re.compile(r"docs/([\w/-]+\.md)")  # mentioned in a docstring


def made(name: str) -> str:
    """Text that the tool writes to the page of a name."""
    return PAGE.sub(lambda found: f"[{found[1]}](../{found[1]})", MAKERS[name]())


def filled(name: str) -> str:
    """Return the page of a name with the text of today."""
    head = (FOLDER / name).read_text(encoding="utf-8").partition(MARK)[0]
    return f"{head}{MARK}\n{made(name).rstrip()}\n"


# Python API


def api() -> str:
    """Return the documentation of every public name, from its docstring."""
    import griffe

    options = {"returns_named_value": False, "returns_multiple_items": False, "warnings": False}
    package = griffe.load(
        "hegraph", search_paths=[ROOT / "trainers"], docstring_parser="google", docstring_options=options
    )
    parts = []
    for title, names in API.items():
        parts.append(f"## {title}\n")
        parts += [documented(package[name], name.rpartition(".")[2], 3) for name in names]
    return "\n".join(parts)


def documented(member: Any, name: str, level: int) -> str:
    """Section of a class or function, with sections of the public methods of a class."""
    member = member.final_target if member.is_alias else member
    lines = [f"{'#' * level} {name}\n"]
    if member.is_function or (member.is_class and "__init__" in member.members):
        shown = member if member.is_function else member.members["__init__"]
        lines.append(f"```python\n{signature(shown, name)}\n```\n")
    if member.docstring:
        lines += [section_text(section) for section in member.docstring.parsed]
    if member.is_class:
        lines += [documented(method, method.name, level + 1) for method in public_methods(member)]
    return "\n".join(lines)


def public_methods(member: Any) -> list[Any]:
    """Public methods of a class with a docstring, own and inherited ones."""
    own = list(member.all_members.values())
    return [each for each in own if each.is_function and not each.name.startswith("_") and each.docstring]


def signature(function: Any, name: str) -> str:
    """Call of a function with its parameters, one per line if they are many."""
    parameters = [each for each in function.parameters if each.name not in ("self", "cls")]
    words = []
    is_starred = False
    for each in parameters:
        if each.kind.value == "keyword-only" and not is_starred:
            words.append("*")
            is_starred = True
        words.append(f"{each.name}={each.default}" if each.default is not None else each.name)
    line = f"{name}({', '.join(words)})"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), ")"])


def section_text(section: Any) -> str:
    """Markdown of a section of a docstring."""
    kind = section.kind.value
    if kind == "text":
        if ">>> " in section.value:
            raise ValueError(f"an example without the heading Examples: {section.value}")
        return f"{section.value}\n"
    if kind == "examples":
        code = "\n".join(value for _, value in section.value)
        return f"```pycon\n{code}\n```\n"
    if kind not in LISTS:
        raise ValueError(f"no Markdown for the section {kind} of a docstring")
    items = section.value if isinstance(section.value, list) else [section.value]
    lines = [item_line(item, kind) for item in items]
    return f"**{LISTS[kind]}**\n\n" + "".join(lines)


def item_line(item: Any, kind: str) -> str:
    """Line of a list for a parameter, attribute, error or result."""
    meaning = " ".join(item.description.split())
    types = str(item.annotation or "")
    names = "" if kind in ("raises", "returns") else item.name
    if names.endswith(","):  # griffe reads the second name of "a, b: ..." as the type of the first
        names = f"{names} {types.strip('()')}"
        types = ""
    words = [", ".join(f"`{name.strip()}`" for name in names.split(","))] if names else []
    if types:
        words.append(f"(`{types}`)" if names else f"`{types}`")
    return f"- {' '.join(words)}: {meaning}\n"


# Command line


def command_line() -> str:
    """Return the help of the program, of its commands and of their commands."""
    return "\n".join(help_sections())


def help_sections(words: tuple[str, ...] = ()) -> Iterator[str]:
    """Sections with the help of a command and of the commands below it."""
    if str(ROOT / "trainers") not in sys.path:
        sys.path.insert(0, str(ROOT / "trainers"))  # the package under the name that pip gives it
    os.environ["COLUMNS"] = "100"
    from hegraph.__main__ import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    text = printed.getvalue()
    name = " ".join(("hegraph", *words))
    yield f"{'#' * (2 if len(words) < 2 else 3)} {name}\n\n```text\n{text.rstrip()}\n```\n"
    commands = text.partition("\ncommands")[2].partition("\n\npositional arguments:")[0]
    for command in re.findall(r"^ {2,4}([a-z][\w-]*)(?=  |$)", commands, re.MULTILINE):
        yield from help_sections((*words, command))


# HTTP


def http() -> str:
    """Return the requests of the server and the schemas of their answers."""
    document = openapi()
    lines = ["## Requests\n"]
    codes: dict[str, str] = {}
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            lines.append(request_text(f"{verb.upper()} {path}", operation))
            failed = {code: answer for code, answer in operation["responses"].items() if code != "200"}
            codes |= {code: answer["description"] for code, answer in failed.items()}
    lines.append("## Errors\n\nThe body of every error is an `ErrorAnswer`.\n")
    lines.append(table(("status", "meaning"), [(code, codes[code]) for code in sorted(codes)]))
    lines.append("## Schemas\n")
    hidden = ("HTTPValidationError", "ValidationError")  # of FastAPI; the server sends `ErrorAnswer`
    schemas = document["components"]["schemas"].items()
    lines += [schema_text(name, schema) for name, schema in schemas if name not in hidden]
    return "\n".join(lines)


def openapi() -> dict[str, Any]:
    """OpenAPI document of the server with `--learn`. No request is sent, so no model is needed."""
    from fastapi import APIRouter, FastAPI

    from trainers.hegraph.apps.serve import app as server

    application, router, model = FastAPI(), APIRouter(), Any
    server.add_health(application)
    server.add_predictions(router, model)
    server.add_learning(router, model)
    application.include_router(router)
    return application.openapi()


def request_text(title: str, operation: Schema) -> str:
    """Section of a request: summary, parameters, body, answer and errors."""
    lines = [f"### {title}\n", f"{operation['description']}\n"]
    parameters = [row(each["name"], each["schema"], each) for each in operation.get("parameters", [])]
    if parameters:
        lines.append(table(("parameter", "type", "meaning"), parameters))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        lines.append(f"- Body (`{kind}`): {type_of(content['schema'])}")
    [answer] = operation["responses"]["200"]["content"].values()
    lines.append(f"- Answer: {type_of(answer['schema'])}")
    errors = ", ".join(code for code in operation["responses"] if code != "200")
    return "\n".join([*lines, f"- Errors: {errors}\n"])


def schema_text(name: str, schema: Schema) -> str:
    """Section of a schema with a row for each key."""
    properties = schema.get("properties", {})
    rows = [row(key, value, {"description": meaning_in_record(key)} | value) for key, value in properties.items()]
    described = f"{schema['description']}\n\n" if "description" in schema else ""
    return f"### {name}\n\n{described}{table(('key', 'type', 'meaning'), rows)}"


def meaning_in_record(key: str) -> str:
    """Meaning of a key of `result.json`, which a model describes its training with; "" for another key."""
    from trainers.hegraph.results.records import ProbabilitiesRecord, RunRecord

    meanings = attributes(ProbabilitiesRecord.__doc__ or "") | attributes(RunRecord.__doc__ or "")
    own = key.removesuffix("_zero_shot")
    return meanings.get(key, f"`{own}` of zero-shot CLIP." if own in meanings else "")


def row(name: str, schema: Schema, described: Schema) -> tuple[str, str, str]:
    """Row of a table for a key or a parameter."""
    meaning = described.get("description", schema.get("description", ""))
    default = schema.get("default")
    if default not in (None, "", []):
        meaning = f"{meaning} (default: {default})"
    return f"`{name}`", type_of(schema), meaning


def type_of(schema: Schema) -> str:
    """Type of a JSON value in words, with links to the schemas of objects."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if "allOf" in schema:
        return " and ".join(type_of(each) for each in schema["allOf"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if "const" in schema:
        return f"`{schema['const']!r}`".replace("'", '"')
    if "enum" in schema:
        return " or ".join(f'`"{value}"`' for value in schema["enum"])
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(schema.get("type", "any value"))


# Record


def record() -> str:
    """Return the keys of `result.json`, with the meaning that the docstrings of the schema give."""
    from trainers.hegraph.results import records

    definitions = records.RunRecord.model_json_schema()
    lines = []
    for name, schema in [("RunRecord", definitions), *definitions["$defs"].items()]:
        meanings: dict[str, str] = {}
        for base in reversed(getattr(records, name).__mro__):
            meanings |= attributes(base.__doc__ or "")
        rows = [(f"`{key}`", type_of(value), meanings.get(key, "")) for key, value in schema["properties"].items()]
        summary = (getattr(records, name).__doc__ or "").partition("\n")[0]
        lines.append(f"## {name}\n\n{summary}\n\n{table(('key', 'type', 'meaning'), rows)}")
    return "\n".join(lines)


def attributes(docstring: str) -> dict[str, str]:
    """Meaning of each attribute in the section `Attributes` of a docstring."""
    section = re.split(r"\n\n(?=\S)", inspect.cleandoc(docstring).partition("Attributes:\n")[2])[0]
    meanings: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        meanings |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return meanings


# All


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


MAKERS: dict[str, Callable[[], str]] = {
    "api.md": api, "command-line.md": command_line, "http.md": http, "record.md": record,
}  # fmt: skip


def main() -> None:
    for name in sys.argv[1:] or MAKERS:
        with atomic_path(FOLDER / name) as path:
            path.write_text(filled(name), encoding="utf-8")


if __name__ == "__main__":
    main()
