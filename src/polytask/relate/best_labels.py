"""best-labels: single labels, of any row and any task, that promise most for what they cost.

Source: cost-sensitive active learning as in Settles, Craven & Friedland, "Active Learning with
    Real Annotation Costs", NeurIPS 2008 workshop on cost-sensitive learning
Differs from the source: costs are known per task, not predicted per row.
Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.picks import Picks, check_scores, order


def best_labels(
    scores_NT: Tensor,
    budget: float,
    *,
    costs: Sequence[float] | None = None,
    scaled: bool = True,
    per_row: int | None = None,
) -> Picks:
    """Return the labels of highest score per cost, while the budget lasts.

    scores_NT: per task, higher first, >= 0; NaN cannot be asked for. budget, costs: as
        rank_combination.
    scaled: divide each task's scores by their mean first, so that tasks of many classes do not take
        all. per_row: labels of one row at most. A label that no longer fits is passed over.
    """
    scores_NT, cost_T = check_scores(scores_NT, budget, costs, "best_labels")
    if bool((scores_NT < 0).any()):
        raise UsageError("best_labels: scores are divided by costs, so give scores >= 0.")
    if per_row is not None and per_row < 1:
        raise UsageError(f"best_labels: per_row is {per_row}; give a number of labels >= 1.")
    if scaled:
        mean_T = scores_NT.nanmean(0)
        scores_NT = scores_NT / mean_T.where(mean_T > 0, torch.ones(()).double())
    N, T = scores_NT.shape
    labels: list[tuple[int, int]] = []
    left = [T if per_row is None else per_row] * N
    spent = 0.0
    for place in order((scores_NT / cost_T).reshape(-1)):
        row, task = divmod(place, T)
        cost = float(cost_T[task])
        if left[row] and spent + cost <= budget + 1e-9:
            labels.append((row, task))
            left[row] -= 1
            spent += cost
    return Picks(tuple(labels), spent)
