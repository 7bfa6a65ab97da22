"""Uncertainty weighting: learn each task's noise and divide its loss by it.

Source: Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics", CVPR 2018, https://arxiv.org/abs/1705.07115
Differs from the source: with s = log sigma^2 the source weighs a squared error by exp(-s) / 2 and
    a cross-entropy by exp(-s); here every loss is weighed by exp(-s), since a method does not know
    what its losses are. For a squared error that is the source's rule with the loss counted
    twice: at its optimum s is larger by log 2 and the weight of the gradient is the same. The
    penalty, s / 2 per task, is the source's log sigma.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from polytask.balance.base import Needs, Signal, State, Update, check_losses


class Uncertainty(nn.Module):
    """Weights exp(-s) with s, the log-variance of each task, learned along with the model.

    Minimises sum_k exp(-s_k) L_k + s_k / 2 over the tasks present: s_k settles at log(2 L_k).
    An absent task's s gets no gradient.
    Give `Balancer.parameters()` to the optimiser, without weight decay.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False

    log_variance_T: nn.Parameter

    def start(self, tasks: int) -> State:
        """Set every s to 0, weight 1; return an empty state, for s is a parameter."""
        self.log_variance_T = nn.Parameter(torch.zeros(tasks))
        return {}

    def forward(self, signal: Signal, state: State) -> Update:
        """Return weights exp(-s) and the penalty sum of s / 2, both with a graph into s.

        Raises where a loss is negative: its weight would grow without bound. A loss that stays 0
        lets it grow too; one that is 0 now and then does no harm.
        """
        check_losses("Uncertainty", signal)
        # index_select, not indexing: its gradient is 0 for absent tasks and deterministic.
        log_variance_K = self.log_variance_T.index_select(0, signal.index_K)
        return Update(state, torch.exp(-log_variance_K), penalty=log_variance_K.sum() / 2)
