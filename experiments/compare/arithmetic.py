"""What a search cost in arithmetic against the single-task models that it is compared with.

A search counts against runs of every task alone as it would train them, or as long as its first
model of all tasks where it did not. The models of the comparison are there in truth: one run each,
of the setting that was best.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polytask.fit import RECORD, FitConfig
from polytask.recipes.train import Job
from polytask.recipes.work import work_of_epoch

SEARCH = "auto.json"


def of_single(folder: Path, result: dict[str, Any]) -> list[float]:
    """Return for each seed of a finished comparison's searches their part of that arithmetic."""
    runs = result["methods"]["single"]["runs"]
    found = []
    for seed in result["seeds"]:
        search = json.loads((folder / "auto" / f"s{seed}" / SEARCH).read_text())
        first = search["tried"][0]
        asked = search["settings"]
        config = FitConfig(batch_size=asked["batch_size"], min_epoch_steps=asked["min_epoch_steps"])

        def epoch(tasks: tuple[str, ...] | None, config: FitConfig = config) -> float:
            return work_of_epoch(Job(result["suite"], tasks, "equal", config, folder))

        spent = search["work"] * epoch(None) * first["epochs"] / first["work"]
        alone = sum(
            epoch((task,))
            * len(json.loads((folder / of[str(seed)] / RECORD).read_text())["points"])
            for task, of in runs.items()
        )
        found.append(spent / alone)
    return found
