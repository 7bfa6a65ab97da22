"""The tasks' own losses on labelled rows, for the searches that have labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from polytask.merge.batches import Draw, row_count, take
from polytask.merge.family import Family, Inputs, Tensors


def labelled_losses(
    family: Family, data: Mapping[str, tuple[Inputs, Tensor]], draw: Draw
) -> Callable[[int], Callable[[Tensors], Iterator[Tensor]]]:
    """Return round -> what `pull` asks for: each task's mean loss over the labels it drew.

    data: task -> inputs and encoded targets. A task whose rows of a round have no label adds 0.
    """

    def of_round(round: int) -> Callable[[Tensors], Iterator[Tensor]]:
        def each(shared: Tensors) -> Iterator[Tensor]:
            for index in range(len(family.tasks)):
                yield task_loss(family, index, data, draw, round, shared)

        return each

    return of_round


def task_loss(
    family: Family,
    index: int,
    data: Mapping[str, tuple[Inputs, Tensor]],
    draw: Draw,
    round: int,
    shared: Tensors,
) -> Tensor:
    """Return the mean loss of the family's task at `index` over the labels a round draws."""
    device = next(iter(family.base.values())).device
    task = tuple(family.tasks)[index]
    inputs, encoded = data[task.name]
    rows = draw.rows(round, index, row_count(inputs))
    target = encoded[rows.to(encoded.device)].to(device)
    output = family.output(task.name, shared, take(inputs, rows, device))
    total, count = task.kind.loss(output, target)
    return (total / count.clamp(min=1)).sum()
