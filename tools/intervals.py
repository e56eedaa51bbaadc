"""Write the paired intervals of results/README.md and docs/results/accuracy.md: a method minus every other one.

    python -m tools.intervals OUTPUT [OUTPUT ...] --out FILE [--of METHOD] [--groups BANK ...]

OUTPUT has runs of METHOD (default: HeGraphAdapter) and of other methods, with their predictions. FILE gets a JSON line
for each method and number of shots. It keeps its lines of other methods. BANK is a feature bank with groups of its test
images, such as the one of `python -m tools.ucf101_groups`.
"""

import argparse
import json
import sys
from pathlib import Path

from trainers.hegraph.results.intervals import Difference
from trainers.hegraph.results.paired import paired_differences
from trainers.hegraph.results.paired_runs import read_groups, read_runs
from trainers.hegraph.results.scores import OUR_METHOD, method_order
from trainers.hegraph.results.table import markdown_table
from trainers.hegraph.utils.files import atomic_path

Intervals = dict[tuple[str, int], Difference]  # by method and number of shots


def read_intervals(file: Path) -> Intervals:
    """Read a file of this tool."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {(line["method"], line["shots"]): Difference(line["mean"], line["low"], line["high"]) for line in lines}


def table(files: list[Path], of: str = OUR_METHOD, left_out: tuple[str, ...] = ()) -> str:
    """Table in Markdown with the method `of` minus each other one, in points; bold if the interval excludes 0."""
    intervals = read_intervals(files[0])
    shots = sorted({n for _, n in intervals})
    methods = sorted({name for name, _ in intervals if name not in left_out}, key=method_order)
    rows = []
    for name in methods:
        cells = [str(intervals.get((name, n), "")) for n in shots]
        rows.append([name, *cells])
    return markdown_table([f"{of} minus", *map(str, shots)], rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.intervals", description=__doc__)
    parser.add_argument("output", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to update")
    parser.add_argument("--of", default=OUR_METHOD, metavar="METHOD", help="method to compare with all others")
    parser.add_argument("--groups", type=Path, nargs="+", default=[], metavar="BANK", help="banks with groups of test")
    args = parser.parse_args()
    intervals = read_intervals(args.out) if args.out.exists() else {}
    runs = read_runs(args.output, read_groups(args.groups))
    compared = paired_differences(runs, args.of)
    for name, by_shots in compared.differences.items():
        intervals |= {(name, n): value for n, value in by_shots.items()}
    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, n in sorted(intervals, key=lambda key: (method_order(key[0]), key[1])):
            numbers = {key: round(value, 4) for key, value in intervals[name, n]._asdict().items()}
            file.write(json.dumps({"method": name, "shots": n} | numbers) + "\n")
    sys.stdout.write(table([args.out], args.of))
    sys.stdout.write("".join(f"- {note}\n" for note in compared.notes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
