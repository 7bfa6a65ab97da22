"""GradNorm: learn weights that give slow tasks larger gradients and fast ones smaller.

Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", ICML 2018, https://arxiv.org/abs/1711.02257, algorithm 1
Differs from the source: norms are those of the gradients in all shared parameters, not in the last
    shared layer, and come from the Gramian's diagonal. Weights are a softmax times their number,
    so they stay positive and keep their sum by themselves; the source rescales free weights after
    each update. The objective is divided by the mean norm, so that its gradient, and with it the
    clipping of gradients, does not depend on the units of the losses. A task's own parameters are
    trained on its unweighted loss, as under all methods that need the Gramian here. L(0) is the
    task's first loss above 0; before there is one, the task's r is 1. Absent tasks are left out of
    means and softmax; the source has none.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from polytask.balance.base import Needs, Signal, State, Update, check_losses, from_first
from polytask.errors import UsageError


class GradNorm(nn.Module):
    """Weights K softmax(s) with s, one number per task, learned along with the model.

    Minimises sum_k |w_k |g_k| - M r_k^alpha| / M in s, with M the mean of w |g|, and r_k the task's
    L / L(0) over the mean of these; M and r are held fixed in the gradient.
    Give `Balancer.parameters()` to the optimiser, without weight decay.

    alpha: >= 0; 0 asks for equal norms, more pulls harder towards one training rate.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    logits_T: nn.Parameter

    def __init__(self, alpha: float = 1.5) -> None:
        super().__init__()
        if not alpha >= 0:
            raise UsageError(f"GradNorm: alpha is {alpha}; give a value >= 0 (default 1.5).")
        self.alpha = alpha

    def start(self, tasks: int) -> State:
        """Set every s to 0, weight 1; return a state without first losses."""
        self.logits_T = nn.Parameter(torch.zeros(tasks))
        return {"first_T": torch.full((tasks,), torch.nan, dtype=torch.float64)}

    def forward(self, signal: Signal, state: State) -> Update:
        """Return weights and the objective as penalty; raise where a loss is negative."""
        check_losses("GradNorm", signal)  # 0 is a ratio like any other, once there is a first loss
        assert signal.gram_KK is not None
        first_T = from_first(state["first_T"], signal)
        ratio_K = signal.losses_K.to(torch.float64) / first_T.index_select(0, signal.index_K)
        logits_K = self.logits_T.index_select(0, signal.index_K).to(torch.float64)
        weights_K = len(logits_K) * torch.softmax(logits_K, dim=0)
        norms_K = weights_K * signal.gram_KK.diagonal().sqrt()
        mean = norms_K.detach().mean()
        # NaN: no loss above 0 yet, of this task or, where the mean is 0, of any in this step.
        rate_K = (ratio_K / ratio_K.nanmean()).nan_to_num(nan=1.0)
        target_K = mean * rate_K**self.alpha
        # Where no task has a gradient there is nothing to balance; 0 / 0 would be NaN.
        penalty = (norms_K - target_K).abs().sum() / torch.where(mean > 0, mean, 1.0)
        return Update({"first_T": first_T}, weights_K.detach(), penalty=penalty)
