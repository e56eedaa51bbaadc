"""Write the accuracy of every draw of the training images: the means behind the paired tables of results/README.md.

    python -m tools.draws OUTPUT [OUTPUT ...] --out FILE

OUTPUT has finished runs with one seed per draw. FILE gets a JSON line for each data set, method and number of shots,
with the accuracies on test images in percent by seed. It keeps its lines of other data sets, methods and shots.
"""

import argparse
import json
from pathlib import Path

from trainers.hegraph.results.records import check_exist, find_runs
from trainers.hegraph.results.scores import method, method_order
from trainers.hegraph.utils.files import atomic_path

Draws = dict[tuple[str, str, int], dict[str, float]]  # by data set, method and shots: accuracy by seed


def read_draws(file: Path) -> Draws:
    """Read a file of this tool."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {(line["dataset"], line["method"], line["shots"]): line["accuracy"] for line in lines}


def accuracies(folders: list[Path]) -> Draws:
    """Accuracies of the finished runs below folders, in percent with two decimals."""
    check_exist(folders)
    draws: Draws = {}
    for record in find_runs(folders).values():
        of = (record["dataset"], method(record), record["shots"])
        draws.setdefault(of, {})[str(record["seed"])] = round(record["accuracy"], 2)
    return draws


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.draws", description=__doc__)
    parser.add_argument("output", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to update")
    args = parser.parse_args()
    draws = read_draws(args.out) if args.out.exists() else {}
    draws |= accuracies(args.output)
    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for dataset, name, shots in sorted(draws, key=lambda of: (of[0], method_order(of[1]), of[2])):
            by_seed = draws[dataset, name, shots]
            line = {"dataset": dataset, "method": name, "shots": shots}
            line["accuracy"] = {seed: by_seed[seed] for seed in sorted(by_seed, key=int)}
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
