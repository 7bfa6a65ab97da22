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

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return summed squared errors of the scaled target, dim 0 summed away."""
        return squared_error(output, encoded).sum(0)
