"""How the experiments of this folder keep what they find: a file per run, a table per experiment.

Runs go to `runs/balance/` below the working folder; one that is there is not made again. Tables
are committed: small, each with its command, its seeds and the versions it ran on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polytask.records import read_json, to_json, versions, write_json

HERE = Path(__file__).parent
RUNS = Path("runs") / "balance"


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the run of this name, made now where it is not there yet."""
    path = RUNS / f"{name}.json"
    if not path.exists():
        write_json(path, rounded(to_json(make())))
        print(name, flush=True)
    found: dict[str, Any] = read_json(path)
    return found


def write(name: str, table: dict[str, Any]) -> None:
    """Write a table, one line per method, so that a change of one figure is one line of a diff."""
    whole = {"command": f"python experiments/balance/{name}.py", "versions": versions()} | table
    text = json.dumps(rounded(to_json(whole)), separators=(",", ":"), allow_nan=False)
    text = text.replace("},", "},\n").replace("],", "],\n")
    (HERE / f"{name}.json").write_text(text + "\n")


def load(name: str) -> dict[str, Any] | None:
    """Return a table, None where its experiment was not run."""
    path = HERE / f"{name}.json"
    return read_json(path) if path.exists() else None


def rounded(value: Any) -> Any:
    """Return the same with numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
