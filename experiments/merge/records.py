"""The merges of one backbone and seed as a record, for `polytask report runs/merge/cnn-s0`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ends import ends
from found import KEPT
from images import TASKS
from methods import JOBS

from polytask.merge.maps import maps
from polytask.merge.record import Learned, Measure, MergeRecord, MergeResult, now

NAMES = {"cnn": "CNN", "vit": "ViT"}


def rows(home: str) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Return what is kept of all methods in a folder below `runs/merge/`, and what made each."""
    found: dict[str, dict[str, Any]] = {}
    made_on = []
    for name in JOBS:
        if (KEPT.runs / home / f"{name}.json").exists():
            kept = KEPT.run(f"{home}/{name}", dict)
            made_on.append(kept["versions"])
            found |= {name + added: row for added, row in kept["rows"].items()}
    return found, made_on


def write(backbone: str, seed: int) -> Path:
    """Write `merge.json` beside what is kept of these merges; return it.

    Those of the family with a backdoor are left out: it is another family.
    """
    home = f"{backbone}-s{seed}"
    first = KEPT.run(f"{home}/ends", dict)
    found, _ = rows(home)
    merges = {name: row for name, row in found.items() if not name.startswith("poisoned")}
    base = merges.pop("base", None)
    family = ends(backbone, seed, "cpu", "cpu").family()
    record = MergeRecord(
        title=f"Eight image tasks, {NAMES[backbone]}, seed {seed}",
        measures={task: Measure("accuracy", "max", "fraction") for task in TASKS.names},
        individual=first["individual"],
        merges={name: _result(row) for name, row in merges.items()},
        maps=maps(family.base, [family.shared(t) for t in TASKS.names], labels=TASKS.names),
        base={} if base is None else base["accuracy"],
        joint=first["joint"],
        created=now(),
        versions=first["versions"],
    )
    record.check()
    return record.save(KEPT.runs / home)


def _result(row: dict[str, Any]) -> MergeResult:
    """Return one merge; of coefficients per tensor their mean is what was kept."""
    found = row.get("coefficients")
    return MergeResult(
        scores=row["accuracy"],
        coefficients=Learned((), (tuple(found),)) if found else None,
        notes=tuple(row.get("notes", ())),
    )
