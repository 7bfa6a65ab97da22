"""UPGrad: each gradient loses what conflicts with any other, then they are averaged.

Source: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024,
    https://arxiv.org/abs/2406.16232
Differs from the source: nothing known. The authors' library adds 1e-4 of the Gramian's trace to
    its diagonal, to keep the quadratic problems definite; here nothing that can be seen is added.
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
from polytask.balance.solvers import into_dual_cone, split


@dataclass(frozen=True)
class UPGrad:
    """Weights of the mean of the gradients, each projected onto the dual cone of all.

    The update conflicts with no task, and grows no faster than linearly with any one gradient.
    preference: one number >= 0 per task in the order of axis T; None: 1 / K each, so that the
        update without conflict is the mean gradient.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    preference: tuple[float, ...] | None = None
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        check_preference("UPGrad", self.preference)
        check_normalise("UPGrad", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length("UPGrad", self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "UPGrad", self.normalise)
        cosines_KK, norms_K = split(problem.gram_KK)
        preference_K = preferred(problem.signal, self.preference)
        # Row i holds the projection of gradient i made a unit vector, in unit gradients.
        projected_KK, trouble = into_dual_cone(cosines_KK, np.eye(len(norms_K)))
        total_K = (preference_K * norms_K) @ projected_KK
        weights_K = np.divide(total_K, norms_K, out=preference_K.copy(), where=norms_K > 0)
        return problem.update(state, weights_K, trouble)
