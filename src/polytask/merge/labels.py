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
    device = next(iter(family.base.values())).device

    def of_round(round: int) -> Callable[[Tensors], Iterator[Tensor]]:
        def each(shared: Tensors) -> Iterator[Tensor]:
            for index, task in enumerate(family.tasks):
                inputs, encoded = data[task.name]
                rows = draw.rows(round, index, row_count(inputs))
                target = encoded[rows.to(encoded.device)].to(device)
                output = family.output(task.name, shared, take(inputs, rows, device))
                total, count = task.kind.loss(output, target)
                yield (total / count.clamp(min=1)).sum()

        return each

    return of_round
