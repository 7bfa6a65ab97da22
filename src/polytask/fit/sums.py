"""Mean losses and weights of the updates since the last validation.

Shapes: T = tasks of the run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polytask.balance import Weights


class LossSums:
    """Sums of losses and weights per task since the last validation.

    Updates are held as they come and added up by the hundred: reading numbers back waits for the
    device, and even on the CPU an addition costs as much as a small layer. They are added one
    after another, so that it does not matter when, and a resumed run has the same sums.
    """

    names = ("losses", "weights", "updates")
    held = 256

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self._at = {task: i for i, task in enumerate(tasks)}
        self._held: list[Weights] = []
        self._sums = {name: torch.zeros(len(tasks), dtype=torch.float64) for name in self.names}

    def add(self, weights: Weights) -> None:
        """Count one update."""
        self._held.append(weights)
        if len(self._held) >= self.held:
            self._add_up()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums, (T,) each, as a checkpoint keeps them; change them in place to restore."""
        self._add_up()
        return self._sums

    def _add_up(self) -> None:
        if not self._held:
            return
        alike: dict[tuple[str, ...], list[int]] = {}
        for n, weights in enumerate(self._held):
            alike.setdefault(weights.tasks, []).append(n)
        shape = len(self._held), len(self._at)
        rows = {name: torch.zeros(shape, dtype=torch.float64) for name in self.names}
        for tasks, at in alike.items():
            if not tasks:
                continue
            index = torch.tensor(at)[:, None], torch.tensor([self._at[t] for t in tasks])
            rows["losses"][index] = torch.stack([self._held[n].losses_K for n in at]).double().cpu()
            rows["weights"][index] = (
                torch.stack([self._held[n].weights_K for n in at]).double().cpu()
            )
            rows["updates"][index] = 1.0
        self._held.clear()
        for name, sums_T in self._sums.items():
            # numpy's accumulate adds strictly in order; a sum over a dimension does not.
            in_order = np.add.accumulate(torch.cat([sums_T[None], rows[name]]).numpy())
            sums_T.copy_(torch.from_numpy(in_order[-1]))

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return mean loss and mean weight of every task seen."""
        updates = self.tensors["updates"].tolist()
        losses, weights = self.tensors["losses"].tolist(), self.tensors["weights"].tolist()
        seen = {task: i for task, i in self._at.items() if updates[i]}
        return (
            {task: losses[i] / updates[i] for task, i in seen.items()},
            {task: weights[i] / updates[i] for task, i in seen.items()},
        )

    def reset(self) -> None:
        for tensor in self.tensors.values():
            tensor.zero_()
