"""The choice of groups as an integer programme, solved by HiGHS through `scipy.optimize.milp`.

`partition` chooses sets that serve every task exactly once; `cover` chooses among listed groups
and says which of them serves each task. Values are scaled before solving, so that gains of 1e-6
are told apart as well as gains of 1e3.

Shapes: T = tasks, S = sets, G = groups, E = (group, member) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.errors import RunError, UsageError
from polytask.relate.base import NAN, Groups, check_budget
from polytask.relate.gains import Gains

SCALE = 1e3
"""Largest value the solver sees: its absolute gap is 1e-6, so relative ones below 1e-8 are ties."""


@dataclass(frozen=True)
class Solved:
    """chosen: numbers of the columns taken. optimal. gap: how much higher the value may be."""

    chosen: tuple[int, ...]
    optimal: bool
    gap: float


def _solve(
    value_C: np.ndarray[Any, Any], whole: int, rows: Any, low: Any, high: Any, seconds: float
) -> tuple[np.ndarray[Any, Any] | None, bool, float]:
    """Maximise the value of columns in [0, 1] within the rows; the first `whole` are 0 or 1.

    Returns the columns, None where there was no time to find any; whether they are proven to be
    the best; and a value that none exceeds, NaN where there was no time for one.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    largest = float(np.abs(value_C).max()) or 1.0
    integrality = (np.arange(len(value_C)) < whole).astype(int)
    found = milp(
        -value_C * (SCALE / largest),
        integrality=integrality,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows, low, high),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    bound = found.mip_dual_bound
    bound = NAN if bound is None or not np.isfinite(bound) else -float(bound) * largest / SCALE
    return found.x, found.status == 0, bound


def partition(
    value_S: Tensor, served_ST: Tensor, budget: int, seconds: float, exactly: bool = False
) -> Solved:
    """Return the sets of highest value that part the tasks, at most (exactly) `budget` of them."""
    from scipy.sparse import csr_array

    member_ST = served_ST.numpy()
    rows = csr_array(np.concatenate([member_ST.T, np.ones((1, len(member_ST)))]).astype(float))
    ones_T = np.ones(member_ST.shape[1])
    low, high = np.append(ones_T, budget if exactly else 1), np.append(ones_T, budget)
    x_S, optimal, bound = _solve(value_S.numpy(), len(member_ST), rows, low, high, seconds)
    if x_S is None:
        raise RunError(
            f"Choosing groups: no solution after {seconds:g} s. Allow more time, or use greedy."
        )
    chosen = np.flatnonzero(x_S > 0.5).tolist()
    gap = 0.0 if optimal else bound - float(value_S[chosen].sum())
    return Solved(tuple(chosen), optimal, gap)


def cover(gains: Gains, budget: int, *, alone: float = 0.0, seconds: float = 60.0) -> Groups:
    """Return the best choice among listed groups: at most `budget`, every task served by one.

    gains: measured or predicted; a group in which a task's gain is NaN cannot serve that task.
        Each task alone, with the gain `alone`, is an option too, listed or not.
    seconds: at most so long; the result is then the better of what was found and a choice group by
        group, and says optimal=False and how far off it may be.

    Raises UsageError where the listed groups leave tasks over for more models than the budget has.
    """
    from scipy.sparse import coo_array

    T = len(gains.tasks)
    budget = check_budget(budget, T, "cover")
    several_G = gains.member_GT.sum(1) > 1
    member_GT = torch.cat([gains.member_GT[several_G], torch.eye(T).bool()])
    gain_GT = torch.cat([gains.gain_GT[several_G], torch.eye(T).double() * alone])
    serves_E2 = (member_GT & ~gain_GT.isnan()).nonzero().numpy()
    G, E = len(member_GT), len(serves_E2)
    columns_E = G + np.arange(E)
    # each task is served once; a pair needs its group; at most `budget` groups
    row = np.concatenate([serves_E2[:, 1], T + np.arange(E), T + np.arange(E), np.full(G, T + E)])
    column = np.concatenate([columns_E, columns_E, serves_E2[:, 0], np.arange(G)])
    entry = np.concatenate([np.ones(E), np.ones(E), -np.ones(E), np.ones(G)])
    rows = coo_array((entry, (row, column)), shape=(T + E + 1, G + E)).tocsr()
    low = np.concatenate([np.ones(T), np.full(E, -np.inf), [0]])
    high = np.concatenate([np.ones(T), np.zeros(E), [budget]])
    value_C = np.concatenate([np.zeros(G), gain_GT.numpy()[serves_E2[:, 0], serves_E2[:, 1]]])
    if not _coverable(member_GT & ~gain_GT.isnan(), budget, T):
        raise UsageError(
            f"cover: the listed groups cannot serve {T} tasks with {budget} models; list larger "
            "groups or raise the budget."
        )
    value_GT = gain_GT.masked_fill(~member_GT, NAN).nan_to_num(nan=-torch.inf).numpy()
    x_C, optimal, bound = _solve(value_C, G, rows, low, high, seconds)
    choices = [_one_by_one(value_GT, budget)]
    if x_C is not None:
        choices.insert(0, np.flatnonzero(x_C[:G] > 0.5))
    chosen = choices[0] if optimal else max(choices, key=lambda c: value_GT[c].max(0).sum())
    best_T = chosen[value_GT[chosen].argmax(0)]
    if not np.isfinite(value_GT[chosen].max(0)).all():
        raise RunError(f"cover: no solution after {seconds:g} s. Allow more time.")
    gap = 0.0 if optimal else (bound - float(value_GT[chosen].max(0).sum())) / T
    serving = dict(enumerate(best_T.tolist()))
    return made(gains.tasks, member_GT, gain_GT, serving, optimal, gap, "cover")


def _one_by_one(value_GT: np.ndarray[Any, Any], budget: int) -> np.ndarray[Any, Any]:
    """Return a choice that adds the best group, then exchanges one for a better, while it gains."""
    finite = value_GT[np.isfinite(value_GT)]
    # a task that nobody serves costs more than all others could gain
    penalty = len(value_GT[0]) * (float(finite.max() - finite.min()) + 1.0)
    value_GT = np.where(np.isfinite(value_GT), value_GT, float(finite.min()) - penalty)
    chosen: list[int] = []
    for _ in range(budget):
        best_T = value_GT[chosen].max(0) if chosen else np.full(len(value_GT[0]), -np.inf)
        chosen.append(int(np.maximum(value_GT, best_T).sum(1).argmax()))
    score = float(value_GT[chosen].max(0).sum())
    at = 0
    while at < budget:
        rest = [g for n, g in enumerate(chosen) if n != at]
        best_T = value_GT[rest].max(0) if rest else np.full(len(value_GT[0]), -np.inf)
        total_G = np.maximum(value_GT, best_T).sum(1)
        g = int(total_G.argmax())
        if total_G[g] > score + 1e-12 * abs(score):
            chosen[at], score, at = g, float(total_G[g]), 0
        else:
            at += 1
    return np.unique(chosen)


def _coverable(member_GT: Tensor, budget: int, tasks: int) -> bool:
    """Return False where even the largest groups, disjoint, would not reach every task."""
    largest = int(member_GT.sum(1).max())
    return budget * largest >= tasks and bool(member_GT.any(0).all())


def made(
    tasks: tuple[str, ...],
    member_GT: Tensor,
    gain_GT: Tensor,
    serving: dict[int, int],
    optimal: bool,
    gap: float,
    source: str,
    apart: bool = False,
) -> Groups:
    """Return the groups that serve somebody, in the order of the first task each one serves.

    apart: keep groups of the same members apart, which otherwise are one model for all they serve.
    """
    if not apart:
        first: dict[tuple[bool, ...], int] = {}
        one = {g: first.setdefault(tuple(member_GT[g].tolist()), g) for g in serving.values()}
        serving = {t: one[g] for t, g in serving.items()}
    used = list(dict.fromkeys(serving[t] for t in range(len(tasks))))
    value = tuple(float(gain_GT[serving[t], t]) for t in range(len(tasks)))
    return Groups(
        tasks,
        tuple(tuple(tasks[t] for t in member_GT[g].nonzero().flatten().tolist()) for g in used),
        tuple(used.index(serving[t]) for t in range(len(tasks))),
        value,
        sum(value) / len(value),
        optimal,
        gap,
        source,
    )
