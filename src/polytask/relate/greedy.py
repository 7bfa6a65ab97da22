"""greedy: groups for many tasks: join the two that gain most by it, then move tasks one by one.

Source: agglomerative clustering on the gain that TAG's choice of groups maximises, Fifty et al.,
    NeurIPS 2021, https://arxiv.org/abs/2109.04617, as the usual heuristic where there are too many
    tasks to list groups
Differs from the source: it has no such heuristic; stops at 13 tasks. Nothing is proven of the
    result; see `exact` for up to 16 tasks.
Shapes: T = tasks, K = groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from polytask.errors import UsageError
from polytask.relate.base import NAN, Affinity, Groups, check_budget
from polytask.relate.covers import made
from polytask.relate.hoa import hoa
from polytask.relate.served import best_groups

Array = npt.NDArray[np.float64]


def greedy(
    affinity: Affinity,
    budget: int,
    *,
    largest: int | None = None,
    overlap: bool = True,
    alone: float = 0.0,
    sweeps: int = 20,
) -> Groups:
    """Return groups with a high mean gain: at most `budget` models, in O(T^2) memory.

    budget: >= 1; what exceeds T counts as T. largest: members of a group at most.
    overlap: True: in the end, groups take further tasks in that help the ones they serve.
    alone: the gain of a task in a group of its own. sweeps: how often at most every task may move.

    Of equal choices the one of the earlier tasks. `optimal` is False and `gap` unknown, always.
    Raises DataError where a value of the affinity is missing (see `Affinity.filled`).
    """
    values_TT = affinity.known()
    T = len(affinity.tasks)
    budget = check_budget(budget, T, "greedy")
    largest = T if largest is None else min(largest, T)
    if largest < 1 or largest * budget < T:
        raise UsageError(
            f"greedy: {budget} groups of at most {largest} tasks cannot hold {T}; raise one of "
            "them."
        )
    both_TT = (values_TT + values_TT.T).numpy()
    home_T = _joined(both_TT, budget, largest, alone)
    home_T = _moved(both_TT, home_T, budget, largest, alone, sweeps)
    names, home_T = np.unique(home_T, return_inverse=True)
    served_KT = torch.from_numpy(home_T[None, :] == np.arange(len(names))[:, None])
    _, group_KT = best_groups(values_TT, served_KT, largest, alone, overlap)
    gain_KT = hoa(affinity, group_KT, alone).gain_GT
    serving = dict(enumerate(home_T.tolist()))
    return made(affinity.tasks, group_KT, gain_KT, serving, False, NAN, "greedy-groups")


def _value(within: Array, size: Array, alone: float) -> Array:
    """Return the sum of a group's gains: `within` sums both directions of all its pairs."""
    return np.where(size > 1, within / np.maximum(size - 1, 1), alone)


def _joined(both_TT: Array, budget: int, largest: int, alone: float) -> npt.NDArray[np.intp]:
    """Return each task's group after joining while it gains, or while there are too many."""
    T = len(both_TT)
    home_T = np.arange(T)
    between = both_TT.copy()  # of two groups: both directions of all pairs across
    within, size = np.zeros(T), np.ones(T)
    left = T

    def gains_of(k: int) -> Array:
        joined = size[k] + size
        gain = _value(within[k] + within + between[k], joined, alone)
        gain -= _value(within[k], size[k], alone) + _value(within, size, alone)
        gain[(size == 0) | (joined > largest)] = -np.inf
        gain[k] = -np.inf
        return gain

    gain_KK = np.stack([gains_of(k) for k in range(T)])
    while left > 1:
        a, b = divmod(int(gain_KK.argmax()), T)
        if gain_KK[a, b] == -np.inf:
            break  # no two fit into one group any more
        if gain_KK[a, b] <= 0 and left <= budget:
            break
        within[a] += within[b] + between[a, b]
        size[a] += size[b]
        size[b] = within[b] = 0
        between[a] += between[b]
        between[:, a] += between[:, b]
        home_T[home_T == b] = a
        gain_KK[b] = gain_KK[:, b] = -np.inf
        gain_KK[a] = gain_KK[:, a] = gains_of(a)
        left -= 1
    if left > budget:  # joining got stuck at the largest size: fill groups up in order
        home_T = _filled_up(home_T, budget, largest)
    return home_T


def _filled_up(home_T: npt.NDArray[np.intp], budget: int, largest: int) -> npt.NDArray[np.intp]:
    """Return the same in `budget` groups: the smallest ones' tasks go where there is room."""
    names, counts = np.unique(home_T, return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")][:budget]
    room = {int(k): largest - int((home_T == k).sum()) for k in kept}
    moved_T = home_T.copy()
    for t in np.flatnonzero(~np.isin(home_T, kept)):
        k = next(k for k, free in room.items() if free > 0)
        moved_T[t] = k
        room[k] -= 1
    return moved_T


def _moved(
    both_TT: Array,
    home_T: npt.NDArray[np.intp],
    budget: int,
    largest: int,
    alone: float,
    sweeps: int,
) -> npt.NDArray[np.intp]:
    """Return the groups after moving single tasks, also into empty groups, while it gains."""
    _, home_T = np.unique(home_T, return_inverse=True)
    T, K = len(home_T), budget
    in_TK = np.zeros((T, K))
    in_TK[np.arange(T), home_T] = 1
    with_TK = both_TT @ in_TK  # of a task and a group: both directions of its pairs with members
    size = in_TK.sum(0)
    within = (in_TK * with_TK).sum(0) / 2
    for _ in range(sweeps):
        moves = 0
        for t in range(T):
            a = home_T[t]
            leaving = _emptied(within[a] - with_TK[t, a], size[a] - 1, alone)
            leaving -= _value(within[a], size[a], alone)
            gain = _value(within + with_TK[t], size + 1, alone) - _emptied(within, size, alone)
            gain[size >= largest] = -np.inf
            gain[a] = -leaving
            b = int(gain.argmax())
            # rounding must not send a task to and fro
            if b == a or gain[b] + leaving <= 1e-12 * (abs(gain[b]) + abs(leaving)):
                continue
            within[a] -= with_TK[t, a]
            within[b] += with_TK[t, b]
            size[a] -= 1
            size[b] += 1
            with_TK[:, a] -= both_TT[:, t]
            with_TK[:, b] += both_TT[:, t]
            home_T[t] = b
            moves += 1
        if not moves:
            break
    return home_T


def _emptied(within: Array, size: Array, alone: float) -> Array:
    """Return a group's value where it may be empty: then 0."""
    return np.where(size > 0, _value(within, size, alone), 0.0)
