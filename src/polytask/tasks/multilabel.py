"""Multilabel: several yes-or-no labels per row, read by one head. NaN is a missing label.

Shapes: B = rows, M = labels of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from polytask.errors import DataError, UsageError
from polytask.tasks import measures
from polytask.tasks.base import IGNORE, Kind, Metric
from polytask.tasks.binary import check_zero_one, needs_both, zero_one
from polytask.tasks.masked import binary_cross_entropy


@dataclass(frozen=True)
class Multilabel(Kind):
    """Yes or no for each of M labels: target float (B, M), NaN where missing; output logits (B, M).

    A label may be missing where others of its row are there; the loss counts labels, not rows.
    """

    labels: int

    name = "multilabel"

    def __post_init__(self) -> None:
        if self.labels < 1:
            raise UsageError(f"A multilabel kind needs at least one label; got {self.labels}.")

    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind as it is: nothing is learned, but each label must have both classes.

        Raises DataError, with the label's column, where one has not.
        """
        self.check(target, task, "train")
        for column, encoded in enumerate(zero_one(target).unbind(1)):
            needs_both(encoded, f"Task {task!r} ({self.name}), label {column}")
        return self

    def check(self, target: Tensor, task: str, split: str) -> None:
        where = f"Task {task!r} ({self.name}), split {split}"
        if target.ndim != 2 or target.shape[1] != self.labels:
            raise DataError(
                f"{where}: expected a target of shape (rows, {self.labels}), got "
                f"{tuple(target.shape)}; give the kind the number of columns there are."
            )
        check_zero_one(target, where)

    def encode(self, target: Tensor) -> Tensor:
        return zero_one(target)

    def present(self, encoded: Tensor) -> Tensor:
        return ~encoded.isnan()

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, self.labels)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the cross entropy (in nats) summed over labels that are there."""
        return binary_cross_entropy(output, encoded).sum()

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return float64 probabilities and int64 labels, (rows with any label, M).

        A label missing from a row that has others is -100, which the metrics leave out.
        """
        encoded = zero_one(target)
        labelled = ~encoded.isnan().all(1)
        truth = encoded[labelled].nan_to_num(nan=IGNORE).to(torch.int64)
        return output[labelled].double().sigmoid(), truth

    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("macro AUROC", "max", "fraction", partial(measures.macro_auroc, self.labels)),
            Metric("micro F1", "max", "fraction", partial(measures.micro_f1, self.labels)),
        )
