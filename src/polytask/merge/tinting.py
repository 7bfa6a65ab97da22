"""Model Tinting: coefficients, and one layer of each task, that answer as the tuned models do.

Source: Jung et al., "Why Train Everything? Tint a Single Layer for Multi-task Model Merging", 2024,
    https://arxiv.org/abs/2412.19098
Differs from the source: the layer is the task's own part, its head (as in the authors' code for
    classification; the second version of the text tints one shared layer). The filter compares
    probabilities of the most probable classes.
Shapes: N = tensors, T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.batches import Unlabelled
from polytask.merge.classes import disagreement, log_probabilities
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.family import Family, Inputs, Merged, Tensors, wide
from polytask.merge.rounds import Rounds, check_rate
from polytask.merge.search import Saving, SearchState, search
from polytask.tasks import Task


@dataclass(frozen=True)
class Tinting:
    """Base + coefficients x task vectors, and each task's head trained on its tuned model.

    plus: True for Model Tinting++, which leaves out rows where the two models differ and the tuned
        one is the less confident. start: of every coefficient. learning_rate: Adam's.
    """

    plus: bool = False
    start: float = 0.3
    learning_rate: float = 1e-2
    rounds: int = 500
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("Tinting", self.learning_rate, self.batch_size)

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        on: Merged | None = None,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors with tinted heads; learned: the coefficients, (N, T).

        data: task -> inputs. on: another merge whose tensors stay as they are; only the heads are
        trained then, and there are no coefficients.

        Raises UsageError for a task whose kind has no classes, or that has nothing of its own.
        """
        rounds = Rounds.of(family, data, "Tinting", self.batch_size, self.seed)
        inputs = rounds.inputs
        heads = {
            f"own/{task}/{name}": wide(tensor)
            for task in inputs
            for name, tensor in {**family.own(task), **(on.own.get(task, {}) if on else {})}.items()
            if tensor.is_floating_point()
        }
        for task in inputs:
            if not any(name.startswith(f"own/{task}/") for name in heads):
                raise UsageError(
                    f"Tinting trains each task's own layer; task {task!r} shares all of its model. "
                    "Name its head in own= of the family."
                )
        coefficients = Coefficients(family.base, family.deltas, self.start, "layer")
        values = heads if on else {"coefficients": coefficients.values} | heads

        def own(values: Tensors, task: str) -> Tensors:
            """Return a task's own tensors among the values, in the precision its model has."""
            begin = f"own/{task}/"
            as_tuned = family.own(task)
            return {
                name: values[begin + name].to(tensor.dtype)
                for name, tensor in as_tuned.items()
                if begin + name in values
            }

        def gradients(round: int, values: Tensors) -> Tensor:
            def of_task(task: Task, shared: Tensors, batch: Inputs) -> Tensor:
                with torch.no_grad():
                    teacher = log_probabilities(
                        task, family.tuned_output(task.name, batch), "Tinting"
                    )
                output = family.output(task.name, shared, batch, own(values, task.name))
                log_BRC = log_probabilities(task, output, "Tinting")
                return disagreement(log_BRC, teacher, only_trusted=self.plus)[0]

            merged = on.shared if on else coefficients.merge(values["coefficients"])
            return pull(merged, rounds.losses(round, of_task))

        def clamp(values: Tensors) -> None:
            if "coefficients" in values:
                values["coefficients"].clamp_(0.0, 1.0)

        found = search(
            "Tinting", values, lambda ps: torch.optim.Adam(ps, self.learning_rate), gradients,
            self.rounds, after=clamp, state=state, saving=saving,
        )  # fmt: skip
        tinted = {task: own(found.values, task) for task in inputs}
        if on:
            return Merged(on.shared, tinted, on.before, on.learned, found.losses, on.notes)
        lam = found.values["coefficients"]
        return Merged(
            coefficients.merge(lam), tinted, learned={"coefficients": lam}, losses=found.losses
        )
