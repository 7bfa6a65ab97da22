"""UPGrad: each gradient loses what conflicts with any other, then they are averaged.

Source: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024,
    https://arxiv.org/abs/2406.16232
Differs from the source: nothing known. The authors' library adds 1e-4 of the Gramian's trace to
    its diagonal, to keep the quadratic problems definite; here nothing that can be seen is added.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.balance.dual_cone import Unconflicting
from polytask.balance.solvers import Floats, Solution, into_dual_cone


@dataclass(frozen=True)
class UPGrad(Unconflicting):
    """Weights of the mean of the gradients, each projected onto the dual cone of all.

    The update conflicts with no task, and grows no faster than linearly with any one gradient.
    preference, normalise: see `Unconflicting`.
    """

    def _projected(self, cosines_KK: Floats, given_K: Floats) -> Solution:
        # Row i holds the projection of gradient i made a unit vector.
        projected_KK, trouble = into_dual_cone(cosines_KK, np.eye(len(given_K)))
        return Solution(given_K @ projected_KK, trouble)
