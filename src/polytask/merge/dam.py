"""DAM: Concrete AdaMerging that also keeps answers sure under the worst shift of a task's inputs.

A backdoor answers to a small fixed change of any input. Each task has one shift, found by raising
the loss at the model's own answers; masks are searched to stay sure with it and without.

Source: Yang et al., "Mitigating the Backdoor Effect for Multi-Task Model Merging via Safety-Aware
    Subspace", 2024, https://arxiv.org/abs/2410.13910
Differs from the source: one mask, as in the authors' code; the text has two, one shared by the
    tasks and one that detects backdoors. Shift and mask take their steps at once: the mask sees the
    shift of the round before.
Shapes: B = rows; T = tasks, N = tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.errors import UsageError
from polytask.merge.batches import Unlabelled
from polytask.merge.bilevel import Bilevel, search_bilevel
from polytask.merge.classes import disagreement, entropy, log_probabilities
from polytask.merge.coefficients import Level
from polytask.merge.family import Family, Inputs, Merged, Tensors, wide
from polytask.merge.masks import Masks
from polytask.merge.rounds import OfTask, Rounds, check_rate
from polytask.merge.search import Saving, SearchState
from polytask.tasks import Task


@dataclass(frozen=True)
class DAM:
    """Base + coefficients x masked task vectors, as ConcreteAdaMerging, safer against backdoors.

    weight: of the entropy under the shift. shift_rate: Adam's, of the shifts, which start at 0.
    low, high: what inputs are clamped to after a shift, in their unit. The other fields are those
        of ConcreteAdaMerging.

    Inputs must be one float tensor per task: a shift of indices is none.
    """

    weight: float = 0.1
    shift_rate: float = 1e-4
    low: float = 0.0
    high: float = 1.0
    level: Level = "layer"
    start: float = 0.3
    temperature: float = 0.5
    learning_rate: float = 1e-3
    coefficient_rate: float = 1e-3
    rounds: int = 1000
    coefficient_rounds: int = 1000
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("DAM", self.learning_rate, self.batch_size)
        check_rate("DAM (shifts)", self.shift_rate, self.batch_size)
        if not self.low < self.high:
            raise UsageError(
                f"DAM: inputs are clamped to [{self.low}, {self.high}]; give low < high, the range "
                "of the inputs."
            )

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors; learned: `mask/NAME`, `shift/TASK` and the coefficients.

        data: task -> inputs. Raises UsageError for a task whose kind has no classes, and for inputs
        that are no float tensor.
        """
        rounds = Rounds.of(family, data, "DAM", self.batch_size, self.seed)
        shifts = {
            f"shift/{task}": torch.zeros_like(wide(_floats(task, x)[:1]), device=rounds.device)
            for task, x in rounds.inputs.items()
        }
        settings = Bilevel(
            "DAM", self.level, self.start, Masks(self.temperature, self.seed), self.rounds,
            self.coefficient_rate, self.coefficient_rounds,
        )  # fmt: skip

        def optimiser(values: list[Tensor]) -> Optimizer:
            masks, moved = values[: -len(shifts)], values[-len(shifts) :]
            groups: list[dict[str, Any]] = [
                {"params": masks},
                {"params": moved, "lr": self.shift_rate},
            ]
            return torch.optim.Adam(groups, self.learning_rate)

        def raised(values: Tensors, merged: Tensors, round: int) -> None:
            """Add the gradients that raise the loss at the model's own answers."""
            for index, task in enumerate(family.tasks):
                x = _floats(task.name, rounds.batch(2 * round + 1, index))
                with torch.no_grad():
                    plain = family.output(task.name, merged, x)
                    answers = log_probabilities(task, plain, "DAM")
                shift = values[f"shift/{task.name}"].to(x.dtype)
                moved = family.output(task.name, merged, x + shift)
                loss, _ = disagreement(log_probabilities(task, moved, "DAM"), answers)
                (-loss).backward()  # type: ignore[no-untyped-call]

        def outer(values: Tensors, round: int) -> OfTask:
            def sure(task: Task, shared: Tensors, batch: Inputs) -> Tensor:
                x = _floats(task.name, batch)
                shift = values[f"shift/{task.name}"].detach().to(x.dtype)
                moved = (x + shift).clamp(self.low, self.high)
                plain = entropy(task, family.output(task.name, shared, x), "DAM")
                shifted = entropy(task, family.output(task.name, shared, moved), "DAM")
                return plain + self.weight * shifted

            return sure

        return search_bilevel(settings, rounds, shifts, optimiser, outer, raised, state, saving)


def _floats(task: str, inputs: Inputs) -> Tensor:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = inputs.dtype if isinstance(inputs, Tensor) else "named tensors"
        raise UsageError(
            f"DAM shifts inputs, so those of task {task!r} must be one float tensor; got {found}. "
            "Scale pictures to floats, and let the model start at their embedding where they are "
            "indices."
        )
    return inputs
