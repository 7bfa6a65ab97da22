"""Dual-stage mixing: what of general and of specialised ability is left at the end.

    python experiments/mix/stages.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from found import KEPT, Table, claim, minus
from sentences import Score, accuracies, compared

from polytask.evaluate import Claim

SEEDS = tuple(range(5))
ROWS = {"mr": 3000, "subj": 3000, "mpqa": 3000, "trec": 3000}
GENERAL, SPECIAL = ("mr", "subj", "mpqa"), "trec"
EPOCHS, LRS = 5, (1e-3, 3e-3)
MIXES = {
    "dmt": tuple(f"dmt:special=trec,kept={kept}" for kept in (1 / 256, 1 / 64, 1 / 16)),
    "mixed": ("proportional",),
    "one after another": ("dmt:special=trec,kept=0",),
    "general alone": ("fixed-rates:rates=1/1/1/0",),
}


def general(values: Mapping[str, float]) -> float:
    return fmean(values[task] for task in GENERAL)


def both(values: Mapping[str, float]) -> float:
    return (general(values) + values[SPECIAL]) / 2


def score(name: str) -> Score:
    """Return what a mix is picked by: general ability alone where nothing else is trained."""
    return general if name == "general alone" else both


def claims(table: Table) -> Iterator[Claim]:
    found = {name: of["test"] for name, of in table["methods"].items()}
    setting = "sentences: mr, subj and mpqa general, trec special, 3,000 rows each; test accuracy"

    def over(rival: str, scored: Score) -> list[float]:
        return minus(*([scored(run) for run in found[name]] for name in ("dmt", rival)))

    def special(values: Mapping[str, float]) -> float:
        return values[SPECIAL]

    for words, rival, scored, expected, margin in (
        ("keeps general ability: against training on it alone", "general alone", general,
         "no worse", 1.0),
        ("keeps more general ability than mixing all", "mixed", general, "greater", 0.5),
        ("keeps special ability that training one after another loses", "one after another",
         special, "greater", 2.0),
        ("keeps special ability: against mixing all", "mixed", special, "no worse", 2.0),
    ):  # fmt: skip
        yield claim(
            table, "dmt", words, setting, over(rival, scored), expected, margin,
            f"points over {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    return accuracies(table, "Special first, then general", {task: task for task in ROWS})


def main() -> None:
    torch.set_num_threads(1)
    methods = compared("stages", MIXES, score, rows=ROWS, epochs=EPOCHS, lrs=LRS, seeds=SEEDS)
    KEPT.write("stages", {"seeds": SEEDS, "epochs": EPOCHS, "rows": ROWS, "methods": methods})


if __name__ == "__main__":
    main()
