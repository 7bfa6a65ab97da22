"""Lasso against ridge relevance: source samples needed for one error on the target.

    python experiments/relate/sources.py

Plan: README.md beside this file.

Shapes: I = inputs, K = width, M = sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from found import KEPT, Table, claim, spread
from found import section as grid
from torch import Tensor

from polytask.evaluate import Claim
from polytask.relate import active_sources

SEEDS = tuple(range(10))
INPUTS, WIDTH, SOURCES, NEEDED = 20, 6, 40, 3
NOISE, TARGET_ROWS = 1.0, 60
BUDGETS = (1000, 2000, 4000, 8000, 16000)
RULES = ("lasso", "ridge", "none")


class Problem:
    """Sources on one linear representation; the target's head is made of `NEEDED` of theirs."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.basis_IK = torch.linalg.qr(self.normal(INPUTS, WIDTH)).Q
        self.heads_KM = torch.nn.functional.normalize(self.normal(WIDTH, SOURCES), dim=0)
        needed = torch.randperm(SOURCES, generator=self.random)[:NEEDED]
        weights = 0.5 + torch.rand(NEEDED, generator=self.random).double()
        self.target_K = torch.nn.functional.normalize(self.heads_KM[:, needed] @ weights, dim=0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def rows(self, head_K: Tensor, count: int) -> tuple[Tensor, Tensor]:
        x = self.normal(count, INPUTS)
        return x, x @ (self.basis_IK @ head_K) + NOISE * self.normal(count)

    def draw(self, source: int, count: int) -> tuple[Tensor, Tensor]:
        return self.rows(self.heads_KM[:, source], count)


def attempt(rule: str, budget: int, seed: int) -> dict[str, Any]:
    """Return how much of the target lies outside the representation that was learned."""
    problem = Problem(seed)
    target = problem.rows(problem.target_K, TARGET_ROWS)
    # a quarter of the samples before anything is known of the sources, then two rounds
    budgets = (budget // 4, budget // 4, budget - 2 * (budget // 4))
    found = active_sources(problem.draw, target, SOURCES, budgets, width=WIDTH, relevance=rule)  # type: ignore[arg-type]
    true_I = problem.basis_IK @ problem.target_K
    outside_I = true_I - found.basis_IK @ (found.basis_IK.T @ true_I)
    return {"outside": float(outside_I.square().sum())}


def needed(errors: list[float], level: float) -> float:
    """Return log2 of the samples at which a rule reaches an error, by a line through its curve."""
    slope, offset = np.polyfit(np.log2(errors), np.log2(BUDGETS), 1)
    return float(slope * math.log2(level) + offset)


def main() -> None:
    torch.set_num_threads(1)
    runs = {
        rule: {
            str(budget): [
                KEPT.run(
                    f"sources/{rule}-{budget}--s{s}", lambda r=rule, b=budget, s=s: attempt(r, b, s)
                )["outside"]
                for s in SEEDS
            ]
            for budget in BUDGETS
        }
        for rule in RULES
    }
    KEPT.write("sources", {"seeds": list(SEEDS), "rules": runs})


def saved(table: Table, one: str, other: str) -> list[float]:
    """Return of each seed log2 of samples the other rule needs over those the one needs.

    At the error that sampling all alike reaches with the middle budget.
    """
    found = []
    for s in range(len(table["seeds"])):
        curves = {
            rule: [table["rules"][rule][str(b)][s] for b in BUDGETS]
            for rule in (one, other, "none")
        }
        level = curves["none"][len(BUDGETS) // 2]
        found.append(needed(curves[other], level) - needed(curves[one], level))
    return found


def claims(table: Table) -> Iterator[Claim]:
    setting = (
        f"{SOURCES} linear sources on {WIDTH} common directions of {INPUTS} inputs, a target made "
        f"of {NEEDED} of them; samples of all sources for one error"
    )
    for system, one, other, words in (
        ("lasso-relevance", "lasso", "ridge", "needs fewer source samples than ridge relevance"),
        ("lasso-relevance", "lasso", "none", "needs fewer source samples than all sources alike"),
        ("ridge-relevance", "ridge", "none", "needs fewer source samples than all sources alike"),
    ):
        yield claim(
            table, system, words, setting, saved(table, one, other), "greater", 0.1,
            "halvings of the samples needed",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = [
        [rule, *(spread([100 * v for v in table["rules"][rule][str(b)]]) for b in BUDGETS)]
        for rule in RULES
    ]
    return grid(
        table, "Lasso and ridge relevance: % of the target outside the representation learned",
        ["sampling by", *(f"{b:,} samples" for b in BUDGETS)], rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
