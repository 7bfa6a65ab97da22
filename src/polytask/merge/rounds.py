"""What the searches without labels share: batches of every task, and a search of coefficients.

Shapes: T = tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.batches import Draw, Unlabelled, row_count, take, unlabelled
from polytask.merge.classes import entropy
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.family import Family, Inputs, Tensors
from polytask.merge.search import Saving, SearchState, search
from polytask.tasks import Task

OfTask = Callable[[Task, Tensors, Inputs], Tensor]
"""Task, shared tensors, a batch of its inputs -> what is minimised."""


@dataclass(frozen=True)
class Rounds:
    """A family and each task's inputs; `losses` goes over the tasks of one round."""

    family: Family
    inputs: dict[str, Inputs]
    draw: Draw

    @classmethod
    def of(cls, family: Family, data: Unlabelled, who: str, batch_size: int, seed: int) -> Self:
        """Return the rounds over unlabelled data. Raises UsageError where a task has none."""
        return cls(family, unlabelled(family.tasks, data, who), Draw(batch_size, seed))

    def batch(self, round: int, index: int) -> Inputs:
        """Return the inputs of one task in one round."""
        inputs = self.inputs[self.family.tasks.names[index]]
        rows = self.draw.rows(round, index, row_count(inputs))
        return take(inputs, rows, self.device)

    def losses(self, round: int, of_task: OfTask) -> Callable[[Tensors], Iterator[Tensor]]:
        """Return what `pull` asks for: shared tensors -> one loss per task."""

        def each(shared: Tensors) -> Iterator[Tensor]:
            for index, task in enumerate(self.family.tasks):
                yield of_task(task, shared, self.batch(round, index))

        return each

    @property
    def device(self) -> torch.device:
        return next(iter(self.family.base.values())).device


def sure(family: Family, who: str) -> OfTask:
    """Return the entropy of a task's predicted classes. who: the method, for its errors."""

    def of_task(task: Task, shared: Tensors, batch: Inputs) -> Tensor:
        return entropy(task, family.output(task.name, shared, batch), who)

    return of_task


def search_coefficients(
    who: str,
    rounds: Rounds,
    coefficients: Coefficients,
    of_task: OfTask,
    count: int,
    learning_rate: float,
    *,
    state: SearchState | None = None,
    saving: Saving | None = None,
) -> SearchState:
    """Return the state after a search by Adam of coefficients kept in [0, 1]."""

    def gradients(round: int, values: Tensors) -> Tensor:
        return pull(coefficients.merge(values["coefficients"]), rounds.losses(round, of_task))

    def clamp(values: Tensors) -> None:
        values["coefficients"].clamp_(0.0, 1.0)

    return search(
        who, {"coefficients": coefficients.values}, lambda ps: torch.optim.Adam(ps, learning_rate),
        gradients, count, after=clamp, state=state, saving=saving,
    )  # fmt: skip


def check_rate(who: str, learning_rate: float, batch_size: int) -> None:
    """Raise UsageError where the two are no rate and no size."""
    if not learning_rate > 0 or batch_size < 1:
        raise UsageError(
            f"{who}: learning_rate is {learning_rate} and batch_size {batch_size}; give a rate > 0 "
            "and a size >= 1."
        )
