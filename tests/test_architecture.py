"""The house holds: imports go one way, and every limit of CONTRIBUTING.md. Read from the sources with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trainers" / "hegraph"

# A module imports only modules above it. A folder is one entry.
ORDER = (
    "utils", "datasets", "prompts", "backbones", "features", "method", "training", "config", "config_files",
    "baselines", "models", "results", "experiments", "sweep", "describe", "predict", "labels", "estimator", "export",
    "demo", "teach", "trainer", "__main__",
)  # fmt: skip
# package -> the one file, or the folders, that may import it
ONLY = {
    "open_clip": "backbones/",
    "dassl": "trainer.py",
    "openai": "describe/__main__.py",
    "gradio": ("demo/", "teach/"),
}
# module -> what it does not import, since a start or a finished run need not wait for it
LATE = {
    "experiments.run": {"open_clip", "torchvision"},  # a run from a bank needs no backbone
    "backbones": {"open_clip", "torchvision", "torch"},
}
WATCHED = ("torch.load", "torch.jit.load", "yaml.load", "eval")  # what could run code from a file
LONGEST_FUNCTION = 60  # lines, docstring included

Module = tuple[str, ...]  # ("features", "bank"); () is the package itself


def module_of(file: Path) -> Module:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def package_imports(tree: ast.Module, module: Module, is_folder: bool, modules: set[Module]) -> set[Module]:
    """The modules of the package that a source imports, wherever in it, relatively or absolutely."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [tuple(alias.name.split(".")) for alias in node.names]
            found |= {path[2:] for path in paths if path[:2] == ("trainers", "hegraph")}
        elif isinstance(node, ast.ImportFrom):
            name = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                folder = module if is_folder else module[:-1]
                base = folder[: len(folder) - (node.level - 1)] + name
            elif name[:2] == ("trainers", "hegraph"):
                base = name[2:]
            else:
                continue
            # `from .folder import name`: `name` is a module of the folder, or something its __init__ holds
            found |= {(*base, alias.name) if (*base, alias.name) in modules else base for alias in node.names}
    return found


def outside_imports(tree: ast.Module) -> set[str]:
    """The top-level names of the other packages that a source imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def imports_of(module: Module) -> set[Module]:
    return package_imports(TREES[module], module, MODULES[module].name == "__init__.py", set(MODULES))


def test_the_reader_finds_every_form_of_import():
    modules = {("utils", "errors"), ("features",), ("features", "bank"), ("datasets", "splits")}
    for line, expected in {
        "from ..utils.errors import UserError": {("utils", "errors")},
        "from . import bank, FeatureBank": {("features", "bank"), ("features",)},
        "from ..utils import errors": {("utils", "errors")},
        "import trainers.hegraph.utils.errors": {("utils", "errors")},
        "from trainers.hegraph.utils import errors": {("utils", "errors")},
        "def late():\n    from ..utils.errors import UserError": {("utils", "errors")},
        "import torch\nfrom pathlib import Path": set(),
    }.items():
        assert package_imports(ast.parse(line), ("features", "extract"), False, modules) == expected, line
    in_folder = package_imports(ast.parse("from .bank import x"), ("features",), True, modules)
    assert in_folder == {("features", "bank")}
    assert "open_clip" in set().union(*map(outside_imports, TREES.values()))


def test_a_module_imports_only_what_stands_above_it_and_a_folder_has_no_cycle():
    assert sorted({module[0] for module in MODULES if module}) == sorted(ORDER)
    offenders = []
    for module in [module for module in MODULES if module]:
        # The command line of a room is its user, and may read configurations as the main command line does
        above = ORDER[: ORDER.index("__main__" if module[-1] == "__main__" else module[0])]
        offenders += [
            (module, other) for other in imports_of(module) if other[:1] != module[:1] and other[0] not in above
        ]
        # A method that we compare with uses nothing of our model but the two classifiers
        if module[0] == "baselines":
            offenders += [(module, o) for o in imports_of(module) if o[0] == "method" and o != ("method", "cache")]
    for room in ORDER:
        inside = {module for module in MODULES if module[:1] == (room,)}
        try:
            TopologicalSorter({module: imports_of(module) & inside for module in inside}).prepare()
        except CycleError as error:
            offenders.append(error.args[1])
    assert offenders == []


def test_the_package_itself_imports_nothing_of_its_own_but_for_type_checkers():
    """Its public names are imported when they are used."""
    tree = ast.parse(MODULES[()].read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    assert not package_imports(tree, (), True, set(MODULES))
    assert outside_imports(tree) == {"__future__", "importlib", "os", "signal", "sys", "typing"}


def test_one_place_alone_knows_a_package():
    offenders = [
        (package, module)
        for package, place in ONLY.items()
        for module, file in MODULES.items()
        if package in outside_imports(TREES[module]) and not file.relative_to(PACKAGE).as_posix().startswith(place)
    ]
    assert offenders == []


def test_no_function_is_too_long_and_none_is_called_that_could_run_code_from_a_file():
    offenders, loads = [], 0
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            where = f"{'.'.join(module)}:{getattr(node, 'lineno', 0)}"
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
    assert offenders == []
    assert loads


def test_nothing_that_users_get_needs_our_shared_folder():
    files = [path for place in ("trainers", "scripts", "configs") for path in (ROOT / place).rglob("*")]
    files = [path for path in files if path.suffix in {".py", ".sh", ".yaml", ".json"}] + [ROOT / "README.md"]
    assert [str(path) for path in files if "../shared" in path.read_text(encoding="utf-8")] == []


def test_what_can_do_without_open_clip_does_not_wait_for_its_import():
    for module, absent in LATE.items():
        asked = f"import sys, trainers.hegraph.{module}; print(sorted({absent} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["[]"], module
