"""DualProj: the mean gradient without what conflicts with any task.

Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
    https://arxiv.org/abs/1706.08840, equation 11; named by Quinton & Rey, 2024,
    https://arxiv.org/abs/2406.16232
Differs from the source: the source projects the gradient of the newest task onto the directions
    that harm no older one; here the mean gradient is projected, and every task is protected.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass

from polytask.balance.dual_cone import Unconflicting
from polytask.balance.solvers import Floats, Solution, into_dual_cone


@dataclass(frozen=True)
class DualProj(Unconflicting):
    """Weights of the vector nearest to the mean gradient that conflicts with no gradient.

    preference, normalise: see `Unconflicting`.
    """

    def _projected(self, cosines_KK: Floats, given_K: Floats) -> Solution:
        projected_1K, trouble = into_dual_cone(cosines_KK, given_K[None])
        return Solution(projected_1K[0], trouble)
