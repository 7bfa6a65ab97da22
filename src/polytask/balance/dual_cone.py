"""What UPGrad and DualProj share: a preferred sum of gradients, brought into the dual cone of all.

The dual cone holds the updates that conflict with no gradient. The two differ in what is projected
onto it: each gradient, or their sum.

Shapes: T = tasks of the run, K = tasks present.
"""

# No annotations as text here: recipes read those of the fields from the modules that inherit them.
from abc import ABC, abstractmethod
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
from polytask.balance.solvers import Floats, Solution, split


@dataclass(frozen=True)
class Unconflicting(ABC):
    """Weights of an update that conflicts with no task.

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
        check_preference(type(self).__name__, self.preference)
        check_normalise(type(self).__name__, self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length(type(self).__name__, self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, type(self).__name__, self.normalise)
        cosines_KK, norms_K = split(problem.gram_KK)
        preference_K = preferred(problem.signal, self.preference)
        longest = norms_K.max() or 1.0
        total_K, trouble = self._projected(cosines_KK, preference_K * norms_K / longest)
        weights_K = np.divide(
            total_K * longest, norms_K, out=preference_K.copy(), where=norms_K > 0
        )
        return problem.update(state, weights_K, trouble)

    @abstractmethod
    def _projected(self, cosines_KK: Floats, given_K: Floats) -> Solution:
        """Return the update, (K,), for the preferred sum; both in unit gradients."""
