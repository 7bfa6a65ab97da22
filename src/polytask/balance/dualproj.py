"""DualProj: the mean gradient without what conflicts with any task.

Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
    https://arxiv.org/abs/1706.08840, equation 11; named by Quinton & Rey, 2024,
    https://arxiv.org/abs/2406.16232
Differs from the source: the source projects the gradient of the newest task onto the directions
    that harm no older one; here the mean gradient is projected, and every task is protected.
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
class DualProj:
    """Weights of the vector nearest to the mean gradient that conflicts with no gradient.

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
        check_preference("DualProj", self.preference)
        check_normalise("DualProj", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length("DualProj", self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "DualProj", self.normalise)
        cosines_KK, norms_K = split(problem.gram_KK)
        preference_K = preferred(problem.signal, self.preference)
        longest = norms_K.max() or 1.0
        given_K = preference_K * norms_K / longest  # in unit gradients
        projected_NK, trouble = into_dual_cone(cosines_KK, given_K[None])
        weights_K = np.divide(
            projected_NK[0] * longest, norms_K, out=preference_K.copy(), where=norms_K > 0
        )
        return problem.update(state, weights_K, trouble)
