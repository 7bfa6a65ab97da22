"""Fixed: a constant weight for each task, chosen beforehand.

Source: none; linear scalarisation is older than its name. That weights found by search match newer
    methods is the finding of Kurin et al., "In Defense of the Unitary Scalarization for Deep
    Multi-Task Learning", NeurIPS 2022, https://arxiv.org/abs/2201.04122, and of Xin et al., "Do
    Current Multi-Task Optimization Methods in Deep Learning Even Help?", NeurIPS 2022,
    https://arxiv.org/abs/2209.11379
Differs from the source: nothing known.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.errors import UsageError


@dataclass(frozen=True)
class Fixed:
    """The weights given, whatever the losses.

    weights: one number >= 0 per task in the order of axis T, in a recipe parted by "/"; None:
        all 1. A task of weight 0 is measured and not trained.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not (
            all(0 <= w < math.inf for w in self.weights) and any(self.weights)
        ):
            raise UsageError(
                f"Fixed: weights are {self.weights}; give finite numbers >= 0, not all 0."
            )

    def start(self, tasks: int) -> State:
        """Return the weights as state; raise where they are for another number of tasks."""
        if self.weights is not None and len(self.weights) != tasks:
            raise UsageError(
                f"Fixed: {len(self.weights)} weights came for {tasks} tasks; give one per task."
            )
        return {"weights_T": torch.tensor(self.weights or (1.0,) * tasks, dtype=torch.float64)}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the present tasks' weights, (K,)."""
        return Update(state, state["weights_T"].index_select(0, signal.index_K))
