"""Rename keys and values of the records in `results/`, whose figures stay equal.

    python -m tools.relabel_records results/*.jsonl

Each record gets the names of today's version, and its `config_hash` is computed from the renamed configuration. A
record with today's names stays as it is. `run_id` names the run as it was made.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from trainers.hegraph.results.records import SEMI_SUPERVISED
from trainers.hegraph.utils.files import atomic_path, hash_json
from trainers.hegraph.utils.option import NODE

KEYS = {f"{NODE}.FREE.{name}": f"{NODE}.TRAINING_FREE.{name}" for name in ("KAPPA", "RHO", "OMEGA")}
CLASS_PRIOR = {"evenness": "balance", "scale": "relative_balance", "offsets": "offset_weight", "prior": "prior_weight"}
REJECTION = {"keep": "rate", "kept": "accepted"}


def renamed(entries: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Entries with some of their keys renamed."""
    return {names.get(key, key): value for key, value in entries.items()}


def relabel(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the names of today's version."""
    record = dict(record)
    if record.get("variant") == "free":
        record["variant"] = "training_free"
    if record.get("part") == "class shares alone":  # of tools/unlabelled_study.py
        record["part"] = "class prior alone"
    if record.get("protocol") == "with unlabelled images":
        record["protocol"] = SEMI_SUPERVISED
    if record.get("rejection"):
        record["rejection"] = renamed(record["rejection"], REJECTION)
    if "shares" in (unlabelled := record.get("unlabelled") or {}):
        class_prior = renamed(unlabelled["shares"], CLASS_PRIOR)
        record["unlabelled"] = {key: unlabelled[key] for key in unlabelled if key != "shares"}
        record["unlabelled"]["class_prior"] = class_prior
    if "config" in record and record["config"].keys() & KEYS.keys():
        config = renamed(record["config"], KEYS)
        if config.get(f"{NODE}.VARIANT") == "free":
            config[f"{NODE}.VARIANT"] = "training_free"
        record |= {"config": config, "config_hash": hash_json(config)}
    return record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.relabel_records", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file with one record per line")
    for path in parser.parse_args().files:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(relabel(record), sort_keys=True) for record in records]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
