"""Multiclass: one of several classes per row. -100 is a missing label.

Shapes: B = rows, C = classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from torch import Tensor, nn

from polytask.errors import DataError
from polytask.tasks import measures
from polytask.tasks.base import IGNORE, Metric
from polytask.tasks.classes import Classes
from polytask.tasks.masked import cross_entropy


@dataclass(frozen=True)
class Multiclass(Classes):
    """One of C classes per row: target int64 (B,), -100 where missing; output logits (B, C).

    names: of the classes, or none. seen: the classes train has, which `fit` learns; None before.
    """

    seen: tuple[int, ...] | None = None

    name = "multiclass"

    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind with the classes that occur among the labels.

        Raises DataError where labels are all missing, of one class, or outside the classes.
        """
        # Fitted anew, so that an earlier fit's classes do not judge these labels.
        fresh = replace(self, seen=None)
        fresh.check(target, task, "train")
        return replace(fresh, seen=fresh.occurring(target, task))

    def check(self, target: Tensor, task: str, split: str) -> None:
        """Raise DataError for a class outside the range or, once fitted, one train never saw."""
        super().check(target, task, split)
        if self.seen is None:
            return
        for index, count in enumerate(self.counts(target)):
            if count and index not in self.seen:
                raise DataError(
                    f"Task {task!r} ({self.name}), split {split}: {self.named(index)} occurs in "
                    f"{count} rows but never in train, so no model can learn it; move rows of it "
                    "to train, merge the class with another, or set these labels to missing."
                )

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, self.classes)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the cross entropy (in nats) summed over labels that are there."""
        return cross_entropy(output, encoded)

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class and the label, both int64, of the rows with a label."""
        there = target != IGNORE
        return output[there].argmax(1), target[there].long()

    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("accuracy", "max", "fraction", partial(measures.accuracy, self.classes)),
            Metric("macro F1", "max", "fraction", partial(measures.macro_f1, self.classes)),
        )
