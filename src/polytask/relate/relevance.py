"""How relevant sources are to a target, in one linear representation; samples by relevance.

Shapes: M = sources, K = width of the representation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError


def check_heads(heads_KM: Tensor, target_K: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """Return both in float64, or raise where they do not fit."""
    heads_KM = heads_KM.detach().to("cpu", torch.float64)
    target_K = target_K.detach().to("cpu", torch.float64)
    if heads_KM.ndim != 2 or target_K.shape != heads_KM.shape[:1]:
        raise UsageError(
            f"{who}: heads have shape {tuple(heads_KM.shape)}, the target's "
            f"{tuple(target_K.shape)}; give (K, M) and (K,)."
        )
    if not bool(heads_KM.isfinite().all() and target_K.isfinite().all()):
        raise DataError(f"{who}: a head is not finite.")
    return heads_KM, target_K


def allocate(
    relevance_M: Tensor,
    budget: int,
    *,
    floor: int = 0,
    power: float = 1.0,
    costs: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Return how many samples to draw of each source: `budget` in all, by |relevance|^power.

    floor: of every source at least so many. power: 1 is right for lasso relevance, 2 for ridge.
    costs: of one sample of each source; the budget is then of costs, numbers go by relevance over
        the root of the cost, and are rounded down. Without costs the largest remainders round up,
        of equal ones the earlier sources.

    No relevance at all: all sources alike.
    """
    M = len(relevance_M)
    cost_M = torch.ones(M).double() if costs is None else torch.tensor(costs).double()
    if len(cost_M) != M or not bool((cost_M > 0).all() and cost_M.isfinite().all()):
        raise UsageError(f"allocate: costs are to be {M} numbers > 0.")
    if floor < 0 or power <= 0:
        raise UsageError(f"allocate: floor is {floor}, power {power}; give floor >= 0, power > 0.")
    left = budget - floor * float(cost_M.sum())
    if left < 0:
        raise UsageError(
            f"allocate: a floor of {floor} for each of {M} sources exceeds the budget of {budget}."
        )
    weight_M = relevance_M.detach().to("cpu", torch.float64).abs().pow(power) / cost_M.sqrt()
    if not bool(weight_M.isfinite().all()):
        raise DataError("allocate: a relevance is not finite.")
    if not bool(weight_M.any()):
        weight_M = torch.ones(M).double()
    share_M = left * weight_M / (weight_M * cost_M).sum()
    count_M = share_M.floor().long() + floor
    if costs is None:
        rest = int(budget - count_M.sum())
        order = torch.sort(share_M - share_M.floor(), descending=True, stable=True).indices
        count_M[order[:rest]] += 1
    return tuple(count_M.tolist())
