"""Keeps a random sample of a cosmic-ray session's mutants, of those that a test could be asked to notice.

Left out are mutants of log lines, of the words of error messages, of type annotations, of what is imported for types
alone, and of the tables of the options' defaults. Of the mutants of one place at most one is kept.
"""

import argparse
import ast
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import WorkItem

Place = tuple[int, int]  # line, counted from 1, and column, counted from 0


def nodes_without_behaviour(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts of a source whose mutants no test is asked to notice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node if "Defaults" in ast.unparse(node.annotation) else node.annotation
        elif isinstance(node, ast.Raise) or _is_log_line(node) or _is_for_types_alone(node):
            yield node


def _is_log_line(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")


def _is_for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def has_behaviour(place: Place, source: str) -> bool:
    """Whether a test could be asked to notice a mutant at this place of a source."""
    return not any(start <= place < end for start, end in _spans_without_behaviour(source))


@cache
def _spans_without_behaviour(source: str) -> list[tuple[Place, Place]]:
    nodes = nodes_without_behaviour(ast.parse(source))
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes]


def sample(items: list[WorkItem], count: int, seed: int) -> list[WorkItem]:
    """At most `count` mutants, drawn by place; the order in which they are run is that of the session."""
    places: dict[tuple[str, Place], list[WorkItem]] = {}
    sources: dict[Path, str] = {}
    for item in items:
        [mutation] = item.mutations
        path = mutation.module_path
        source = sources.setdefault(path, path.read_text(encoding="utf-8"))
        if has_behaviour(mutation.start_pos, source):
            places.setdefault((str(path), mutation.start_pos), []).append(item)
    generator = random.Random(seed)
    sampled = generator.sample(sorted(places), min(count, len(places)))
    kept = {generator.choice(places[place]).job_id for place in sorted(sampled)}
    return [item for item in items if item.job_id in kept]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation.sample", description=__doc__)
    parser.add_argument("session", help="file that `cosmic-ray init` has written; its skipped mutants are left out")
    parser.add_argument("--count", type=int, default=100, help="how many mutants are kept")
    parser.add_argument("--seed", type=int, default=15, help="decides which")
    arguments = parser.parse_args()
    with use_db(arguments.session) as session:
        kept = sample(list(session.pending_work_items), arguments.count, arguments.seed)
        session.clear()
        session.add_work_items(kept)
    sys.stdout.write(f"{len(kept)} mutants are left in {arguments.session}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
