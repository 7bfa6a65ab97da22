"""GLS: descend the geometric mean of the losses.

Source: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy
    for Multi-Task Learning", CVPR Workshops 2019, https://arxiv.org/abs/1904.08492
Differs from the source: nothing known; the mean is formed from logarithms, so that no product of
    many small or large losses leaves the range of floats. Absent tasks are left out of the mean,
    and so is a loss of exactly 0, which would end all training: its weight is 0, and a note says
    so.
Shapes: K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import Needs, Signal, State, Update, check_losses


@dataclass(frozen=True)
class GLS:
    """Weights M / (K L_k), the gradient of M = (L_1 ... L_K)^(1/K) in each loss.

    Scaling one loss scales the whole update and leaves its direction as it was.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    def start(self, tasks: int) -> State:
        """Return an empty state: nothing is remembered."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        note = check_losses("GLS", signal)
        losses_K = signal.losses_K.to(torch.float64)
        there_K = losses_K > 0
        log_K = torch.where(there_K, losses_K, 1.0).log()
        count = there_K.sum()
        weights_K = torch.exp(log_K.sum() / count - log_K) / count
        return Update(state, torch.where(there_K, weights_K, 0.0), note=note)
