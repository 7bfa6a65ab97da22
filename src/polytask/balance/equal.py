"""Equal: the plain sum of the losses, the baseline of every comparison.

Source: none; training on the summed loss is older than its name.
Differs from the source: nothing known. Where papers average instead of summing, the learning rate
    differs by the factor T.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import Needs, Signal, State, Update


@dataclass(frozen=True)
class Equal:
    """Weights of 1 for every task present."""

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False

    def start(self, tasks: int) -> State:
        """Return an empty state: nothing is remembered."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return ones of shape (K,)."""
        return Update(state, torch.ones_like(signal.losses_K))
