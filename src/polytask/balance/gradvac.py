"""GradVac: turn each gradient until its cosine with every other is at least the usual one.

Source: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models", ICLR 2021, https://arxiv.org/abs/2010.05874, algorithm 1
Differs from the source: works on the Gramian; one goal per pair of tasks for all shared
    parameters, not one per layer. The order in which a task meets the others is drawn from the
    seed and the step, not from a global stream. A pair with a gradient of zero has no cosine and
    leaves the goal as it was. A goal is taken as at most 1 - 1e-8 in its square, since turning a
    gradient all the way onto another would take an infinite step. Published codes differ in
    whether the goal learns from every pair met (here, as in the algorithm) or from those turned,
    and begin with beta = 0.5; the default here is the paper's.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.errors import UsageError


@dataclass(frozen=True)
class GradVac:
    """Weights of the sum of the gradients, each turned towards the usual cosines.

    beta: in [0, 1], how far the goals move to the cosines met in a step; the goals begin at 0,
        so that the first step is PCGrad's but for the length.
    seed: >= 0; of the order in which each task meets the others, drawn anew at every step.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    beta: float = 0.01
    seed: int = 0
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UsageError(f"GradVac: beta is {self.beta}; give a number from 0 to 1.")
        if self.seed < 0:
            raise UsageError(f"GradVac: seed is {self.seed}; give an integer >= 0.")
        check_normalise("GradVac", self.normalise)

    def start(self, tasks: int) -> State:
        """Return the goals, the usual cosine of each pair of tasks: all 0."""
        return {"goals_TT": torch.zeros(tasks, tasks, dtype=torch.float64)}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "GradVac", self.normalise)
        gram_KK = problem.gram_KK
        tasks = len(gram_KK)
        every = np.arange(tasks)
        at = np.ix_(*[problem.signal.index_K.cpu().numpy()] * 2)
        goals_TT = state["goals_TT"].cpu().numpy().copy()
        goals_KK = goals_TT[at]
        keys_KK = np.random.default_rng((self.seed, signal.step)).random((tasks, tasks))
        keys_KK[every, every] = np.inf  # last in its own order, and left out below
        order_KK = keys_KK.argsort(axis=1)
        # As in PCGrad: task i's turned gradient is coefficients_KK[i] @ rows, inner_KK[i, j] its
        # product with task j's own, and all tasks meet their s-th other at once.
        coefficients_KK = np.eye(tasks)
        inner_KK = gram_KK.copy()
        own_K = gram_KK.diagonal()
        square_K = own_K.copy()
        for s in range(tasks - 1):
            # What rounding left of a gradient that was turned away whole has no cosine.
            there_K = (square_K > 1e-14 * own_K) & (own_K[order_KK[:, s]] > 0)
            i, j = every[there_K], order_KK[there_K, s]
            ratio = np.sqrt(square_K[i]) / np.sqrt(own_K[j])
            cosine = np.clip(inner_KK[i, j] / own_K[j] / ratio, -1.0, 1.0)
            goal = goals_KK[i, j]
            sine = np.sqrt(np.maximum(1 - goal**2, 1e-8))
            step = ratio * (goal * np.sqrt(1 - cosine**2) / sine - cosine)
            step = np.where(cosine < goal, step, 0.0)
            square_K[i] += step * (2 * inner_KK[i, j] + step * own_K[j])
            coefficients_KK[i, j] += step
            inner_KK[i] += step[:, None] * gram_KK[j]
            goals_KK[i, j] += self.beta * (cosine - goal)
        goals_TT[at] = goals_KK
        after = {"goals_TT": torch.from_numpy(goals_TT).to(state["goals_TT"].device)}
        return problem.update(after, coefficients_KK.sum(axis=0))
