"""exact: the groups with the highest mean gain within a budget of models, proven to be the best.

Source: the choice of groups in TAG, Fifty et al., "Efficiently Identifying Task Groupings for
    Multi-Task Learning", NeurIPS 2021, https://arxiv.org/abs/2109.04617, and in Standley et al.,
    ICML 2020, https://arxiv.org/abs/1905.07553: at most b groups, which may overlap, maximising
    mean_i max_{g with i} mean_{j in g, j not i} Z[j -> i]
Differs from the source: solved as an integer programme over the sets that one model serves, in
    place of branch and bound over groups. A task alone has the gain 0 (the released TAG: 1e-6).
Shapes: T = tasks, S = sets of tasks.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.base import Affinity, Groups, check_budget
from polytask.relate.covers import made, partition
from polytask.relate.hoa import hoa
from polytask.relate.served import best_groups

MOST = 70_000
"""Sets that are listed at most: those of 16 tasks."""


def exact(
    affinity: Affinity,
    budget: int,
    *,
    largest: int | None = None,
    overlap: bool = True,
    exactly: bool = False,
    alone: float = 0.0,
    seconds: float = 60.0,
) -> Groups:
    """Return the groups with the highest mean gain: at most `budget` models.

    budget: >= 1; what exceeds T counts as T. exactly: all of them are to serve a task.
    largest: members of a group at most; needed beyond 16 tasks, where not all sets can be listed.
    overlap: True: a task may also train in groups that do not serve it.
    alone: the gain of a task in a group of its own.
    seconds: at most so long; the result then says optimal=False and how far off it may be.

    Groups of equal score: a served set takes its smallest group, the rest is as the solver finds
    it, which is the same at every call. Raises DataError where a value of the affinity is missing
    (see `Affinity.filled`).
    """
    values_TT = affinity.known()
    T = len(affinity.tasks)
    budget = check_budget(budget, T, "exact")
    largest = T if largest is None else min(largest, T)
    count = sum(math.comb(T, size) for size in range(1, largest + 1)) if largest >= 1 else 0
    if largest < 1 or largest * budget < T:
        raise UsageError(
            f"exact: {budget} groups of at most {largest} tasks cannot hold {T}; raise one of them."
        )
    if count > MOST:
        raise UsageError(
            f"exact: {T} tasks have {count} groups of at most {largest}, more than {MOST}; give a "
            "smaller `largest`, or use greedy."
        )
    served_ST = _sets(T, largest)
    value_S, group_ST = best_groups(values_TT, served_ST, largest, alone, overlap)
    found = partition(value_S, served_ST, budget, seconds, exactly)
    serving = {t: s for s in found.chosen for t in served_ST[s].nonzero().flatten().tolist()}
    gain_ST = hoa(affinity, group_ST, alone).gain_GT
    gap = found.gap / T
    optimal, name = found.optimal, "exact-groups"
    return made(affinity.tasks, group_ST, gain_ST, serving, optimal, gap, name, apart=exactly)


def _sets(tasks: int, largest: int) -> Tensor:
    """Return all sets of 1 to `largest` tasks (S, T): small ones first, then in order of tasks."""
    parts = []
    for size in range(1, largest + 1):
        members_SM = torch.tensor(list(itertools.combinations(range(tasks), size)))
        blank_ST = torch.zeros(len(members_SM), tasks, dtype=torch.bool)
        parts.append(blank_ST.scatter_(1, members_SM, True))
    return torch.cat(parts)
