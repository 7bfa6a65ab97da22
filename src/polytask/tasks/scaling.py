"""What regression kinds share: the scaling learned on train, and undone before measuring.

A target in large units would otherwise drown the other tasks' losses. Both directions go through
float64: a float32 year keeps four digits after the mean is taken off.

Shapes: B = rows, H, W = height and width of a map.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.tasks import measures
from polytask.tasks.base import Kind, Metric


@dataclass(frozen=True)
class Scaled(Kind):
    """A kind whose target is a number in some unit; missing is NaN.

    mean, scale: in the target's unit; the loss sees (target - mean) / scale. `fit` learns both.
    unit: what the errors are reported in.
    """

    mean: float = 0.0
    scale: float = 1.0
    unit: str = "target units"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(
                f"A {self.name} kind needs a finite mean and a finite scale > 0; got mean "
                f"{self.mean} and scale {self.scale}. Leave both out to learn them from train."
            )

    @abstractmethod
    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor: ...

    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind with the mean and the population standard deviation of the labels.

        Raises DataError where the labels are all missing, all equal, or not finite.
        """
        self.check(target, task, "train")
        labels = target[~target.isnan()].double()
        if labels.numel() == 0:
            raise DataError(
                f"Task {task!r} ({self.name}): expected numbers in train, but every label is "
                "missing; give it some or leave the task out."
            )
        if bool((labels == labels[0]).all()):
            raise DataError(
                f"Task {task!r} ({self.name}): expected labels that differ, but all "
                f"{labels.numel()} of train are {labels[0].item():g}; there is nothing to learn, "
                "leave the task out."
            )
        scale, mean = torch.std_mean(labels, correction=0)
        return replace(self, mean=mean.item(), scale=scale.item())

    def check(self, target: Tensor, task: str, split: str) -> None:
        if not target.is_floating_point():
            raise DataError(
                f"Task {task!r} ({self.name}), split {split}: expected a floating-point target "
                f"with NaN for missing labels, got {target.dtype}; convert it with .float()."
            )
        infinite = target.isinf()
        if bool(infinite.any()):
            raise DataError(
                f"Task {task!r} ({self.name}), split {split}: expected finite numbers, or NaN for "
                f"missing, but {int(infinite.sum())} labels are infinite, the first in row "
                f"{infinite.nonzero()[0, 0].item()}; correct them or set them to missing."
            )

    def encode(self, target: Tensor) -> Tensor:
        return ((target.double() - self.mean) / self.scale).float()

    def present(self, encoded: Tensor) -> Tensor:
        return ~encoded.isnan()

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return float64 predictions and labels, both 1-D, in the target's own unit."""
        there = ~target.isnan()
        predicted = output.reshape(target.shape)[there].double() * self.scale + self.mean
        return predicted, target[there].double()

    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("RMSE", "min", self.unit, measures.rmse),
            Metric("MAE", "min", self.unit, measures.mae),
            Metric(
                "explained variance", "max", "fraction",
                partial(measures.explained_variance, self.mean, self.scale),
            ),
            Metric("R2", "max", "fraction", partial(measures.r2, self.mean, self.scale)),
        )  # fmt: skip
