"""Lasso against ridge relevance on real sources: schools for a school.

    python experiments/relate/real_sources.py

Plan: README.md beside this file.

Shapes: N = pupils, I = inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from found import KEPT, Table, claim, spread
from found import section as grid
from torch import Tensor

from polytask.evaluate import Claim
from polytask.recipes import load_suite
from polytask.relate import active_sources
from polytask.suites import SPLITS

SEEDS = tuple(range(5))
TARGETS, LEAST, ROWS = 7, 100, 40
"""Schools of a seed, each of at least so many pupils; labelled pupils of a target."""

WIDTH, SWEEPS = 4, 8
BUDGETS = (552, 1104, 2208, 4416)
"""Source samples: 4, 8, 16 and 32 for each of 138 schools."""

RULES = ("lasso", "ridge", "none")


@lru_cache(maxsize=1)
def schools() -> tuple[tuple[Tensor, Tensor], ...]:
    """Return inputs (N, I), standardised and with a constant one, and scores (N,), per school."""
    suite = load_suite("school")
    found = []
    for task in suite.tasks.names:
        streams = [s for split in SPLITS for s in suite.split(split) if task in s.targets]
        found.append(
            (torch.cat([torch.as_tensor(s.inputs) for s in streams]).double(),
             torch.cat([s.targets[task] for s in streams]).double())
        )  # fmt: skip
    every_NI = torch.cat([x for x, _ in found])
    varies_I = every_NI.std(0) > 1e-6  # the source has a constant of its own
    mean_I, std_I = every_NI[:, varies_I].mean(0), every_NI[:, varies_I].std(0)
    return tuple(
        (torch.cat([(x[:, varies_I] - mean_I) / std_I, torch.ones(len(x), 1).double()], 1), y)
        for x, y in found
    )


def attempt(rule: str, budget: int, seed: int) -> dict[str, Any]:
    """Return the variance of the targets' scores left over, in %, and the samples drawn.

    Of the targets the median: a school with pupils unlike the labelled ones would drown the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    every = schools()
    large = [m for m, (_, y) in enumerate(every) if len(y) >= LEAST]
    chosen = torch.randperm(len(large), generator=generator)[:TARGETS].tolist()
    left, drawn = [], []
    for target in (large[c] for c in chosen):
        x_NI, y_N = every[target]
        order_N = torch.randperm(len(y_N), generator=generator)
        known, unseen = order_N[:ROWS], order_N[ROWS:]
        sources = [one for m, one in enumerate(every) if m != target]
        orders = [torch.randperm(len(y), generator=generator) for _, y in sources]
        taken = [0] * len(sources)

        def draw(m: int, count: int) -> tuple[Tensor, Tensor]:
            # a school that has no more pupils gives what it has, and only that is counted
            rows = orders[m][taken[m] : taken[m] + count]  # noqa: B023
            taken[m] += len(rows)  # noqa: B023
            return sources[m][0][rows], sources[m][1][rows]  # noqa: B023

        budgets = (budget // 4, budget // 4, budget - 2 * (budget // 4))
        found = active_sources(
            draw, (x_NI[known], y_N[known]), len(sources), budgets, width=WIDTH,
            relevance=rule, floor=0, sweeps=SWEEPS,  # type: ignore[arg-type]
        )  # fmt: skip
        off_N = found.predict(x_NI[unseen]) - y_N[unseen]
        left.append(float(100 * off_N.square().mean() / y_N[unseen].var()))
        drawn.append(sum(taken))
    return {"left": median(left), "drawn": fmean(drawn)}


def main() -> None:
    torch.set_num_threads(1)
    runs: dict[str, dict[str, dict[str, list[float]]]] = {}
    for rule in RULES:
        for budget in BUDGETS:
            found = [
                KEPT.run(
                    f"real_sources/{rule}-{budget}--s{seed}", partial(attempt, rule, budget, seed)
                )
                for seed in SEEDS
            ]
            runs.setdefault(rule, {})[str(budget)] = {
                key: [one[key] for one in found] for key in ("left", "drawn")
            }
    KEPT.write("real_sources", {"seeds": list(SEEDS), "rules": runs})


def saved(table: Table, one: str, other: str) -> list[float]:
    """Return of each seed how much less one rule leaves over than the other, mean over budgets.

    At the samples that the one drew: the other's curve is read there, by straight lines in their
    logarithm, level beyond its ends.
    """
    mine, rival = table["rules"][one].values(), table["rules"][other].values()
    found = []
    for s in range(len(table["seeds"])):
        samples = np.log([of["drawn"][s] for of in rival])
        left = [of["left"][s] for of in rival]
        found.append(
            fmean(
                float(np.interp(math.log(of["drawn"][s]), samples, left)) - of["left"][s]
                for of in mine
            )
        )
    return found


def claims(table: Table) -> Iterator[Claim]:
    setting = (
        f"school, {TARGETS} targets with {ROWS} labelled pupils per seed, the other 138 schools as "
        f"sources, a linear representation of width {WIDTH}; median of targets, mean over budgets "
        f"of {BUDGETS[0]:,} to {BUDGETS[-1]:,} source samples"
    )
    for one, other, words in (
        ("lasso", "ridge", "less error with as many real source samples than ridge relevance"),
        ("lasso", "none", "less error with as many real source samples than all sources alike"),
        ("ridge", "none", "less error with as many real source samples than all sources alike"),
    ):
        yield claim(
            table, f"{one}-relevance", words, setting,
            saved(table, one, other), "greater", 1.0,
            "points of the target's variance explained",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = [
        [rule, *(f"{spread(of['left'])} ({fmean(of['drawn']):,.0f})" for of in budgets.values())]
        for rule, budgets in table["rules"].items()
    ]
    return grid(
        table, "Schools as sources: % of a target school's variance left over",
        ["sampling by", *(f"{budget:,} samples" for budget in BUDGETS)], rows,
        "In brackets the samples drawn: a school that has no more pupils gives what it has.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
