"""Regression: one number per row. NaN is a missing label.

Shapes: B = rows, K = regression tasks side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from polytask.tasks.masked import squared_error
from polytask.tasks.scaling import Scaled


@dataclass(frozen=True)
class Regression(Scaled):
    """A number per row: target float (B,), NaN where missing; output (B, 1).

    mean, scale: in the target's unit; the loss sees (target - mean) / scale. `fit` learns both.
    unit: what RMSE and MAE are reported in.
    """

    name = "regression"
    stacks = True

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return summed squared errors of the scaled target and counts, dim 0 summed away."""
        error, there = squared_error(output, encoded)
        return error.sum(0), there.sum(0)
