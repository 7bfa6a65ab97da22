"""aTLAS: one coefficient per task vector and tensor (or part of a tensor), learned from labels.

Source: Zhang et al., "Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",
    NeurIPS 2024, https://arxiv.org/abs/2407.02880
Differs from the source: a batch is spread evenly over the tasks. Parts are dealt by each tensor's
    own seed; the source deals them anew in every run.
Shapes: N = tensors, T = tasks, K = parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.batches import Draw, Labelled, labelled, row_count
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.labels import labelled_losses
from polytask.merge.rounds import check_rate
from polytask.merge.search import Saving, SearchState, search


@dataclass(frozen=True)
class ATLAS:
    """Base + coefficients x task vectors, which start at 0 and minimise the tasks' summed losses.

    parts: K > 1 deals each tensor's entries to K parts with coefficients of their own (aTLAS xK).
    batch_size: rows of all tasks together. epochs: over the largest task. penalty, power: of
        penalty * sum abs(coefficient)^power, a mean over tensors. learning_rate, decay, clip:
        AdamW's, and the largest norm of a gradient.

    Takes any kind of task. For few labels the source has learning_rate=0.1, epochs=10.
    """

    parts: int = 1
    learning_rate: float = 1e-3
    epochs: int = 20
    batch_size: int = 128
    decay: float = 0.1
    clip: float = 1.0
    penalty: float = 0.0
    power: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("ATLAS", self.learning_rate, self.batch_size)
        if self.parts < 1 or self.epochs < 1 or self.power not in (1, 2) or self.penalty < 0:
            raise UsageError(
                f"ATLAS: parts {self.parts}, epochs {self.epochs}, power {self.power}, penalty "
                f"{self.penalty}; give parts and epochs >= 1, power 1 or 2, and a penalty >= 0."
            )

    def __call__(
        self,
        family: Family,
        data: Labelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors; learned: the coefficients, (N, T) or (N, T, K).

        data: task -> inputs and raw targets, such as the validation split.
        """
        found = labelled(family.tasks, data, "ATLAS")
        size = max(1, self.batch_size // len(found))
        largest = max(row_count(inputs) for inputs, _ in found.values())
        rounds = self.epochs * -(-largest // size)
        losses = labelled_losses(family, found, Draw(size, self.seed))
        coefficients = Coefficients(family.base, family.deltas, 0.0, "layer", self.parts, self.seed)

        def gradients(round: int, values: Tensors) -> Tensor:
            lam = values["coefficients"]
            total = pull(coefficients.merge(lam), losses(round))
            if self.penalty:
                beside = self.penalty * lam.abs().pow(self.power).sum() / len(lam)
                beside.backward()  # type: ignore[no-untyped-call]
                total = total + beside.detach()
            torch.nn.utils.clip_grad_norm_([lam], self.clip)
            return total

        done = search(
            "ATLAS", {"coefficients": coefficients.values},
            lambda ps: torch.optim.AdamW(ps, self.learning_rate, weight_decay=self.decay),
            gradients, rounds, state=state, saving=saving,
        )  # fmt: skip
        lam = done.values["coefficients"]
        return Merged(coefficients.merge(lam), learned={"coefficients": lam}, losses=done.losses)
