"""RLW: weights drawn anew at every step, the control that other methods must beat.

Source: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
    Learning", TMLR 2022, https://arxiv.org/abs/2111.10603, with the normal distribution
Differs from the source: nothing known where every task is in every step. Weights are drawn for all
    tasks of the run; one that is absent takes its weight with it.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.errors import UsageError


@dataclass(frozen=True)
class RLW:
    """Weights of all T tasks that sum to 1: the softmax of T standard normal numbers.

    seed: of the draws; with the step it fixes them, so micro-batches of one update agree.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"RLW: seed is {self.seed}; give an integer >= 0.")

    def start(self, tasks: int) -> State:
        """Return an empty state: the draw follows from the seed and the step alone."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the present tasks' weights, (K,), float64."""
        drawn = np.random.default_rng((self.seed, signal.step)).standard_normal(signal.tasks)
        weights_T = torch.softmax(torch.from_numpy(drawn), dim=0).to(signal.losses_K.device)
        return Update(state, weights_T.index_select(0, signal.index_K))
