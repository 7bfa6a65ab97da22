"""Nash-MTL: the Nash bargaining solution among the tasks, G w = 1 / w.

Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
    https://arxiv.org/abs/2202.01017; authors' code https://github.com/AvivNavon/nash-mtl
Differs from the source: the equation is the minimum of a convex function and has one solution,
    found by Newton steps to 1e-10; the source approaches it by a few convex programs from the last
    weights, and keeps those where the solver fails. So the weights follow from the Gramian alone
    and there is no state. The bound on the length is the authors' code's, not the text's. Where
    some weights make the gradients cancel the equation has no solution, and a ridge of 1e-13 on
    the cosines bounds the weights. `update_weights_every` is left to whoever asks for the Gramian.
Shapes: K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import pose
from polytask.balance.solvers import equilibrium
from polytask.errors import UsageError


@dataclass(frozen=True)
class NashMTL:
    """Weights > 0 with G w = 1 / w, then scaled so that the update is no longer than max_norm.

    The update is invariant to the scale of every loss. Its length before the bound is sqrt(K),
    however short the gradients, so the learning rate alone must bring the training to rest.
    max_norm: the largest length of the update in the shared parameters; 0: no bound.
    A task whose gradient is zero has the weight 0.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_norm < math.inf:
            raise UsageError(
                f"NashMTL: max_norm is {self.max_norm}; give a number >= 0, 0 for no bound "
                "(default 1)."
            )

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "NashMTL")
        gram_KK = problem.gram_KK
        weights_K, trouble = equilibrium(gram_KK, 1.0)
        length = math.sqrt(max(float(weights_K @ gram_KK @ weights_K), 0.0))
        if 0 < self.max_norm < length:
            weights_K *= self.max_norm / length
        return problem.update(state, weights_K, trouble)
