"""How far tuned models lie from what is said to be their base, from a sample.

Shapes: R = the base and the tuned models, P = elements of a stretch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polytask.merge.plan import Part, Plan
from polytask.merge.window import Arena

FAR = 0.9
"""Distances from here on are warned of, in norms of the base. Two models that know nothing of each
other are as good as orthogonal, hence more than 1 apart; tuned copies mostly lie below 0.1."""

MATRICES = 16
"""Matrices that are looked at, spread over the model; norms and biases are alike in strangers."""

STRETCH = 1 << 12
"""Elements of a matrix that are looked at, in its middle."""


def distances(plan: Plan) -> dict[str, float]:
    """Return of each tuned model |tuned - base| / |base|, over a sample; empty without a base.

    Values that are not finite are left out: the merge itself names them.
    """
    items = [i for i in plan.items if i.merged and len(i.entry.shape) > 1 and i.entry.numel]
    if not plan.has_base or not items:
        return {}
    step = max(1, len(items) // MATRICES)
    arena = Arena(STRETCH * 8)
    squares = [0.0] * len(plan.labels)
    for item in items[::step]:
        count = min(STRETCH, item.entry.numel)
        start = (item.entry.numel - count) // 2
        sample_RP = torch.stack([_sample(part, start, count, arena) for part in item.parts])
        sample_RP[1:] -= sample_RP[0]
        found_R = sample_RP.nan_to_num_(0.0, 0.0, 0.0).square_().sum(dim=1)
        squares = [sum_ + one for sum_, one in zip(squares, found_R.tolist(), strict=True)]
    return {
        label: math.sqrt(square / squares[0]) if squares[0] else math.inf if square else 0.0
        for label, square in zip(plan.labels[1:], squares[1:], strict=True)
    }


def _sample(part: Part, start: int, count: int, arena: Arena) -> Tensor:
    raw = arena.one(count, part.dtype)
    part.read(start, raw)
    return raw.values_P.to(torch.float64, copy=True)


def warnings_of(plan: Plan) -> list[str]:
    """Return a line for each model that does not look tuned from the base."""
    return [
        f"{label} lies {far:.2g} times the base's own size away from {plan.labels[0]}; a copy that "
        "was tuned from it lies far below 1. Is that its base?"
        for label, far in distances(plan).items()
        if far >= FAR
    ]
