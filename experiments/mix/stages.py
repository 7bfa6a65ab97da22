"""Dual-stage mixing: what of general and of specialised ability is left at the end.

    python experiments/mix/stages.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from sentences import picked, trained

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


def attempt(recipe: str, seed: int, lr: float) -> dict[str, Any]:
    return trained(ROWS, recipe, seed, EPOCHS, lr)


def general(values: Mapping[str, float]) -> float:
    return fmean(values[task] for task in GENERAL)


def both(values: Mapping[str, float]) -> float:
    return (general(values) + values[SPECIAL]) / 2


def score(name: str) -> Any:
    """Return what a mix is picked by: general ability alone where nothing else is trained."""
    return general if name == "general alone" else both


def claims(table: Table) -> Iterator[Claim]:
    found = {name: of["test"] for name, of in table["methods"].items()}
    setting = "sentences: mr, subj and mpqa general, trec special, 3,000 rows each; test accuracy"

    def over(rival: str, scored: Any) -> list[float]:
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
    rows = []
    for name, found in table["methods"].items():
        scores = [spread([run[task] for run in found["test"]]) for task in ROWS]
        rows.append([name, said(found["picked"]), *scores])
    head = ["mix", "picked", *ROWS]
    return grid(table, "Special first, then general: test accuracy in %", head, rows)


def main() -> None:
    torch.set_num_threads(1)
    methods = {
        name: picked("stages", recipes, LRS, SEEDS, attempt, score(name))
        for name, recipes in MIXES.items()
    }
    KEPT.write("stages", {"seeds": SEEDS, "epochs": EPOCHS, "rows": ROWS, "methods": methods})


if __name__ == "__main__":
    main()
