"""rank-combination: rows that are high in the lists of all tasks, labelled for all of them.

Source: Reichart et al., "Multi-Task Active Learning for Linguistic Annotations", ACL 2008,
    https://aclanthology.org/P08-1098
Differs from the source: a budget of costs; other combinations than the sum of ranks beside it.
Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.picks import Picks, check_scores, order, rows_within
from polytask.relate.rsa import ranks


def rank_combination(
    scores_NT: Tensor,
    budget: float,
    *,
    costs: Sequence[float] | None = None,
    by: Literal["ranks", "mean", "max", "min"] = "ranks",
) -> Picks:
    """Return rows to label, each for every task that can be asked (its score is no NaN).

    scores_NT: per task, higher first. budget: what may be spent; costs: of one label of each task,
        1 without.
    by: the mean rank over the tasks asked; or the mean, largest or smallest score, for scores of
        one scale. Of equal rows the earlier. A row that no longer fits is passed over.
    """
    scores_NT, cost_T = check_scores(scores_NT, budget, costs, "rank_combination")
    if by not in ("ranks", "mean", "max", "min"):
        raise UsageError(f"rank_combination: by is {by!r}; give ranks, mean, max or min.")
    there_NT = ~scores_NT.isnan()
    if by == "max":
        joint_N = scores_NT.nan_to_num(nan=-torch.inf).amax(1)
    elif by == "min":
        joint_N = scores_NT.nan_to_num(nan=torch.inf).amin(1)
    elif by == "mean":
        joint_N = scores_NT.nanmean(1)
    else:
        joint_N = _ranks(scores_NT).nanmean(1)
    joint_N = joint_N.where(there_NT.any(1), torch.full((), torch.nan).double())
    return rows_within(order(joint_N), scores_NT, cost_T, budget)


def _ranks(scores_NT: Tensor) -> Tensor:
    """Return each task's ranks among its known scores, as shares; NaN where there is no score."""
    found_NT = torch.full_like(scores_NT, torch.nan)
    for t in range(scores_NT.shape[1]):
        there_N = ~scores_NT[:, t].isnan()
        if bool(there_N.any()):
            found_NT[there_N, t] = ranks(scores_NT[there_N, t][None])[0] / int(there_N.sum())
    return found_NT
