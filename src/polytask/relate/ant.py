"""ANT intervals: tasks that have an order, such as noise levels, split into intervals.

Source: Go et al., "Addressing Negative Transfer in Diffusion Models", NeurIPS 2023,
    https://arxiv.org/abs/2306.00354
Differs from the source: the released code follows its table of choices one step off and so returns
    other intervals than its own optimum; these are the optimum. Any order and any affinity.
Shapes: T = tasks in their order, K = intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import NAN, Affinity, Groups, check_budget, check_tasks
from polytask.relate.hoa import hoa


def ant(affinity: Affinity, groups: int) -> Groups:
    """Return the split of the tasks, in their order, into intervals of the highest affinity.

    Maximises the sum of affinities, both ways, within intervals; exactly `groups` of them, T where
    more are asked. The value of a task is its mean affinity within its interval. Of equal splits
    the one whose last intervals begin first. Raises DataError where a value is missing.
    """
    values_TT = affinity.known()
    parts = check_budget(groups, len(affinity.tasks), "ant")
    sums = torch.zeros(len(values_TT) + 1, len(values_TT) + 1, dtype=torch.float64)
    sums[1:, 1:] = values_TT.cumsum(0).cumsum(1)
    T = len(values_TT)
    ends = torch.arange(T + 1)
    # of tasks a to b - 1: a square of the matrix
    within = sums[ends[None], ends[None]] - sums[ends[:, None], ends[None]]
    within = within - sums[ends[None], ends[:, None]] + sums[ends[:, None], ends[:, None]]
    return _made(affinity.tasks, _split(-within, parts), affinity)


def ant_by_value(tasks: Sequence[str], values_T: Tensor, groups: int) -> Groups:
    """Return the split of the tasks, in their order, into intervals of like values.

    values_T: such as the signal-to-noise ratio of each noise level, or its logarithm. Minimises
        the sum of |value - value of the interval's middle task|.
    """
    check_tasks(tasks, "ant_by_value")
    values_T = values_T.detach().to("cpu", torch.float64).reshape(-1)
    T = len(tasks)
    if len(values_T) != T:
        raise UsageError(f"ant_by_value: {len(values_T)} values for {T} tasks; give one for each.")
    if not bool(values_T.isfinite().all()):
        raise DataError("ant_by_value: a value is not finite.")
    parts = check_budget(groups, T, "ant_by_value")
    cost = torch.full((T + 1, T + 1), torch.inf, dtype=torch.float64)
    for a in range(T):
        for b in range(a + 1, T + 1):
            cost[a, b] = (values_T[a:b] - values_T[(a + b - 1) // 2]).abs().sum()
    return _made(tuple(tasks), _split(cost, parts), None)


def _split(cost: Tensor, groups: int) -> list[int]:
    """Return the borders 0 = b_0 < ... < b_K = T that minimise sum cost[b_k, b_(k+1)]."""
    T = len(cost) - 1
    cost = cost.masked_fill(~torch.ones_like(cost).triu(1).bool(), torch.inf)
    best = cost[0].clone()  # of the first b tasks in one interval
    choices = []
    for _ in range(groups - 1):
        # [a, b]: the last interval begins at a
        best, choice = (best[:, None] + cost).min(0)
        choices.append(choice)
    borders = [T]
    for choice in reversed(choices):
        borders.append(int(choice[borders[-1]]))
    return [0, *reversed(borders)]


def _made(tasks: tuple[str, ...], borders: list[int], affinity: Affinity | None) -> Groups:
    spans = list(pairwise(borders))
    groups = tuple(tasks[a:b] for a, b in spans)
    serve = tuple(k for k, (a, b) in enumerate(spans) for _ in range(a, b))
    value = (NAN,) * len(tasks)
    if affinity is not None:
        member_KT = torch.tensor([[a <= t < b for t in range(len(tasks))] for a, b in spans])
        gain_KT = hoa(affinity, member_KT).gain_GT
        value = tuple(float(gain_KT[k, t]) for t, k in enumerate(serve))
    score = sum(value) / len(value)
    return Groups(tasks, groups, serve, value, score, True, 0.0, "ant-intervals")
