"""Scale-invariant: descend the sum of the losses' logarithms.

Source: the baseline "SI" of Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
    https://arxiv.org/abs/2202.01017
Differs from the source: a loss of exactly 0 has no logarithm; its weight is 0, and a note says so.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import Needs, Signal, State, Update, check_losses


@dataclass(frozen=True)
class ScaleInvariant:
    """Weights 1 / L_k, the gradient of sum_k log L_k: no unit of a loss changes the update."""

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    def start(self, tasks: int) -> State:
        """Return an empty state: nothing is remembered."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        note = check_losses("ScaleInvariant", signal)
        losses_K = signal.losses_K.to(torch.float64)
        return Update(state, torch.where(losses_K > 0, 1 / losses_K, 0.0), note=note)
