"""IGB v1: raise the weight of the tasks that have come least far below an early level.

Source: Dai, Fei & Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023,
    https://arxiv.org/abs/2307.15429, the first of its two algorithms; authors' code
    https://github.com/YanqiDai/IGB4MTL
Differs from the source: nothing known where every task is in every step. As in the authors' code
    the weights multiply the logarithms of the losses. A task that had no label in the epoch that
    sets the levels keeps the weight 1 / L; the source does not treat missing labels. A loss of
    exactly 0 has no logarithm; its weight is 0, and a note says so.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.levels import no_levels, weigh_by_level
from polytask.errors import UsageError


@dataclass(frozen=True)
class IGBv1:
    """Weights K softmax(L / level) / L, with each task's mean loss in an early epoch as its level.

    The gap left to improve is taken as L / level, the loss of a perfect model as 0. Until the
    levels are known the weights are 1 / L.

    level_epoch: the epoch whose mean losses become the levels, counted from 0.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = True

    level_epoch: int = 1

    def __post_init__(self) -> None:
        if self.level_epoch < 0:
            raise UsageError(
                f"IGBv1: level_epoch is {self.level_epoch}; give an epoch >= 0 (default 1)."
            )

    def start(self, tasks: int) -> State:
        """Return empty sums of the losses of the epoch that sets the levels."""
        return no_levels(tasks)

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        return weigh_by_level("IGBv1", signal, state, self.level_epoch, lambda ratio_K: ratio_K)
