"""STCH: descend a smooth maximum of the losses, each measured against its level after a warm-up.

Source: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024,
    https://arxiv.org/abs/2402.19078; authors' code for multi-task learning
    https://github.com/Xi-L/STCH
Differs from the source: nothing known where every task is in every step. As in the authors' code
    the objectives are log(L / level), all preferred alike, with the ideal point at log 1 = 0 and
    the whole multiplied by the number of tasks. A task that had no label in the epoch that sets
    the levels keeps the warm-up's rule; the source does not treat missing labels. A loss of exactly
    0 has the weight 0, and a note says so; the code adds 1e-20, which weighs it by 1e20.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.levels import no_levels, weigh_by_level
from polytask.errors import UsageError


@dataclass(frozen=True)
class STCH:
    """Weights K softmax(log(L / level) / mu) / L: the task farthest above its level comes first.

    They are the gradient of K mu log sum_k exp(log(L_k / level_k) / mu), invariant to the unit of
    every loss. Until the levels are known: 1 / L, the gradient of the sum of logarithms.

    mu: > 0, unitless; towards 0 the worst task alone is trained, large values mean 1 / L.
    warmup: whole epochs before the one whose mean losses become the levels.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = True

    mu: float = 1.0
    warmup: int = 4

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise UsageError(f"STCH: mu is {self.mu}; give a value > 0 (default 1).")
        if self.warmup < 0:
            raise UsageError(f"STCH: warmup is {self.warmup}; give epochs >= 0 (default 4).")

    def start(self, tasks: int) -> State:
        """Return empty sums of the losses of the epoch that sets the levels."""
        return no_levels(tasks)

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        return weigh_by_level(
            "STCH", signal, state, self.warmup, lambda ratio_K: ratio_K.log() / self.mu
        )
