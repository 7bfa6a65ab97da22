"""PCGrad: project away the part of a task's gradient that conflicts with another task's.

Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020,
    https://arxiv.org/abs/2001.06782, algorithm 1
Differs from the source: nothing known; the projected gradients are combinations of the rows, so
    the Gramian is enough. As in the source a task is never projected onto itself; LibMTL's code
    draws the task itself too, which changes the result from three tasks on.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.errors import UsageError


@dataclass(frozen=True)
class PCGrad:
    """Weights of the sum of all projected gradients; 1 for each task where no two conflict.

    seed: of the random order in which each task meets the others, drawn anew at every step.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    seed: int = 0
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"PCGrad: seed is {self.seed}; give an integer >= 0.")
        check_normalise("PCGrad", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state: the order follows from the seed and the step alone."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "PCGrad", self.normalise)
        gram_KK = problem.gram_KK
        tasks = len(gram_KK)
        every = np.arange(tasks)
        keys_KK = np.random.default_rng((self.seed, signal.step)).random((tasks, tasks))
        keys_KK[every, every] = np.inf  # last in its own order, and left out below
        order_KK = keys_KK.argsort(axis=1)
        # Task i's projected gradient is coefficients_KK[i] @ rows; inner_KK[i, j] is its product
        # with task j's own gradient. All tasks take their s-th projection at once.
        coefficients_KK = np.eye(tasks)
        inner_KK = gram_KK.copy()
        for s in range(tasks - 1):
            onto_K = order_KK[:, s]
            product_K = inner_KK[every, onto_K]
            conflict_K = product_K < 0
            if not conflict_K.any():
                continue
            i, j = every[conflict_K], onto_K[conflict_K]
            factor = product_K[conflict_K] / gram_KK[j, j]
            coefficients_KK[i, j] -= factor
            inner_KK[i] -= factor[:, None] * gram_KK[j]
        return problem.update(state, coefficients_KK.sum(axis=0))
