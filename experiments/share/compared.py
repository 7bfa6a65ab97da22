"""Comparisons that experiments here stand on: `polytask compare`, and published tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from found import KEPT, Table

from polytask.recipes import RESULT
from polytask.records import read_json, versions

PUBLISHED = KEPT.folder.parent / "compare"

ON_CENSUS = (
    "mmoe:on=fields", "ple:on=fields", "dsmtl", "dsmtl:scheme=individual", "dsmtl:scheme=light",
)  # fmt: skip
"""One comparison for two experiments, so that single-task models are trained once."""


def compared(suite: str, methods: Sequence[str], tune: int, epochs: int = 0) -> dict[str, Any]:
    """Return of each method, and of the single-task models, test values and gains per task.

    epochs: at most this many; 0: those of the suite.

    The comparison is made now where it is not there, or goes on where it was stopped.
    """
    out = KEPT.runs / "compare" / suite
    command = f"polytask compare {suite} --seeds 3 --tune {tune} --methods {','.join(methods)}"
    command += f" --epochs {epochs}" if epochs else ""
    line = [sys.executable, "-m", *command.split(), "--jobs", "1", "--out", str(out)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    found = read_json(out / RESULT)
    return {
        "command": command,
        "versions": versions(),
        "seeds": found["seeds"],
        "picked": found["tuning"]["picked"],
        "methods": {
            name: {
                task: {key: of_task[key] for key in ("values", "gains")}
                for task, of_task in found["methods"][name]["tasks"].items()
            }
            for name in ("single", *methods)
        },
    }


def published(name: str) -> Table:
    """Return a table of the comparisons."""
    table: Table = json.loads((PUBLISHED / f"{name}.json").read_text())
    return table


def delta_m(tasks: Table) -> list[float]:
    """Return each seed's delta-m, from the gains per task that a table or `compared` holds."""
    every = zip(*(of_task["gains"] for of_task in tasks.values()), strict=True)
    return [fmean(gain for gain in of_seed if gain is not None) for of_seed in every]
