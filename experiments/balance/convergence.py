"""When tasks converge, and how well runs did on validation: CoBa beside equal weights.

    python experiments/balance/convergence.py

Reads the run folders that `experiments/compare/run.py` left in `runs/`, of the suites whose
comparison has both methods. Trains nothing. Plan: README.md beside this file.
"""

from __future__ import annotations

from pathlib import Path
from statistics import pstdev
from typing import Any

import store

from polytask.fit import RECORD
from polytask.recipes import RESULT
from polytask.records import Record, read_json

SUITES = ("digits2", "tox21", "census", "sentences")
METHODS = ("equal", "coba")


def spread(record: Record) -> float:
    """Return the deviation over tasks of the epoch of a task's best value, in % of the epochs."""
    epoch_of = {point.step: point.epoch for point in record.points}
    epochs = [epoch_of[step] for step, _ in record.best_per_task.values()]
    return 100 * pstdev(epochs) / int(record.settings["epochs"])


def of_suite(folder: Path) -> dict[str, Any] | None:
    """Return both methods' numbers, one per seed; None where the comparison lacks a method."""
    if not (folder / RESULT).exists():
        return None
    result = read_json(folder / RESULT)
    if not set(METHODS) <= set(result["methods"]):
        return None
    found: dict[str, Any] = {"seeds": result["seeds"]}
    for method in METHODS:
        runs = result["methods"][method]["runs"]
        records = [Record.load(folder / runs[str(s)] / RECORD) for s in result["seeds"]]
        found[method] = {
            "spread": [spread(record) for record in records],
            "best_score": [record.best.score for record in records],
        }
    return found


def main() -> None:
    suites = {name: found for name in SUITES if (found := of_suite(Path("runs") / name))}
    if suites:
        store.write("convergence", {"suites": suites})
    print(f"comparisons with {' and '.join(METHODS)}: {', '.join(suites) or 'none in runs/'}")


if __name__ == "__main__":
    main()
