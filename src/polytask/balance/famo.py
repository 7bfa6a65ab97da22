"""FAMO: let every loss fall at the same relative rate, at the price of one forward more.

Source: Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023,
    https://arxiv.org/abs/2306.03792, algorithm 1; authors' code
    https://github.com/Cranial-XIX/FAMO
Differs from the source: the logits are trained by Adam, as in the authors' code, where the text has
    plain gradient descent; gamma is their code's L2 decay, in the gradient. The lower bounds of
    the losses are 0, the code's default. No 1e-8 is added to the losses: a task whose loss is
    exactly 0 would take nearly all the weight; its weight is 0, and a note says so. Absent tasks
    are left out of the softmax, and their logits do not move; the source has none.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance.adam import adam_step
from polytask.balance.base import Needs, Observed, Signal, State, TaskFault, Update, check_losses
from polytask.errors import UsageError


@dataclass(frozen=True)
class FAMO:
    """Weights that sum to 1, proportional to softmax(logits) / L.

    After the update the same batch's losses are looked at again: the logit of a task whose
    logarithm fell by more than the others' falls. Nothing depends on the units of the losses.

    lr: > 0, of the logits. gamma: >= 0, pull of the logits towards 0 and so towards equal rates.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False
    observes: ClassVar[Observed] = "after"

    lr: float = 0.025
    gamma: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UsageError(f"FAMO: lr is {self.lr}; give a value > 0 (default 0.025).")
        if not 0 <= self.gamma < math.inf:
            raise UsageError(f"FAMO: gamma is {self.gamma}; give a value >= 0 (default 1e-3).")

    def start(self, tasks: int) -> State:
        """Return logits of 0 and Adam's empty moments; NaN stands for no loss to compare with."""
        zeros_T = torch.zeros(tasks, dtype=torch.float64)
        return {
            "logits_T": zeros_T,
            "mean_T": zeros_T.clone(),
            "square_T": zeros_T.clone(),
            "count_T": zeros_T.clone(),
            "log_before_T": torch.full_like(zeros_T, torch.nan),
        }

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        note = check_losses("FAMO", signal)
        log_K = signal.losses_K.to(torch.float64).log()
        logits_K = state["logits_T"].index_select(0, signal.index_K)
        there_K = log_K > -torch.inf
        # softmax(logits) / L over its sum, without leaving logarithms.
        share_K = torch.softmax((logits_K - log_K).masked_fill(~there_K, -torch.inf), dim=0)
        weights_K = torch.where(there_K, share_K, 0.0)  # where all losses are 0, shares are NaN
        nothing_T = torch.full_like(state["log_before_T"], torch.nan)
        before_T = nothing_T.index_copy(0, signal.index_K, log_K)
        return Update(state | {"log_before_T": before_T}, weights_K, note=note)

    def observe(self, signal: Signal, state: State) -> State:
        """Return the state with the logits moved; raise where a loss is negative, or is new.

        A task whose loss is 0, or was, is left out: its logit does not move.
        """
        check_losses("FAMO", signal)
        before_K = state["log_before_T"].index_select(0, signal.index_K)
        _check_known(before_K, signal.index_K)
        after_K = signal.losses_K.to(torch.float64).log()
        there_K = (before_K > -torch.inf) & (after_K > -torch.inf)
        index_K, fall_K = signal.index_K[there_K], (before_K - after_K)[there_K]
        logits_K = state["logits_T"].index_select(0, index_K)
        shares_K = torch.softmax(logits_K, dim=0)
        grad_K = shares_K * (fall_K - shares_K @ fall_K) + self.gamma * logits_K
        kept = [state[n].index_select(0, index_K) for n in ("mean_T", "square_T", "count_T")]
        mean_K, square_K, count_K = kept
        count_K = count_K + 1
        moved = adam_step(logits_K, mean_K, square_K, grad_K, count_K, self.lr)
        new = dict(zip(("logits_T", "mean_T", "square_T"), moved, strict=True))
        new["count_T"] = count_K
        return state | {n: state[n].index_copy(0, index_K, new_K) for n, new_K in new.items()}


def _check_known(before_K: Tensor, index_K: Tensor) -> None:
    unknown_K = before_K.isnan()
    if bool(unknown_K.any()):
        k = unknown_K.tolist().index(True)
        raise TaskFault(
            "FAMO: task {task} was absent from the update that is looked at again; give the "
            "losses of the same batch.",
            int(index_K[k]),
        )
