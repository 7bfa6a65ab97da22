"""Rows per task for the methods with data: the rows of a round depend on seed and round alone.

So a search that goes on from a saved round sees what it would have seen. Each task's rows are
shuffled and read through, then shuffled anew.

Shapes: N = rows of a task, B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.family import Inputs
from polytask.tasks import TaskSet

Unlabelled = Mapping[str, Inputs]
"""Task -> inputs, rows in dim 0; each task's own, or the same for several."""

Labelled = Mapping[str, tuple[Inputs, Tensor]]
"""Task -> inputs and raw targets, of equally many rows."""


@dataclass(frozen=True)
class Draw:
    """Which rows a round takes of a task: `size` of them (all, where there are fewer)."""

    size: int
    seed: int

    def rows(self, round: int, task: int, rows: int) -> Tensor:
        """Return the indices of a round's rows, each at most once where rows >= size."""
        size = min(self.size, rows)
        first = round * size
        index: list[Tensor] = []
        while size:
            turn, start = divmod(first, rows)
            taken = _shuffled(rows, self.seed, turn, task)[start : start + size]
            index.append(taken)
            first, size = first + len(taken), size - len(taken)
        return torch.cat(index)


def unlabelled(tasks: TaskSet, data: Unlabelled, who: str) -> dict[str, Inputs]:
    """Return each task's inputs, or raise UsageError where a task has none."""
    _check(tasks, {name: row_count(inputs) for name, inputs in data.items()}, who)
    return {task.name: data[task.name] for task in tasks}


def labelled(tasks: TaskSet, data: Labelled, who: str) -> dict[str, tuple[Inputs, Tensor]]:
    """Return each task's inputs and encoded targets.

    Raises UsageError where a task has none, or rows without a target, and DataError where a target
    is not of the task's kind.
    """
    _check(tasks, {name: row_count(inputs) for name, (inputs, _) in data.items()}, who)
    found: dict[str, tuple[Inputs, Tensor]] = {}
    for task in tasks:
        inputs, target = data[task.name]
        if len(target) != row_count(inputs):
            raise UsageError(
                f"{who}: task {task.name!r} has {row_count(inputs)} rows and {len(target)} "
                "targets; give one target a row, missing ones as the kind marks them."
            )
        task.kind.check(target, task.name, "merge")
        found[task.name] = (inputs, task.kind.encode(target))
    return found


def row_count(inputs: Inputs) -> int:
    """Return the number of rows."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def take(inputs: Inputs, index: Tensor, device: torch.device) -> Inputs:
    """Return some rows, on a device."""
    if isinstance(inputs, Tensor):
        return inputs[index.to(inputs.device)].to(device)
    return {name: value[index.to(value.device)].to(device) for name, value in inputs.items()}


def chunks(inputs: Inputs, size: int, device: torch.device) -> Iterator[Inputs]:
    """Yield all rows in their order, `size` at a time, on a device."""
    for index in torch.split(torch.arange(row_count(inputs)), size):
        yield take(inputs, index, device)


def some(inputs: Inputs, count: int, seed: int, task: int) -> Inputs:
    """Return `count` rows drawn without repeats, or all where there are fewer."""
    rows = row_count(inputs)
    if rows <= count:
        return inputs
    index = Draw(count, seed).rows(0, task, rows)
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return take(inputs, index, first.device)


def _shuffled(rows: int, seed: int, turn: int, task: int) -> Tensor:
    # Seeds are spread so that neighbours in seed, turn or task share no shuffle.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + task) * 1_000_003 + turn)
    return torch.randperm(rows, generator=generator)


def _check(tasks: TaskSet, rows: Mapping[str, int], who: str) -> None:
    for task in tasks:
        if not rows.get(task.name):
            raise UsageError(
                f"{who} needs rows of every task; task {task.name!r} has none. Give data[task], or "
                "merge a family without it."
            )
    strange = [name for name in rows if name not in tasks.names]
    if strange:
        raise UsageError(
            f"{who}: data for {', '.join(map(repr, strange))}, which the family does not have; its "
            f"tasks: {', '.join(tasks.names)}."
        )
