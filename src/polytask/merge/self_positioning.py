"""Self Positioning: a place between the tuned models, found by descent on a few balanced labels.

Source: Li et al., "Improving General Text Embedding Model: Tackling Task Conflict and Data
    Imbalance through Model Merging", 2024, https://arxiv.org/abs/2410.15035
Differs from the source: only its abstract was at hand. Here the coefficients of the task vectors
    start at 1/T, the average, and are free in sign and sum; the loss is each task's own, and the
    probe set has equally many rows of every task.
Shapes: T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.batches import Draw, Labelled, labelled, row_count, take
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.labels import labelled_losses
from polytask.merge.rounds import check_rate
from polytask.merge.search import Saving, SearchState, search


@dataclass(frozen=True)
class SelfPositioning:
    """Base + one coefficient per task vector, by stochastic gradient descent on a probe set.

    probe: rows of each task; the first of a seeded shuffle. learning_rate, momentum: of the
        descent. batch_size: rows of a task per round.

    Takes any kind of task.
    """

    probe: int = 128
    learning_rate: float = 1e-2
    momentum: float = 0.0
    rounds: int = 200
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("SelfPositioning", self.learning_rate, self.batch_size)
        if self.probe < 1:
            raise UsageError(f"SelfPositioning: probe is {self.probe}; give rows >= 1 per task.")

    def __call__(
        self,
        family: Family,
        data: Labelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors; learned: the coefficients, (T,).

        data: task -> inputs and raw targets, at least `probe` rows each.
        Raises UsageError where a task has fewer rows, since the probe would not be balanced.
        """
        found = labelled(family.tasks, data, "SelfPositioning")
        probes = {}
        for index, (task, (inputs, encoded)) in enumerate(found.items()):
            if row_count(inputs) < self.probe:
                raise UsageError(
                    f"SelfPositioning: task {task!r} has {row_count(inputs)} rows, fewer than the "
                    f"{self.probe} of a balanced probe; give more, or a smaller probe."
                )
            rows = Draw(self.probe, self.seed).rows(0, index, row_count(inputs))
            probes[task] = (take(inputs, rows, encoded.device), encoded[rows])
        losses = labelled_losses(family, probes, Draw(self.batch_size, self.seed))
        coefficients = Coefficients(family.base, family.deltas, 1 / len(found), "task")

        def gradients(round: int, values: Tensors) -> Tensor:
            return pull(coefficients.merge(values["coefficients"]), losses(round))

        done = search(
            "SelfPositioning", {"coefficients": coefficients.values},
            lambda ps: torch.optim.SGD(ps, self.learning_rate, self.momentum),
            gradients, self.rounds, state=state, saving=saving,
        )  # fmt: skip
        lam = done.values["coefficients"]
        return Merged(coefficients.merge(lam), learned={"coefficients": lam}, losses=done.losses)
