"""MoCo: MGDA on moving averages of the gradients, its weights taking one small step an update.

Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably
    Convergent Approach", ICLR 2023, https://openreview.net/forum?id=dLAYGdKTi2, algorithm 1
Differs from the source: follows the text, with a Euclidean projection of the weights onto the
    simplex; the authors' code takes a softmax instead and tracks g L / |g|. An absent task keeps
    its average and its weight; the present ones share the weight they have together.
Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.gradients import gram
from polytask.balance.problem import Normalise, check_normalise, pose
from polytask.balance.solvers import onto_simplex
from polytask.errors import UsageError


@dataclass(frozen=True)
class MoCo:
    """A direction: the weighted sum of the tasks' averaged gradients, which it remembers, (T, P).

    The n-th update moves the averages by beta / n ** beta_decay of the way to this step's
    gradients, and the weights down the slope of |sum_k w_k y_k|^2 / 2 + rho |w|^2 / 2.
    beta, gamma: > 0; beta at most 1. beta_decay, gamma_decay, rho: >= 0.
    gamma is not unitless: it goes with the inverse square of the gradients' length, or with
    `normalise`.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "rows"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    beta: float = 0.5
    beta_decay: float = 0.5
    gamma: float = 0.1
    gamma_decay: float = 0.5
    rho: float = 0.0
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if not (0 < self.beta <= 1 and self.gamma > 0):
            raise UsageError(
                f"MoCo: beta is {self.beta} and gamma is {self.gamma}; give beta in (0, 1] and "
                "gamma > 0 (defaults 0.5 and 0.1)."
            )
        for name in ("beta_decay", "gamma_decay", "rho"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UsageError(f"MoCo: {name} is {getattr(self, name)}; give a number >= 0.")
        check_normalise("MoCo", self.normalise)

    def start(self, tasks: int) -> State:
        """Return equal weights and averages without columns, which the first step gives them."""
        return {
            "weights_T": torch.full((tasks,), 1 / tasks, dtype=torch.float64),
            "average_TP": torch.zeros(tasks, 0),
        }

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the direction, (P,), and the weights, (K,), which add up to 1."""
        problem = pose(signal, "MoCo", self.normalise)
        signal = problem.signal
        rows_KP = signal.rows_KP
        assert rows_KP is not None, "the engine gives the rows to methods that need them"
        scale_K = torch.from_numpy(problem.scale_K).to(rows_KP.device, rows_KP.dtype)
        average_TP = state["average_TP"]
        if not average_TP.numel():
            average_TP = rows_KP.new_zeros(signal.tasks, rows_KP.shape[1])
        beta = self.beta / (signal.step + 1) ** self.beta_decay
        average_KP = average_TP[signal.index_K].lerp(scale_K[:, None] * rows_KP, beta)
        gamma = self.gamma / (signal.step + 1) ** self.gamma_decay
        weights_T = state["weights_T"].cpu()
        at_K = signal.index_K.cpu()
        together = float(weights_T[at_K].sum())
        before_K = np.full(len(at_K), 1 / len(at_K))
        if together > 0:
            before_K = weights_T[at_K].numpy() / together
        slope_K = gram(average_KP).cpu().numpy() @ before_K + self.rho * before_K
        simplex_K = onto_simplex(before_K - gamma * slope_K)
        weights_K = torch.from_numpy(simplex_K)
        after = {
            "weights_T": weights_T.index_copy(0, at_K, weights_K * together).to(rows_KP.device),
            "average_TP": average_TP.index_copy(0, signal.index_K, average_KP),
        }
        direction_P = weights_K.to(rows_KP.device, rows_KP.dtype) @ average_KP
        return replace(problem.update(after, simplex_K / problem.scale_K), direction_P=direction_P)
