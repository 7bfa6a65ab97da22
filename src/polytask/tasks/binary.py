"""Binary: yes or no per row. NaN is a missing label.

Shapes: B = rows, K = binary tasks side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from polytask.errors import DataError
from polytask.tasks import measures
from polytask.tasks.base import IGNORE, Kind, Metric
from polytask.tasks.masked import binary_cross_entropy


@dataclass(frozen=True)
class Binary(Kind):
    """Yes or no per row: target float (B,), 0, 1, or NaN where missing; output logits (B, 1).

    Integer and bool targets are taken too; -100 is missing there.
    """

    name = "binary"
    stacks = True

    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind as it is: nothing is learned, but both classes must occur.

        Raises DataError where labels are all missing, of one class, or not 0 and 1.
        """
        self.check(target, task, "train")
        needs_both(zero_one(target), f"Task {task!r} ({self.name})")
        return self

    def check(self, target: Tensor, task: str, split: str) -> None:
        check_zero_one(target, f"Task {task!r} ({self.name}), split {split}")

    def encode(self, target: Tensor) -> Tensor:
        return zero_one(target)

    def present(self, encoded: Tensor) -> Tensor:
        return ~encoded.isnan()

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return summed cross entropies (in nats), dim 0 summed away."""
        return binary_cross_entropy(output, encoded).sum(0)

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities in float64, where large logits do not tie, and int64 labels."""
        encoded = zero_one(target)
        there = ~encoded.isnan()
        return output.reshape(target.shape)[there].double().sigmoid(), encoded[there].long()

    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("AUROC", "max", "fraction", measures.auroc),
            Metric("average precision", "max", "fraction", measures.average_precision),
            Metric("accuracy", "max", "fraction", measures.binary_accuracy),
        )


def zero_one(target: Tensor) -> Tensor:
    """Return a yes-or-no target as float32: 0, 1, or NaN where missing."""
    if target.is_floating_point() or target.dtype == torch.bool:
        return target.float()
    return torch.where(target == IGNORE, torch.nan, target.float())


def check_zero_one(target: Tensor, where: str) -> None:
    """Raise DataError, opened with `where`, unless every value is 0, 1 or missing."""
    encoded = zero_one(target)
    strange = ~((encoded == 0) | (encoded == 1) | encoded.isnan())
    if bool(strange.any()):
        first = strange.nonzero()[0]
        raise DataError(
            f"{where}: expected 0, 1 or missing (NaN), got {encoded[tuple(first)].item():g} in "
            f"row {first[0].item()}; recode the target or choose another kind."
        )


def needs_both(encoded: Tensor, where: str) -> None:
    """Raise DataError, opened with `where`, unless 0 and 1 both occur among the train labels."""
    labels = encoded[~encoded.isnan()]
    if labels.numel() == 0:
        raise DataError(
            f"{where}: expected 0 and 1 in train, but every label is missing; give it some labels "
            "or leave it out."
        )
    if bool((labels == labels[0]).all()):
        raise DataError(
            f"{where}: expected both classes in train, but all {labels.numel()} labels are "
            f"{labels[0].item():g}; add rows of the other class or leave it out."
        )
