"""Architecture: contracts of imports, length of functions, and calls that could run code from a file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WATCHED = ("torch.load", "torch.jit.load", "yaml.load", "eval")  # functions that could run code from a file
LONGEST_FUNCTION = 60  # lines, docstring included
SOURCES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "trainers" / "hegraph").rglob("*.py"))
}


def test_imports_keep_the_contracts():
    pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    call = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    words = [sys.executable, "-c", call]  # a process of its own, because it switches off loggers
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_functions_are_short_and_loads_safe():
    offenders, loads = [], 0
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            where = f"{module}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                    offenders.append(f"{where} {node.name} has {length} lines")
            elif isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in WATCHED:
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = keywords.get("weights_only") == "True" if called == "torch.load" else called == "yaml.load"
                loads += called == "torch.load"
                offenders += [] if safe else [f"{where} {called}"]
            elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml"):  # no other name for it
                offenders += [where for alias in node.names if alias.name in ("load", "unsafe_load")]
            elif isinstance(node, ast.Import):
                offenders += [where for alias in node.names if alias.name == "torch" and alias.asname]
    assert offenders == [] and loads


def test_nothing_for_users_needs_our_shared_folder():
    files = [path for place in ("trainers", "scripts", "configs") for path in (ROOT / place).rglob("*")]
    files = [path for path in files if path.suffix in {".py", ".sh", ".yaml", ".json"}] + [ROOT / "README.md"]
    assert [str(path) for path in files if "../shared" in path.read_text(encoding="utf-8")] == []
