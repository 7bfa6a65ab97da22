"""Training on the sets with many rows first, then on all, against static rates.

    python experiments/mix/order.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from found import KEPT, Table, claim, minus
from sentences import accuracies, compared

from polytask.evaluate import Claim

SEEDS = tuple(range(5))
ROWS = {"mr": 3000, "sst2": 3000, "cr": 150}
POOR, RICH = "cr", ("mr", "sst2")
EPOCHS, LRS = 6, (1e-3, 3e-3)
MIXES = {
    "static": ("proportional", "temperature:temperature=3", "uniform"),
    "rich-first": tuple(f"rich-first:rich=mr/sst2,temperature={t}" for t in ("1", "3", "inf")),
}


def mean(values: Mapping[str, float]) -> float:
    """Return the mean of the poor task and of the rich ones' mean: both sides count alike."""
    return (values[POOR] + fmean(values[task] for task in RICH)) / 2


def claims(table: Table) -> Iterator[Claim]:
    ours, theirs = (table["methods"][name]["test"] for name in ("rich-first", "static"))
    setting = "sentences: mr and sst2 3,000 rows each, cr 150; test accuracy"
    for words, score, expected, margin in (
        ("ahead of static rates on the poor task", lambda v: v[POOR], "greater", 1.0),
        ("ahead of static rates on average", mean, "greater", 0.5),
        ("no worse on the rich tasks", lambda v: fmean(v[t] for t in RICH), "no worse", 1.0),
    ):
        differences = minus([score(v) for v in ours], [score(v) for v in theirs])
        yield claim(
            table, "rich-first", f"pre-training on rich tasks, then mixing, is {words}", setting,
            differences, expected, margin, "points over the best static mix",
        )  # fmt: skip


def section(table: Table) -> str:
    columns = {task: f"{task}, {count} rows" for task, count in ROWS.items()}
    return accuracies(table, "Rich tasks first", columns)


def main() -> None:
    torch.set_num_threads(1)
    methods = compared(
        "order", MIXES, lambda _: mean, rows=ROWS, epochs=EPOCHS, lrs=LRS, seeds=SEEDS
    )
    KEPT.write("order", {"seeds": SEEDS, "epochs": EPOCHS, "rows": ROWS, "methods": methods})


if __name__ == "__main__":
    main()
