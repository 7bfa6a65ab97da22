"""What a search cost in arithmetic against the single-task models that it is compared with.

A search counts against runs of every task alone as it would train them, or as long as its first
model of all tasks where it did not. The models of the comparison are there in truth: one run each,
of the setting that was best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polytask.fit import RECORD, FitConfig
from polytask.recipes.auto import FOUND
from polytask.recipes.train import Job
from polytask.recipes.work import work_of_epoch
from polytask.records import read_json


def of_single(folder: Path, result: dict[str, Any]) -> list[float]:
    """Return for each seed of a finished comparison's searches their part of that arithmetic."""
    searches = [read_json(folder / "auto" / f"s{seed}" / FOUND) for seed in result["seeds"]]
    asked = searches[0]["settings"]  # those of all seeds, but for the seed
    config = FitConfig(batch_size=asked["batch_size"], min_epoch_steps=asked["min_epoch_steps"])

    def epoch(*tasks: str) -> float:
        return work_of_epoch(Job(result["suite"], tasks or None, "equal", config, folder))

    runs = result["methods"]["single"]["runs"]
    each, together = {task: epoch(task) for task in runs}, epoch()
    found = []
    for seed, search in zip(result["seeds"], searches, strict=True):
        first = search["tried"][0]
        spent = search["work"] * together * first["epochs"] / first["work"]
        alone = sum(
            each[task] * len(read_json(folder / of[str(seed)] / RECORD)["points"])
            for task, of in runs.items()
        )
        found.append(spent / alone)
    return found
