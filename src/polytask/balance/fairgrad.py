"""FairGrad: the alpha-fair share of improvement among the tasks, G w = w ** (-1 / alpha).

Source: Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024,
    https://arxiv.org/abs/2402.15638, equation 4
Differs from the source: the equation is the minimum of a convex function and has one solution,
    found by Newton steps; the source runs a general least-squares solver on it. Where some weights
    make the gradients cancel it has none, and a ridge of 1e-13 on the cosines bounds the weights.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.balance.solvers import equilibrium
from polytask.errors import UsageError


@dataclass(frozen=True)
class FairGrad:
    """Weights > 0 with G w = w ** (-1 / alpha): the improvement of task k is w_k ** (-1 / alpha).

    alpha: from 0 to 20. 0 is the plain sum, 1 proportional fairness (Nash-MTL's direction), 2
        minimum potential delay; the larger, the nearer to MGDA's max-min fairness. The weights
        spread like the improvements to the power alpha.
    normalise: which gradients it balances, see `Normalise`.
    A task whose gradient is zero has the weight 0, and 1 with alpha = 0.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    alpha: float = 1.0
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 20:
            raise UsageError(
                f"FairGrad: alpha is {self.alpha}; give a number from 0 to 20 (default 1). For "
                "fairness without limit take MGDA."
            )
        check_normalise("FairGrad", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "FairGrad", self.normalise)
        if self.alpha == 0:
            return problem.update(state, np.ones(len(problem.gram_KK)))
        weights_K, trouble = equilibrium(problem.gram_KK, 1 / self.alpha)
        return problem.update(state, weights_K, trouble)
