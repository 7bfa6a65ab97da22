"""DenseRegression: one number per pixel (depth, distance). NaN is a missing label.

Shapes: B = rows, H, W = height and width of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from polytask.tasks.base import Metric
from polytask.tasks.masked import squared_error
from polytask.tasks.scaling import Scaled


@dataclass(frozen=True)
class DenseRegression(Scaled):
    """A number per pixel: target float (B, H, W), NaN where missing; output (B, 1, H, W).

    mean, scale: in the target's unit; the loss sees (target - mean) / scale. `fit` learns both.
    unit: what RMSE and MAE are reported in.
    """

    name = "dense regression"
    reads = "map"

    def head(self, width: int) -> nn.Module:
        return nn.Conv2d(width, 1, kernel_size=1)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the squared error of the scaled target summed over labelled pixels."""
        return squared_error(output, encoded).sum()

    def metrics(self) -> tuple[Metric, ...]:
        return super().metrics()[:2]
