"""What kinds with integer classes share: the target's form, its checks, and cross entropy.

Shapes: B = rows, C = classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.tasks.base import IGNORE, Kind


@dataclass(frozen=True)
class Classes(Kind):
    """A kind whose target is a class index, 0 to classes - 1; missing is -100.

    names: of the classes, in order of their index, or none.
    """

    classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UsageError(f"A {self.name} kind needs at least 2 classes; got {self.classes}.")
        if self.names and len(self.names) != self.classes:
            raise UsageError(
                f"A {self.name} kind of {self.classes} classes needs as many names, or none; got "
                f"{len(self.names)}."
            )

    @abstractmethod
    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor: ...

    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind as it is: nothing is learned, but two classes must occur.

        Raises DataError where labels are all missing, of one class, or outside the classes.
        """
        self.check(target, task, "train")
        self.occurring(target, task)
        return self

    def occurring(self, target: Tensor, task: str) -> tuple[int, ...]:
        """Return the classes that occur in train, ascending, or raise where they are too few."""
        found = [index for index, count in enumerate(self.counts(target)) if count]
        if not found:
            raise DataError(
                f"Task {task!r} ({self.name}): expected class indices in train, but every label "
                "is missing; give it some labels or leave the task out."
            )
        if len(found) == 1:
            raise DataError(
                f"Task {task!r} ({self.name}): expected at least two classes in train, but every "
                f"label is {self.named(found[0])}; add rows of another or leave the task out."
            )
        return tuple(found)

    def counts(self, target: Tensor) -> list[int]:
        """Return how often each class occurs."""
        labels = target[target != IGNORE].long()
        return torch.bincount(labels, minlength=self.classes).tolist()

    def named(self, index: int) -> str:
        """Return how messages call a class: its index, and its name where it has one."""
        return f"class {index}" + (f" ({self.names[index]!r})" if self.names else "")

    def check(self, target: Tensor, task: str, split: str) -> None:
        where = f"Task {task!r} ({self.name}), split {split}"
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise DataError(
                f"{where}: expected an integer target with {IGNORE} for missing labels, got "
                f"{target.dtype}; convert it with .long() after filling missing labels."
            )
        strange = ((target < 0) | (target >= self.classes)) & (target != IGNORE)
        if bool(strange.any()):
            first = strange.nonzero()[0]
            raise DataError(
                f"{where}: expected classes 0 to {self.classes - 1}, or {IGNORE} for missing, got "
                f"{int(target[tuple(first)])} in row {first[0].item()}; recode it or raise the "
                "kind's number of classes."
            )

    def encode(self, target: Tensor) -> Tensor:
        return target.long()

    def present(self, encoded: Tensor) -> Tensor:
        return encoded != IGNORE
