"""SDMGrad: MGDA pulled towards a direction one prefers, by default the mean gradient.

Source: Xiao, Ban & Ji, "Direction-oriented Multi-objective Learning: Simple and Provable
    Stochastic Algorithms", NeurIPS 2023, https://arxiv.org/abs/2305.18409
Differs from the source: its inner problem, min |J'(w + pull p)| over the simplex, is solved
    exactly, where the source takes 20 steps of projected SGD from the last weights; so there is no
    state. The source estimates J J' from two batches and the update from a third; here all three
    are the step's own batch.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import (
    Normalise,
    check_length,
    check_normalise,
    check_preference,
    pose,
    preferred,
)
from polytask.balance.solvers import towards
from polytask.errors import UsageError


@dataclass(frozen=True)
class SDMGrad:
    """Weights (w + pull p) / (1 + pull), w on the simplex with the shortest J'(w + pull p).

    pull: >= 0; 0 is MGDA, a large one the preferred direction alone.
    preference: p, one number >= 0 per task in the order of axis T; None: 1 / K each.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    pull: float = 0.3
    preference: tuple[float, ...] | None = None
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.pull < np.inf:
            raise UsageError(f"SDMGrad: pull is {self.pull}; give a number >= 0 (default 0.3).")
        check_preference("SDMGrad", self.preference)
        check_normalise("SDMGrad", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length("SDMGrad", self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "SDMGrad", self.normalise)
        preference_K = preferred(problem.signal, self.preference)
        weights_K, trouble = towards(problem.gram_KK, preference_K, self.pull)
        weights_K = (weights_K + self.pull * preference_K) / (1 + self.pull)
        return problem.update(state, weights_K, trouble)
