"""Concrete AdaMerging: a mask over the task vectors that suits coefficients which adapt to it.

Source: Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model
    Fusion", 2023, https://arxiv.org/abs/2312.06173
Differs from the source: the fixed mask is the one without noise; the authors' code draws once more.
    The step on the mask does not go through the step on the coefficients, as in the authors' code.
Shapes: T = tasks, N = tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from polytask.merge.batches import Unlabelled
from polytask.merge.bilevel import Bilevel, search_bilevel
from polytask.merge.coefficients import Level
from polytask.merge.family import Family, Merged
from polytask.merge.masks import Masks
from polytask.merge.rounds import Rounds, check_rate, sure
from polytask.merge.search import Saving, SearchState


@dataclass(frozen=True)
class ConcreteAdaMerging:
    """Base + coefficients x masked task vectors; one mask for all tasks.

    level: of the coefficients, "task" or "layer". start: of each; every round of the mask's search
        begins there. rounds: of that search. coefficient_rounds: of the search of coefficients that
        follows, under the fixed mask. learning_rate, coefficient_rate: Adam's, of the two.
    """

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
        check_rate("ConcreteAdaMerging", self.learning_rate, self.batch_size)
        check_rate("ConcreteAdaMerging (coefficients)", self.coefficient_rate, self.batch_size)

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors; learned: `mask/NAME` (logits) and the coefficients.

        data: task -> inputs. Raises UsageError for a task whose kind has no classes.
        """
        who = "ConcreteAdaMerging"
        rounds = Rounds.of(family, data, who, self.batch_size, self.seed)
        settings = Bilevel(
            who, self.level, self.start, Masks(self.temperature, self.seed), self.rounds,
            self.coefficient_rate, self.coefficient_rounds,
        )  # fmt: skip

        return search_bilevel(
            settings, rounds, {}, lambda ps: torch.optim.Adam(ps, self.learning_rate),
            lambda values, round: sure(family, who), lambda values, merged, round: None,
            state, saving,
        )  # fmt: skip
