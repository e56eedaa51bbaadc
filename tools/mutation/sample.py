"""Reduce a cosmic-ray session to a random sample of mutants that change behaviour.

The sample has no mutants of log lines, error messages, type annotations, imports for types, and tables of defaults. It
has at most one mutant of each position in a source.
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
    """List the nodes of a source whose mutants change no behaviour."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node if "Defaults" in ast.unparse(node.annotation) else node.annotation
        elif isinstance(node, ast.Raise) or _is_log_line(node) or _is_for_types(node):
            yield node


def _is_log_line(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def has_behaviour(place: Place, source: str) -> bool:
    """Whether a mutant at this position of a source changes behaviour."""
    return not any(start <= place < end for start, end in _spans_without_behaviour(source))


@cache
def _spans_without_behaviour(source: str) -> list[tuple[Place, Place]]:
    nodes = nodes_without_behaviour(ast.parse(source))
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes]


def sample(items: list[WorkItem], count: int, seed: int) -> list[WorkItem]:
    """Sample at most `count` mutants by position, in the order of the session."""
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
    chosen = {generator.choice(places[place]).job_id for place in sorted(sampled)}
    return [item for item in items if item.job_id in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation.sample", description=__doc__)
    parser.add_argument("session", help="file of `cosmic-ray init`; mutants that it skips are not sampled")
    parser.add_argument("--count", type=int, default=100, help="number of mutants")
    parser.add_argument("--seed", type=int, default=15, help="seed of the sample")
    arguments = parser.parse_args()
    with use_db(arguments.session) as session:
        chosen = sample(list(session.pending_work_items), arguments.count, arguments.seed)
        session.clear()
        session.add_work_items(chosen)
    sys.stdout.write(f"{len(chosen)} mutants in {arguments.session}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
