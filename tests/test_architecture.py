"""One direction: a file imports only what stands above it. Read from the sources with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trainers" / "hegraph"

# A module imports only modules above it. A folder is one entry.
ORDER = (
    "utils",
    "datasets",
    "prompts",
    "backbones",
    "features",
    "method",
    "training",
    "config",
    "config_files",
    "baselines",
    "models",
    "results",
    "experiments",
    "sweep",
    "describe",
    "predict",
    "estimator",
    "export",
    "demo",
    "trainer",
    "__main__",
)
# package -> the one file, or the one folder, that may import it
ONLY = {"open_clip": "backbones/", "dassl": "trainer.py", "openai": "describe/client.py", "gradio": "demo/"}

Module = tuple[str, ...]  # ("features", "bank"); () is the package itself

FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({file.parent for file in FILES} - {PACKAGE})


def module_of(file: Path) -> Module:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(file): file for file in FILES}


def package_imports(source: str, module: Module, is_folder: bool, modules: set[Module]) -> set[Module]:
    """The modules of the package that a source imports, wherever in it, relatively or absolutely."""
    found = set()
    for node in ast.walk(ast.parse(source)):
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


def outside_imports(source: str) -> set[str]:
    """The top-level names of the other packages that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def imports_of(module: Module) -> set[Module]:
    file = MODULES[module]
    return package_imports(file.read_text(encoding="utf-8"), module, file.name == "__init__.py", set(MODULES))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from ..utils.errors import UserError", {("utils", "errors")}),
        ("from .bank import load_bank", {("features", "bank")}),
        ("from . import bank, FeatureBank", {("features", "bank"), ("features",)}),
        ("from ..utils import errors", {("utils", "errors")}),
        ("from ..datasets.splits import Item", {("datasets", "splits")}),
        ("import trainers.hegraph.utils.errors", {("utils", "errors")}),
        ("from trainers.hegraph.utils.errors import UserError", {("utils", "errors")}),
        ("from trainers.hegraph.utils import errors", {("utils", "errors")}),
        ("def late():\n    from ..utils.errors import UserError", {("utils", "errors")}),
        ("import torch\nfrom pathlib import Path", set()),
    ],
)
def test_the_reader_finds_every_form_of_import(line, expected):
    modules = {("utils", "errors"), ("features",), ("features", "bank"), ("datasets", "splits")}
    assert package_imports(line, ("features", "extract"), False, modules) == expected


def test_the_reader_takes_a_folders_own_file_as_the_folder():
    assert package_imports("from .bank import x", ("features",), True, {("features", "bank")}) == {("features", "bank")}


def test_every_module_is_in_the_order_and_the_order_names_no_other():
    assert {module[0] for module in MODULES if module} == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", [module for module in MODULES if module], ids=".".join)
def test_a_module_imports_only_what_stands_above_it(module):
    # The command line of a room is its user, and may read configurations as the main command line does
    above = ORDER[: ORDER.index("__main__" if module[-1] == "__main__" else module[0])]
    below = {imported for imported in imports_of(module) if imported[:1] != module[:1] and imported[:1][0] not in above}
    assert below == set()


def test_the_package_itself_imports_nothing_of_its_own_but_for_type_checkers():
    """Its public names are imported when they are used."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    source = ast.unparse(tree)
    assert package_imports(source, (), True, set(MODULES)) == {("utils", "signals")}  # where a command line begins
    assert outside_imports(source) == {"__future__", "importlib", "os", "sys", "typing"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_modules_of_a_folder_import_each_other_without_a_cycle(folder):
    inside = {module for module in MODULES if module[:1] == (folder.name,)}
    graph = {module: imports_of(module) & inside for module in inside}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' -> '.join('.'.join(module) for module in error.args[1])}")


@pytest.mark.parametrize("module", [module for module in MODULES if module[:1] == ("baselines",)], ids=".".join)
def test_a_method_that_we_compare_with_uses_nothing_of_our_model_but_the_two_classifiers(module):
    assert {imported for imported in imports_of(module) if imported[:1] == ("method",)} <= {("method", "cache")}


@pytest.mark.parametrize(("package", "place"), ONLY.items())
def test_one_place_alone_knows(package, place):
    importers = {f.relative_to(PACKAGE).as_posix() for f in FILES if package in outside_imports(f.read_text("utf-8"))}
    assert {file for file in importers if file != place and not (place[-1] == "/" and file.startswith(place))} == set()


def test_loading_imports_open_clip_so_that_the_test_above_can_fail():
    assert "open_clip" in outside_imports((PACKAGE / "backbones" / "loading.py").read_text(encoding="utf-8"))


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_nothing_is_printed(file):
    assert [call.lineno for call in calls(file) if ast.unparse(call.func) == "print"] == []


def test_torch_load_never_runs_code_from_a_file():
    loads = [(file.name, call) for file in FILES for call in calls(file) if ast.unparse(call.func) == "torch.load"]
    assert loads
    unsafe = [
        f"{name}:{call.lineno}"
        for name, call in loads
        if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    ]
    assert unsafe == []


def test_torch_load_has_no_other_name():
    # so that the test above sees every use
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "torch"]
        assert "load" not in {alias.name for node in froms for alias in node.names}, file
        imports = [alias for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert not [alias for alias in imports if alias.name == "torch" and alias.asname], file


@pytest.mark.parametrize("place", ["trainers", "scripts", "configs", "README.md"])
def test_nothing_that_users_get_needs_our_shared_folder(place):
    path = ROOT / place
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in {".py", ".sh", ".yaml", ".json"}]
    assert files
    assert [str(f) for f in files if "../shared" in f.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("experiments.run", {"open_clip", "torchvision"}),  # a run from a bank needs no backbone
        ("features.__main__", {"open_clip", "torchvision"}),
        ("backbones.identity", {"open_clip", "torchvision", "sklearn"}),  # a finished run is recognised by it
        ("backbones", {"open_clip", "torchvision", "torch"}),
    ],
)
def test_what_can_do_without_open_clip_does_not_wait_for_its_import(module, absent):
    asked = f"import sys, trainers.hegraph.{module}; print(sorted({absent} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
