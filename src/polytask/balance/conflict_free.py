"""ConFIG: the direction of equal cosine with every gradient, as long as they project onto it.

Source: Liu, Chu & Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025, https://arxiv.org/abs/2408.11104, equation 2
Differs from the source: computed from the Gramian, as U' (U U')^+ p, where the source forms the
    pseudo-inverse of the unit rows U. The same but for rounding; singular directions count as
    dependent below K x 1e-13 of the largest eigenvalue, 3e-7 sqrt(K) of the largest singular value.
    Where no direction has the products asked for, the weights are 0, and a note says so.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import check_length, check_preference, pose, preferred
from polytask.balance.solvers import even_products, split


@dataclass(frozen=True)
class ConFIG:
    """Weights of the update d = (sum_k g_k u) u, with u the unit vector of cosines ~ preference.

    The direction is that of IMTL-G; the length differs.
    preference: the cosines' ratio, one number >= 0 per task in the order of axis T; None: equal.
    A task whose gradient is zero has the weight 0.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    preference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_preference("ConFIG", self.preference)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length("ConFIG", self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "ConFIG")
        cosines_KK, norms_K = split(problem.gram_KK)
        aims_K = preferred(signal, self.preference) * (norms_K > 0)
        even_K = even_products(cosines_KK, aims_K)
        products_K = cosines_KK @ even_K
        square = float(even_K @ products_K)
        if not square > 0:
            return problem.update(
                state,
                np.zeros_like(even_K),
                "no direction has the cosines asked for; used no update instead",
            )
        length = (norms_K @ products_K) / square
        weights_K = np.divide(
            even_K * length, norms_K, out=np.zeros_like(even_K), where=norms_K > 0
        )
        return problem.update(state, weights_K)
