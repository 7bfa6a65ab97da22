"""inconsistency: rows on which several tasks say different things about the same.

Source: the consistency energy of Zamir et al., "Robust Learning Through Cross-Task Consistency",
    CVPR 2020, https://arxiv.org/abs/2006.04096
Differs from the source: known from its abstract and definition. For probabilities the divergence of
    Jensen and Shannon in place of a pixel distance.
Shapes: A = paths, N = rows, C = classes, ... = positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.bald import bald


def inconsistency(paths: Tensor, *, classes: bool) -> Tensor:
    """Return scores (N,), 0 where all paths agree.

    paths: one quantity as A >= 2 paths give it: its own task's head, and what the other tasks imply
        (the sea is there where depth says so...). classes: probabilities (A, N, ..., C); else
        numbers (A, N, ...): each path's distance from the mean of all, on average, in units of the
        spread of that distance over rows.
    """
    if paths.ndim < 2 or len(paths) < 2:
        raise UsageError("inconsistency: give at least 2 paths, (A, N, ...).")
    if classes:
        return bald(paths)  # the divergence of Jensen and Shannon is the same expression
    paths = paths.detach().to("cpu", torch.float64)
    if not bool(paths.isfinite().all()):
        raise DataError("inconsistency: a prediction is not finite.")
    apart_AN = (paths - paths.mean(0)).abs().reshape(len(paths), paths.shape[1], -1).mean(2)
    spread_A1 = apart_AN.std(1, keepdim=True)
    return (apart_AN / spread_A1.where(spread_A1 > 0, torch.ones(()).double())).mean(0)
