"""How tasks affect one another, as the page shows it: what `polytask relate` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.report import words
from polytask.report.curves import digits
from polytask.report.found import Found

FILE = "relate.json"


class Related(Found):
    """A folder that `polytask relate` left behind."""


def read_related(folder: Path) -> Related:
    """Return what lies in `folder`; a RunError says what is wrong with its file."""
    return Related.read(folder / FILE, relations_block, "a relation of tasks", "relate")


def relations_block(related: Related, label: str) -> dict[str, Any]:
    """Return all that the page shows of it, as JSON types."""
    raw = related.found
    relations = {name: _method(found) for name, found in raw["methods"].items()}
    return {
        "kind": "relate",
        "label": label,
        "title": f"{raw['title']}: which tasks help each other",
        "suite": raw["suite"],
        "verdict": [_said(name, found, raw["budget"]) for name, found in relations.items()],
        "best": None,
        "created": raw["created"],
        "command": raw["command"],
        "versions": dict(raw["versions"]),
        "seeds": [int(seed) for seed in raw["seeds"]],
        "tasks": [
            {"name": task, "kind": "", "metric": "", "direction": "", "unit": ""}
            for task in raw["tasks"]
        ],
        "methods": [{"name": name} for name in relations],
        "relations": relations,
        "left_out": dict(raw["left_out"]),
    }


def _method(found: Mapping[str, Any]) -> dict[str, Any]:
    affinity = found["affinity"]
    tasks = list(affinity["tasks"])
    return {
        "summary": found["summary"],
        "notes": list(affinity["notes"]),
        "tasks": tasks,
        "values": _square(affinity["values"], len(tasks)),
        "errors": _square(affinity["errors"], len(tasks)),
        "together": _square(found["together"], len(tasks)),
        "draws": int(found["draws"]),
        "groups": [_groups(groups, budget) for budget, groups in enumerate(found["groups"], 1)],
    }


def _groups(raw: Mapping[str, Any], budget: int) -> dict[str, Any]:
    serving = list(zip(raw["tasks"], raw["serve"], strict=True))
    return {
        "budget": budget,
        "score": digits(raw["score"]),
        "optimal": bool(raw["optimal"]),
        "groups": [list(group) for group in raw["groups"]],
        "served": [[t for t, at in serving if at == k] for k in range(len(raw["groups"]))],
    }


def _square(rows: Sequence[Sequence[float | None]], size: int) -> list[list[float | None]]:
    if len(rows) != size or any(len(row) != size for row in rows):
        raise ValueError(f"a table is not of {size} tasks")
    return [[digits(value) for value in row] for row in rows]


def _said(name: str, found: Mapping[str, Any], budget: int) -> str:
    """Return in words which pair helps most, and the groups for the whole budget."""
    tasks, values = found["tasks"], found["values"]
    pairs = [
        (values[i][j], one, other)
        for i, one in enumerate(tasks)
        for j, other in enumerate(tasks)
        if i != j and values[i][j] is not None
    ]
    if not pairs:
        return f"{name} knows of no pair."
    _, one, other = max(pairs)
    last = found["groups"][-1]
    groups = [words.listing(served) for served in last["served"] if served]
    text = "; ".join(groups) if len(groups) <= 6 else f"{len(groups)} groups"
    return f"By {name}, training {one} helps {other} most; with up to {budget} models: {text}."
