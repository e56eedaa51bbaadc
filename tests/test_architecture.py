"""Architecture: direction of imports, length of functions, and calls that could run code from a file."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "trainers.hegraph"

# A module imports only modules above it. A folder is one entry.
ORDER = (
    "utils", "datasets", "prompts", "backbones", "features", "method", "training", "config", "config_files",
    "baselines", "models", "results", "experiments", "sweep", "describe", "predict", "labels", "model_selection",
    "estimator", "export", "demo", "teach", "trainer", "__main__",
)  # fmt: skip
# package -> the modules or packages that may import it
ONLY = {"open_clip": "backbones.", "dassl": "trainer", "openai": "describe.__main__", "gradio": ("demo.", "teach.")}
WATCHED = ("torch.load", "torch.jit.load", "yaml.load", "eval")  # what could run code from a file
LONGEST_FUNCTION = 60  # lines, docstring included


def read_sources() -> dict[str, tuple[str, ast.Module]]:
    """Module -> the folder that its relative imports start from, and its source."""
    sources = {}
    for file in sorted((ROOT / "trainers" / "hegraph").rglob("*.py")):
        folder = ".".join(file.parent.relative_to(ROOT).parts)
        name = folder if file.name == "__init__.py" else f"{folder}.{file.stem}"
        sources[name] = folder, ast.parse(file.read_text(encoding="utf-8"))
    return sources


SOURCES = read_sources()


def imports(folder: str, tree: ast.Module) -> set[str]:
    """What a source imports, wherever in it: modules of the package, and other packages."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), folder)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.startswith(PACKAGE)}
    # `from .folder import name`: `name` is a module of the folder, or something its __init__ holds
    homes = {name if name in SOURCES else name.rpartition(".")[0] for name in ours}
    return homes | {name.split(".")[0] for name in found - ours}


IMPORTS = {module: imports(*source) for module, source in SOURCES.items()}


def inside(module: str) -> str:
    """The name of a module inside the package; "" for what is outside."""
    return module.removeprefix(f"{PACKAGE}.") if module.startswith(f"{PACKAGE}.") else ""


def package_of(module: str) -> str:
    return inside(module).split(".")[0]


def test_a_module_imports_only_what_stands_above_it_and_a_folder_has_no_cycle():
    assert {package_of(module) for module in SOURCES} - {""} == set(ORDER)
    offenders = []
    for module, found in IMPORTS.items():
        # The command line of a package is its user, and may read configurations as the main command line does
        user = "__main__" if module.endswith(".__main__") else package_of(module)
        above = ORDER[: ORDER.index(user)] if user else ()
        others = {other for other in found if package_of(other) not in ("", package_of(module))}
        # A method that we compare with uses nothing of our model but its classifiers
        classifiers = {f"{PACKAGE}.method.{name}" for name in ("cache", "multilabel")}
        model = {other for other in others if package_of(other) == "method"} - classifiers
        allowed = {other for other in others if package_of(other) in above} - (model if user == "baselines" else set())
        # The package itself imports a public name where one is used, and names them all for type checkers
        offenders += [(module, other) for other in others - allowed if module != PACKAGE]
    for name in ORDER:
        within = {module for module in SOURCES if package_of(module) == name}
        try:
            TopologicalSorter({module: IMPORTS[module] & within for module in within}).prepare()
        except CycleError as error:
            offenders.append(error.args[1])
    assert offenders == []


def test_one_place_alone_knows_a_package():
    users = {package: [inside(m) for m, found in IMPORTS.items() if package in found] for package in ONLY}
    assert all(users.values())
    assert [(p, user) for p, modules in users.items() for user in modules if not user.startswith(ONLY[p])] == []


def test_no_function_is_too_long_and_none_is_called_that_could_run_code_from_a_file():
    offenders, loads = [], 0
    for module, (_, tree) in SOURCES.items():
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


def test_nothing_that_users_get_needs_our_shared_folder():
    files = [path for place in ("trainers", "scripts", "configs") for path in (ROOT / place).rglob("*")]
    files = [path for path in files if path.suffix in {".py", ".sh", ".yaml", ".json"}] + [ROOT / "README.md"]
    assert [str(path) for path in files if "../shared" in path.read_text(encoding="utf-8")] == []
