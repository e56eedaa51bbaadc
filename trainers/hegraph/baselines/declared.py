"""What the methods declare in their classes, read from their sources: importing a method imports torch.

A sweep asks hundreds of finished runs whether they are those of today's defaults, and a shell script asks which methods
run on a feature bank. Both are answered at once this way.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parent
WANTED = ("defaults", "needs_backbone")  # attributes of `base.Method`


def read_declared(module: str, method: str) -> SimpleNamespace | None:
    """The attributes `WANTED` of a method, as far as its class or a class above it sets them.

    Args:
        module: The file of the method, without suffix.
        method: The name of its class.

    Returns:
        None where they cannot be read from the source, because it computes them.
    """
    try:
        found = _names_of(module).get(method)
    except (OSError, SyntaxError):
        return None
    return found if isinstance(found, SimpleNamespace) and hasattr(found, "defaults") else None


@cache
def _names_of(module: str) -> dict[str, Any]:
    """The constants and classes of a file, and those that it imports from the files beside it."""
    names: dict[str, Any] = {}
    for node in ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            beside = _names_of(node.module)
            names |= {alias.asname or alias.name: beside[alias.name] for alias in node.names if alias.name in beside}
        elif isinstance(node, ast.ClassDef):
            names[node.name] = _class(node, names)
        else:
            names |= _assigned(node, names)
    return names


def _class(node: ast.ClassDef, names: dict[str, Any]) -> SimpleNamespace:
    """The attributes `WANTED` that a class sets or inherits."""
    found: dict[str, Any] = {}
    for base in reversed(node.bases):
        inherited = names.get(ast.unparse(base))
        found |= vars(inherited) if isinstance(inherited, SimpleNamespace) else {}
    for statement in node.body:
        target = _target(statement)
        if target in WANTED:
            found.pop(target, None)  # rather unknown than inherited, if it cannot be read
            found |= _assigned(statement, names)
    return SimpleNamespace(**found)


def _assigned(node: ast.stmt, names: dict[str, Any]) -> dict[str, Any]:
    """The name that a statement assigns, with its value; {} if the value is made of anything but known names."""
    target = _target(node)
    value = getattr(node, "value", None)
    if target is None or value is None or any(isinstance(part, ast.Call) for part in ast.walk(value)):
        return {}
    try:
        return {target: eval(compile(ast.Expression(value), "<declared>", "eval"), {"__builtins__": {}}, names)}
    except Exception:  # a name that only an import would give, or whatever else the expression asks for
        return {}


def _target(node: ast.stmt) -> str | None:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None
