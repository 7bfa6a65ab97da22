"""Representation Surgery: per task, what the merged model's features are off by is taken off.

    z' = z - W_up relu(W_down z)

Source: Yang et al., "Representation Surgery for Multi-Task Model Merging", ICML 2024,
    https://arxiv.org/abs/2402.02705
Differs from the source: features are computed once, since neither model changes, and not anew in
    every step. W_up starts at 0, as in the authors' code, so that it begins as the merged model.
    FusionBench's module, trained in the same rounds, corrects the same.
Shapes: B = rows (with positions), F = channels of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.merge.batches import Draw, Unlabelled, chunks, unlabelled
from polytask.merge.coefficients import named
from polytask.merge.family import Family, Merged, Tensors, wide
from polytask.merge.rounds import check_rate
from polytask.merge.search import Saving, SearchState, search


class Operation(nn.Module):
    """Features -> features of the same shape, (..., F): z - W_up relu(W_down z)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        corrected: Tensor = features - self.up(functional.relu(self.down(features)))
        return corrected


@dataclass(frozen=True)
class Surgery:
    """A small module per task, put before its head, that brings features back to the tuned ones.

    rank: of the correction. learning_rate: Adam's. batch_size: rows of a task per round.

    Takes any kind of task. Memory: both models' features of all rows.
    """

    rank: int = 16
    learning_rate: float = 1e-3
    rounds: int = 1000
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("Surgery", self.learning_rate, self.batch_size)
        if self.rank < 1:
            raise UsageError(f"Surgery: rank is {self.rank}; give a whole number >= 1.")

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        on: Merged,
        *,
        at: Mapping[str, str] | None = None,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return `on` with the corrections in `before`; the merged tensors stay as they are.

        data: task -> inputs. on: any merge of the family. at: task -> name of the module whose
        input is corrected; None for the head where the model tells which one it is.

        Raises UsageError where a task's head is not known, or its input has no channels last.
        """
        inputs = unlabelled(family.tasks, data, "Surgery")
        places = {task: self._place(family, task, at) for task in inputs}
        device = next(iter(family.base.values())).device
        merged_of: dict[str, Tensor] = {}
        tuned_of: dict[str, Tensor] = {}
        with torch.no_grad():
            for task, rows in inputs.items():
                parts = list(chunks(rows, 256, device))
                merged_of[task] = torch.cat(
                    [wide(family.seen(task, places[task], on.shared, part)) for part in parts]
                )
                tuned_of[task] = torch.cat(
                    [wide(family.seen(task, places[task], None, part)) for part in parts]
                )
        values: Tensors = {}
        for task, features in merged_of.items():
            width = features.shape[-1]
            start = torch.rand(self.rank, width, generator=named(self.seed, task)).to(features)
            values[f"down/{task}"] = (2 * start - 1) / width**0.5  # torch's own range for a layer
            values[f"up/{task}"] = features.new_zeros(width, self.rank)
        draw = Draw(self.batch_size, self.seed)

        def gradients(round: int, values: Tensors) -> Tensor:
            losses = []
            for index, (task, features) in enumerate(merged_of.items()):
                rows = draw.rows(round, index, len(features)).to(features.device)
                z = features[rows]
                hidden = functional.relu(functional.linear(z, values[f"down/{task}"]))
                corrected = z - functional.linear(hidden, values[f"up/{task}"])
                losses.append(functional.l1_loss(corrected, tuned_of[task][rows]))
            loss = torch.stack(losses).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        found = search(
            "Surgery", values, lambda ps: torch.optim.Adam(ps, self.learning_rate), gradients,
            self.rounds, state=state, saving=saving,
        )  # fmt: skip
        before = {}
        for task, place in places.items():
            like = next(iter(family.base.values()))  # the precision that the model runs in
            operation = Operation(merged_of[task].shape[-1], self.rank).to(like)
            with torch.no_grad():
                operation.down.weight.copy_(found.values[f"down/{task}"])
                operation.up.weight.copy_(found.values[f"up/{task}"])
            before[task] = (place, operation)
        learned = {**on.learned, **found.values}
        return replace(on, before=before, learned=learned, losses=found.losses)

    @staticmethod
    def _place(family: Family, task: str, at: Mapping[str, str] | None) -> str:
        place = family.head(task) if at is None else at.get(task, "")
        if not place:
            raise UsageError(
                f"Surgery: it is not known which module is the head of task {task!r}; name it in "
                "at={task: name of the module whose input is corrected}."
            )
        return place
