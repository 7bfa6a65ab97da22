"""How far tuned models lie from what is said to be their base, from a sample.

Shapes: P = elements of a stretch.
"""

from __future__ import annotations

import math

import torch

from polytask.merge.base import GRAIN
from polytask.merge.plan import Plan

FAR = 0.9
"""Distances from here on are warned of, in norms of the base. Two models that know nothing of each
other are as good as orthogonal, hence more than 1 apart; tuned copies mostly lie below 0.1."""

MATRICES = 64
"""Matrices that are looked at, spread over the model; norms and biases are alike in strangers."""


def distances(plan: Plan) -> dict[str, float]:
    """Return of each tuned model |tuned - base| / |base|, over a sample; empty without a base.

    Values that are not finite are left out: the merge itself names them.
    """
    items = [i for i in plan.items if i.merged and len(i.entry.shape) > 1 and i.entry.numel]
    if not plan.has_base or not items:
        return {}
    step = max(1, len(items) // MATRICES)
    scratch = torch.empty(GRAIN * 8, dtype=torch.uint8)
    base_P, tuned_P = torch.empty(2, GRAIN, dtype=torch.float64)
    squares = [0.0] * len(plan.labels)
    for item in items[::step]:
        count = min(GRAIN, item.entry.numel)
        start = (item.entry.numel - count) // 2
        item.parts[0].read(start, base_P[:count], scratch)
        squares[0] += _squares(base_P[:count])
        for model, part in enumerate(item.parts[1:], 1):
            part.read(start, tuned_P[:count], scratch)
            squares[model] += _squares(tuned_P[:count] - base_P[:count])
    return {
        label: math.sqrt(square / squares[0]) if squares[0] else math.inf * square
        for label, square in zip(plan.labels[1:], squares[1:], strict=True)
    }


def _squares(values_P: torch.Tensor) -> float:
    return float(values_P.nan_to_num(0.0, 0.0, 0.0).square().sum())


def warnings_of(plan: Plan) -> list[str]:
    """Return a line for each model that does not look tuned from the base."""
    return [
        f"{label} lies {far:.2g} times the base's own size away from {plan.labels[0]}; a copy that "
        "was tuned from it lies far below 1. Is that its base?"
        for label, far in distances(plan).items()
        if far >= FAR
    ]
