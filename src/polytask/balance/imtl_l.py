"""IMTL-L: learn a scale for each loss that brings all of them to 1.

Source: Liu et al., "Towards Impartial Multi-Task Learning", ICLR 2021,
    https://openreview.net/forum?id=IMPnRXEWpvr
Differs from the source: the source scales the losses and then balances the scaled gradients by
    IMTL-G; this is the loss half alone, which the source reports as "IMTL-L". The base of the
    exponential is e, the source's choice. Scales are trained by the model's optimiser.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from polytask.balance.base import Needs, Signal, State, Update, check_losses


class IMTLL(nn.Module):
    """Weights exp(s) with s, one number per task, learned along with the model.

    Minimises sum_k exp(s_k) L_k - s_k over the tasks present: s_k settles at -log L_k, so the
    scaled losses come to 1 each. An absent task's s gets no gradient.
    Give `Balancer.parameters()` to the optimiser, without weight decay.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False

    log_scale_T: nn.Parameter

    def start(self, tasks: int) -> State:
        """Set every s to 0, weight 1; return an empty state, for s is a parameter."""
        self.log_scale_T = nn.Parameter(torch.zeros(tasks))
        return {}

    def forward(self, signal: Signal, state: State) -> Update:
        """Return weights exp(s) and the penalty, minus the sum of s, both with a graph into s.

        Raises where a loss is negative: its s would grow without bound. A loss that stays 0 lets
        it grow too; one that is 0 now and then does no harm.
        """
        check_losses("IMTL-L", signal)
        # index_select, not indexing: its gradient is 0 for absent tasks and deterministic.
        log_scale_K = self.log_scale_T.index_select(0, signal.index_K)
        return Update(state, torch.exp(log_scale_K), penalty=-log_scale_K.sum())
