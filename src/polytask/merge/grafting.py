"""Grafting: find the few entries that carry a task's skill, and graft those onto the base.

Source: Panigrahi et al., "Task-Specific Skill Localization in Fine-tuned Language Models", ICML
    2023, https://arxiv.org/abs/2302.06600, and the authors' code
Differs from the source: its masks start at random logits in [0, 1], these at 0. It keeps the round
    whose rounded mask scores best on training and validation data; this is the last. The starting
    region holds all of the largest changes, the source's code one less. The source grafts one task
    at a time; the merged model here takes all regions at once, the mean of changes where they meet.
Shapes: T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.batches import Draw, Labelled, labelled
from polytask.merge.checks import check_share
from polytask.merge.coefficients import pull
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.labels import task_loss
from polytask.merge.regions import Regions, most_moved
from polytask.merge.rounds import check_rate
from polytask.merge.search import Saving, SearchState, search


@dataclass(frozen=True)
class Grafting:
    """Regions that keep each task's loss low: W_0 + mask (W_t - W_0), found by descent on the mask.

    mask = start + (1 - 2 start) sigmoid(logits - bias), at the end rounded to 0 or 1, where `start`
    is 1 for the `share` of entries that changed the most. So a large bias means few entries join.
    learning_rate: of plain gradient descent on the logits; as large as `bias` makes slopes small.
    rounds: descents; 0 leaves the starting region, and needs no data. batch_size: rows of a task
    per round.

    Takes any kind of task. Memory: 3 copies of the shared tensors per task.
    """

    share: float = 1e-7
    bias: float = 10.0
    learning_rate: float = 1e7
    rounds: int = 10
    batch_size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("Grafting", "share", self.share)
        check_rate("Grafting", self.learning_rate, self.batch_size)
        if self.rounds < 0:
            raise UsageError(f"Grafting: rounds is {self.rounds}; give a number >= 0.")

    def __call__(
        self,
        family: Family,
        data: Labelled | None = None,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the base with all tasks' regions; see `localise` for its arguments.

        learned: "overlap", (T, T), and "share", (T,), of the regions, see `Regions`; and each
            tensor's regions as "region/" and its name.
        """
        regions, losses = self.localise(family, data, state=state, saving=saving)
        merged = regions.union(family)
        return Merged(merged.shared, learned=merged.learned, losses=losses)

    def localise(
        self,
        family: Family,
        data: Labelled | None = None,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> tuple[Regions, tuple[float, ...]]:
        """Return every task's region, and the summed losses of every round.

        data: task -> inputs and raw targets; None only where rounds is 0.
        """
        deltas = family.deltas
        start = most_moved(deltas, self.share)
        if self.rounds == 0:
            return start, ()
        if data is None:
            raise UsageError("Grafting: give data with labels of every task, or rounds=0.")
        found = labelled(family.tasks, data, "Grafting")
        draw = Draw(self.batch_size, self.seed)

        def gradients(round: int, values: Tensors) -> Tensor:
            total = torch.zeros(())
            for t in range(len(found)):  # one task's graph at a time
                merged = {
                    name: base + self._mask(start.kept[name][t], values[name][t]) * deltas[name][t]
                    for name, base in family.base.items()
                }

                def alone(shared: Tensors, t: int = t) -> list[Tensor]:
                    return [task_loss(family, t, found, draw, round, shared)]

                total = total + pull(merged, alone).cpu()
            return total

        done = search(
            "Grafting", {name: torch.zeros_like(delta) for name, delta in deltas.items()},
            lambda logits: torch.optim.SGD(logits, self.learning_rate),
            gradients, self.rounds, state=state, saving=saving,
        )  # fmt: skip
        kept = {
            name: self._mask(start.kept[name], logits) > 0.5 for name, logits in done.values.items()
        }
        return Regions(kept), done.losses

    def _mask(self, start: Tensor, logits: Tensor) -> Tensor:
        sign = 1 - 2 * start.to(logits.dtype)
        return start + sign * torch.sigmoid(logits - self.bias)
