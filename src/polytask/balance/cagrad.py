"""CAGrad: near the mean gradient, the direction that is best for the task worst off.

Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    https://arxiv.org/abs/2110.14048, algorithm 1
Differs from the source: its inner problem, min over the simplex of g_w g_0 + c |g_0| |g_w|, is
    solved exactly: the minimum is the w with the shortest g_w + pull g_0 for the pull at which
    |g_w| = pull c |g_0|. Where g_w is 0 there (a Pareto-stationary point), the source divides by
    zero, and TorchJD makes no update; of all the best updates the one nearest to g_0 is taken, its
    projection onto those that conflict with no task. The authors' code divides the update by
    1 + c^2; that is left to the learning rate.
Shapes: K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.balance.solvers import Floats, Solution, into_dual_cone, split, towards
from polytask.errors import UsageError


@dataclass(frozen=True)
class CAGrad:
    """Weights 1 / K + c |g_0| / |g_w| w, for g_0 the mean gradient and w the worst case.

    The update d maximises min_k g_k d subject to |d - g_0| <= c |g_0|.
    c: in [0, 1); 0 is the mean gradient. The larger, the further from it, towards MGDA.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    c: float = 0.4
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise UsageError(f"CAGrad: c is {self.c}; give a number in [0, 1) (default 0.4).")
        check_normalise("CAGrad", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "CAGrad", self.normalise)
        weights_K, trouble = conflict_averse(problem.gram_KK, self.c)
        return problem.update(state, weights_K, trouble)


def conflict_averse(gram_KK: Floats, c: float, rounds: int = 60) -> Solution:
    """Return the weights of CAGrad's update, (K,)."""
    gram_KK = gram_KK / (gram_KK.diagonal().max() or 1.0)  # the weights do not depend on it
    tasks = len(gram_KK)
    norms_K = np.sqrt(np.maximum(gram_KK.diagonal(), 0.0))
    mean_K = np.full(tasks, 1 / tasks)
    pulled_K = gram_KK @ mean_K
    radius = c * math.sqrt(max(float(mean_K @ pulled_K), 0.0))
    if radius <= 1e-12:  # of the longest gradient: no ball to search
        return Solution(mean_K)
    low, high, pull = 0.0, 1 / radius, min(1 / c, 1 / radius)
    support_K = None
    for _ in range(rounds):
        weights_K, trouble = towards(gram_KK, mean_K, pull, support_K)
        support_K = weights_K > 0
        size = math.sqrt(max(float(weights_K @ gram_KK @ weights_K), 0.0))
        excess = size - pull * radius
        if abs(excess) <= 1e-12 * size:
            return Solution(mean_K + radius / size * weights_K, trouble)
        low, high = (pull, high) if excess > 0 else (low, pull)
        if size <= 1e-7 * float(weights_K @ norms_K):  # they cancel, as far as can be told
            return _beyond_conflict(gram_KK, mean_K)
        pull = _next_pull(gram_KK, pulled_K, weights_K, pull, radius)
        if not low < pull < high:
            pull = math.sqrt(low * high) if low > 0 else high / 100
        if high - low <= 1e-14 * high:
            return Solution(mean_K + radius / size * weights_K, trouble)
    return Solution(mean_K, "the pull did not settle; used the mean gradient instead")


def _next_pull(
    gram_KK: Floats, pulled_K: Floats, weights_K: Floats, pull: float, radius: float
) -> float:
    """Return the pull that would be right if the same weights stayed above 0; else NaN."""
    at = np.flatnonzero(weights_K > 0)
    # On that support the weights are linear in the pull: d w = slope d pull. In unit gradients,
    # so that short ones count as much as long ones in what is told apart from rounding.
    norms_K = np.sqrt(np.maximum(gram_KK.diagonal()[at], 0.0))
    unit_K = np.divide(1.0, norms_K, out=np.ones_like(norms_K), where=norms_K > 0)
    system = np.zeros((len(at) + 1, len(at) + 1))
    system[:-1, :-1] = gram_KK[np.ix_(at, at)] * unit_K[:, None] * unit_K
    system[-1, :-1] = system[:-1, -1] = unit_K / unit_K.max()
    slope_K = np.zeros_like(weights_K)
    slope_K[at] = np.linalg.lstsq(system, np.append(-pulled_K[at] * unit_K, 0.0))[0][:-1] * unit_K
    # |w + t slope|^2 = (pull + t)^2 radius^2
    moved_K = gram_KK @ slope_K
    square = slope_K @ moved_K - radius**2
    half = weights_K @ moved_K - pull * radius**2
    rest = weights_K @ gram_KK @ weights_K - (pull * radius) ** 2
    inside = half**2 - square * rest
    if inside < 0:
        return float("nan")
    # The root nearest to t = 0, written so that nothing cancels.
    return float(pull - rest / (half + math.copysign(math.sqrt(inside), half)))


def _beyond_conflict(gram_KK: Floats, mean_K: Floats) -> Solution:
    cosines_KK, norms_K = split(gram_KK)
    projected_NK, trouble = into_dual_cone(cosines_KK, (mean_K * norms_K)[None])
    weights_K = np.divide(projected_NK[0], norms_K, out=mean_K.copy(), where=norms_K > 0)
    return Solution(weights_K, trouble)
