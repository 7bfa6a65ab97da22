"""Which labels to ask for: scores of unlabelled rows per task, a budget, and costs -> picks.

A criterion gives scores_N of one task, higher for rows to label first; stacked they are scores_NT.
NaN marks what cannot be asked for: labels that are there, rows that a task does not have.

Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError


@dataclass(frozen=True)
class Picks:
    """labels: (row, number of the task), in the order chosen. cost: of all of them."""

    labels: tuple[tuple[int, int], ...]
    cost: float

    def mask(self, rows: int, tasks: int) -> Tensor:
        """Return which labels to ask for, bool (N, T)."""
        asked_NT = torch.zeros(rows, tasks, dtype=torch.bool)
        for row, task in self.labels:
            asked_NT[row, task] = True
        return asked_NT


def check_scores(
    scores_NT: Tensor, budget: float, costs: Sequence[float] | None, who: str
) -> tuple[Tensor, Tensor]:
    """Return the scores in float64 and the tasks' costs (T,), or raise."""
    scores_NT = scores_NT.detach().to("cpu", torch.float64)
    if scores_NT.ndim != 2:
        raise UsageError(f"{who}: scores have shape {tuple(scores_NT.shape)}; give (N, T).")
    if bool(scores_NT.isinf().any()):
        raise DataError(f"{who}: a score is infinite; use NaN for labels not to be asked for.")
    cost_T = (
        torch.ones(scores_NT.shape[1]).double() if costs is None else torch.tensor(costs).double()
    )
    if cost_T.shape != scores_NT.shape[1:] or not bool(
        (cost_T > 0).all() and cost_T.isfinite().all()
    ):
        raise UsageError(f"{who}: give {scores_NT.shape[1]} costs > 0, one for each task.")
    if not budget > 0:
        raise UsageError(f"{who}: budget is {budget}; give what may be spent, > 0.")
    return scores_NT, cost_T


def order(values_N: Tensor) -> list[int]:
    """Return the places of known values, the largest first, of equal ones the earlier."""
    sorted_N = torch.sort(values_N.nan_to_num(-torch.inf), descending=True, stable=True).indices
    return sorted_N[: int((~values_N.isnan()).sum())].tolist()


def rows_within(ordered: Sequence[int], scores_NT: Tensor, cost_T: Tensor, budget: float) -> Picks:
    """Return all labels that can be asked for of rows in this order, while the budget lasts."""
    labels: list[tuple[int, int]] = []
    spent = 0.0
    for row in ordered:
        tasks = (~scores_NT[row].isnan()).nonzero().flatten().tolist()
        cost = float(cost_T[tasks].sum())
        if spent + cost <= budget + 1e-9:  # a cheaper row further down may still fit
            labels += [(row, task) for task in tasks]
            spent += cost
    return Picks(tuple(labels), spent)
