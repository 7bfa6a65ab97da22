"""Which steps of a small model look at the graph at all.

Reading the graph costs about as much as a few layers. Where the tasks' gradients are few numbers,
and every task has a gradient in every row, one backward per task is over sooner. Whether tasks
share all rows is looked at in the 1st, 2nd, 4th, 8th, ... step with as many tasks present; as long
as they do not, in every step.

Shapes: F = numbers of present tasks that were met.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SMALL = 1 << 22
"""Numbers in the gradients of all tasks present, together."""


class Looks:
    """Counts the steps, and remembers what the last look found."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, bool]] = {}  # tasks present -> steps, last look was dense

    def due(self, tasks: int, numbers: int) -> bool:
        """Return whether this step is to read the graph.

        tasks: how many are present. numbers: in the shared parameters.
        """
        if tasks * numbers >= SMALL:
            return True
        steps, dense = self._met.get(tasks, (0, False))
        self._met[tasks] = steps + 1, dense
        return not dense or (steps + 1) & steps == 0

    def found(self, tasks: int, dense: bool) -> None:
        """Remember whether this step's tasks share all rows."""
        if tasks in self._met:
            self._met[tasks] = self._met[tasks][0], dense

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered; looks: int64 (F, 3): tasks present, steps, last look dense."""
        if not self._met:
            return {}
        lines = [(tasks, steps, int(dense)) for tasks, (steps, dense) in self._met.items()]
        return {"looks": torch.tensor(lines, dtype=torch.int64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        lines = state["looks"].tolist() if "looks" in state else []
        self._met = {tasks: (steps, bool(dense)) for tasks, steps, dense in lines}
