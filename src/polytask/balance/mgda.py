"""MGDA: the shortest convex combination of the gradients, which descends on every task.

Source: Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
    Comptes Rendus Mathematique 2012, doi:10.1016/j.crma.2012.03.014; for networks: Sener & Koltun,
    "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018,
    https://arxiv.org/abs/1810.04650
Differs from the source: solved exactly, not by up to 250 Frank-Wolfe steps, which stop far from
    the minimum where gradients are nearly dependent. With `normalise`, the update is the shortest
    combination of the normalised gradients themselves; the source multiplies its weights by the
    gradients as they were, which need not descend on every task.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.balance.solvers import nearest


@dataclass(frozen=True)
class MGDA:
    """Weights >= 0 with sum 1 (before `normalise`) that minimise |sum_k w_k g_k|.

    normalise: which gradients it balances, see `Normalise`.
    A task whose gradient is zero takes all the weight: no direction improves every task then.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        check_normalise("MGDA", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "MGDA", self.normalise)
        weights_K, trouble = nearest(problem.gram_KK)
        return problem.update(state, weights_K, trouble)
