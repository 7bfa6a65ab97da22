"""Concrete task arithmetic: one mask for all task vectors, searched for sure answers.

    theta = theta_0 + scale * sum_t m tau_t

Source: Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model
    Fusion", 2023, https://arxiv.org/abs/2312.06173
Differs from the source: the model that comes back has the mask without noise; the authors' code
    draws once more. FusionBench's mask and rounds give the same logits, of the same draws.
Shapes: T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.merge.batches import Unlabelled
from polytask.merge.coefficients import pull
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.masks import Masks, masked
from polytask.merge.rounds import Rounds, check_rate, sure
from polytask.merge.search import Saving, SearchState, search


@dataclass(frozen=True)
class Concrete:
    """Base + scale x the sum of the task vectors, under one mask that all tasks share.

    scale: of the sum. temperature: of the mask. learning_rate: Adam's, of the mask's logits, which
        start at 0. batch_size: rows of a task per round.

    Memory: beside that of `coefficients`, logits, Adam's two moments and the mask: 4 copies.
    """

    scale: float = 0.3
    temperature: float = 0.5
    learning_rate: float = 1e-3
    rounds: int = 2000
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("Concrete", self.learning_rate, self.batch_size)

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors and, learned, the mask's logits as `mask/NAME`.

        data: task -> inputs. Raises UsageError for a task whose kind has no classes.
        """
        rounds = Rounds.of(family, data, "Concrete", self.batch_size, self.seed)
        masks = Masks(self.temperature, self.seed)
        change = {name: self.scale * delta.sum(0) for name, delta in family.deltas.items()}

        def gradients(round: int, values: Tensors) -> Tensor:
            merged = masked(family.base, change, masks.draw(values, round))
            return pull(merged, rounds.losses(round, sure(family, "Concrete")))

        found = search(
            "Concrete", masks.start(family.base),
            lambda ps: torch.optim.Adam(ps, self.learning_rate), gradients, self.rounds,
            state=state, saving=saving,
        )  # fmt: skip
        merged = masked(family.base, change, masks.settled(found.values))
        return Merged(merged, learned=found.values, losses=found.losses)
