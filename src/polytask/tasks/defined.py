"""Metrics that are NaN where they have no value, instead of 0 and a warning.

A validation split may hold one class of a rare task. torchmetrics then warns and answers 0 (AUROC)
or 1 (a perfect R2), which a best checkpoint would be chosen by.

This file imports torchmetrics, so only `measures` imports it, and late.

Shapes: N = labels of an update, M = columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from polytask.tasks.base import IGNORE


class Defined(Metric):
    """The value of `metric`; NaN without labels or, where `differing`, with equal labels only.

    mean, scale: predictions and labels are standardised with them first. That changes no score
        that is free of units, and torchmetrics' R2 takes sums of squares below 1e-4 for 0.
    """

    full_state_update = False
    lowest: Tensor
    highest: Tensor
    labels: Tensor

    def __init__(
        self, metric: Metric, differing: bool = False, mean: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.metric = metric
        self.differing = differing
        self.mean = mean
        self.scale = scale
        self.add_state("labels", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("lowest", torch.tensor(torch.inf, dtype=torch.float64), dist_reduce_fx="min")
        self.add_state(
            "highest", torch.tensor(-torch.inf, dtype=torch.float64), dist_reduce_fx="max"
        )

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take predictions and labels as the inner metric does; none at all changes nothing."""
        if target.numel() == 0:
            return
        self.labels += target.numel() if target.is_floating_point() else (target != IGNORE).sum()
        if self.differing:
            self.lowest = torch.minimum(self.lowest, target.min().double())
            self.highest = torch.maximum(self.highest, target.max().double())
        if (self.mean, self.scale) != (0.0, 1.0):
            prediction = (prediction - self.mean) / self.scale
            target = (target - self.mean) / self.scale
        self.metric.update(prediction, target)

    def compute(self) -> Tensor:
        """Return a scalar."""
        if self.labels == 0 or (self.differing and self.lowest == self.highest):
            return self.lowest.new_tensor(torch.nan)
        value = self.metric.compute()
        assert isinstance(value, Tensor)
        return value

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


class MeanOverColumns(Metric):
    """The mean of one metric per column, over the columns whose value is not NaN.

    Labels of -100 are left out, each column by itself.
    """

    full_state_update = False

    def __init__(self, columns: Sequence[Metric]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)

    def update(self, prediction_NM: Tensor, target_NM: Tensor) -> None:
        for column, prediction_N, target_N in zip(
            self.columns, prediction_NM.unbind(1), target_NM.unbind(1), strict=True
        ):
            assert isinstance(column, Metric)
            there_N = target_N != IGNORE
            column.update(prediction_N[there_N], target_N[there_N])

    def compute(self) -> Tensor:
        """Return a scalar."""
        values = [column.compute() for column in self.columns if isinstance(column, Metric)]
        return torch.stack([value.double() for value in values]).nanmean()

    def reset(self) -> None:
        super().reset()
        for column in self.columns:
            assert isinstance(column, Metric)
            column.reset()
