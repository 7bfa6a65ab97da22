"""CoBa: more weight to tasks whose validation loss falls slowly, less to those where it rises.

Source: Gong et al., "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models",
    EMNLP 2024, https://arxiv.org/abs/2410.06741, section 3; authors' code
    https://github.com/codefuse-ai/MFTCoder, loss_utils.py
Differs from the source: the divergence factor is at most 1, as in the text; the authors' code lets
    it grow, which turns the absolute scores' sign. The window of the absolute scores is the last
    `history` slopes, as in the text; the code's is shorter by the warm-up. The slopes of the
    maximum are all remembered, but past `SLOPES` of them those of nearly one size become one, so
    that the state has a fixed size. L(0) is the task's first loss observed above 0,
    where the code takes the mean over the whole validation split.
    A task that has fewer than two losses in the window has the slope 0, as in the code.
Shapes: T = tasks of the run, K = tasks observed, H = window, S = slopes of the maximum,
    R = pairs of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance.base import (
    Needs,
    Observed,
    Signal,
    State,
    Update,
    check_losses,
    from_first,
)
from polytask.errors import UsageError

SLOPES = 4096
"""Slopes of the maximum that are remembered one by one. A multiple of 8, so that pairs come out."""


@dataclass(frozen=True)
class CoBa:
    """Weights of all T tasks that sum to 1, from the slopes of their validation losses.

    Every batch of validation rows adds one loss per task, relative to the task's first. A task
    absent from a training step takes its weight with it.

    warmup: observations before the weights leave 1 / T. history: observations that a slope is
        fitted to, and slopes that a task's own are measured against; at least `warmup`.
    tau: > 0, how sharply the divergence factor tells a rise from a fall.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = False
    observes: ClassVar[Observed] = "validation"

    warmup: int = 100
    history: int = 200
    tau: float = 5.0

    def __post_init__(self) -> None:
        if self.warmup < 2:
            raise UsageError(f"CoBa: warmup is {self.warmup}; give at least 2 (default 100).")
        if self.history < self.warmup:
            raise UsageError(
                f"CoBa: history is {self.history}, less than the warmup of {self.warmup}; give at "
                "least as many observations."
            )
        if not self.tau > 0:
            raise UsageError(f"CoBa: tau is {self.tau}; give a value > 0 (default 5).")

    def start(self, tasks: int) -> State:
        """Return empty histories, NaN where nothing was observed, and weights of 1 / T."""
        nothing = torch.tensor(torch.nan, dtype=torch.float64)
        return {
            "seen": torch.zeros((), dtype=torch.int64),
            "first_T": nothing.repeat(tasks),
            "ratios_HT": nothing.repeat(self.history, tasks),
            "slopes_HT": nothing.repeat(self.history, tasks),
            "worst_S": torch.zeros(SLOPES, dtype=torch.float64),
            "worst_counts_S": torch.zeros(SLOPES, dtype=torch.float64),
            "worst_size": torch.zeros((), dtype=torch.float64),
            "weights_T": torch.full((tasks,), 1 / tasks, dtype=torch.float64),
        }

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the present tasks' weights, (K,), float64."""
        if signal.step > self.warmup and int(state["seen"]) == 0:
            raise UsageError(
                f"CoBa has seen no validation loss in {signal.step} updates; give those of a "
                "validation batch, computed under torch.no_grad(), to balancer.observe(losses) "
                "before each update."
            )
        return Update(state, state["weights_T"].index_select(0, signal.index_K))

    def observe(self, signal: Signal, state: State) -> State:
        """Return the state with this validation batch added; raise where a loss is negative."""
        check_losses("CoBa", signal)  # 0 is a ratio like any other, once there is a first loss
        first_T = from_first(state["first_T"], signal)
        losses_K = signal.losses_K.to(torch.float64)
        ratio_K = losses_K / first_T.index_select(0, signal.index_K)
        ratio_T = torch.full_like(first_T, torch.nan).index_copy(0, signal.index_K, ratio_K)
        ratios_HT = torch.cat([state["ratios_HT"][1:], ratio_T[None]])
        seen = state["seen"] + 1
        state = state | {"seen": seen, "first_T": first_T, "ratios_HT": ratios_HT}
        return self._weighed(state) if int(seen) >= self.warmup else state

    def _weighed(self, state: State) -> State:
        ratios_HT = state["ratios_HT"]
        slope_T = slopes(ratios_HT)
        worst_H1 = ratios_HT.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
        worst = slopes(worst_H1.masked_fill(worst_H1.isinf(), torch.nan))
        slopes_HT = torch.cat([state["slopes_HT"][1:], slope_T[None]])
        worst_S, counts_S = _remember(state["worst_S"], state["worst_counts_S"], worst)
        window = (~slopes_HT.isnan()).sum(0)
        relative_T = torch.softmax(_over(len(slope_T) * slope_T, slope_T.abs().sum()), dim=0)
        absolute_T = torch.softmax(_over(-window * slope_T, slopes_HT.abs().nansum(0)), dim=0)
        size = state["worst_size"] + worst.abs().sum()
        factor = divergence_factor(worst_S, counts_S, size, self.tau)
        scores_T = factor * relative_T + (1 - factor) * absolute_T
        return state | {
            "slopes_HT": slopes_HT,
            "worst_S": worst_S,
            "worst_counts_S": counts_S,
            "worst_size": size,
            "weights_T": _floored(torch.softmax(len(scores_T) * scores_T, dim=0)),
        }


def slopes(values_HT: Tensor) -> Tensor:
    """Return each column's least-squares slope per row, (T,); NaN are left out.

    A column with fewer than two values has the slope 0.
    """
    known_HT = (~values_HT.isnan()).to(values_HT.dtype)
    count_T = known_HT.sum(0).clamp(min=1)
    rows_HT = torch.arange(len(values_HT), dtype=values_HT.dtype, device=values_HT.device)[:, None]
    values_HT = values_HT.nan_to_num()
    rows_HT = (rows_HT - (rows_HT * known_HT).sum(0) / count_T) * known_HT
    values_HT = (values_HT - (values_HT * known_HT).sum(0) / count_T) * known_HT
    return _over((rows_HT * values_HT).sum(0), rows_HT.square().sum(0))


def divergence_factor(worst_S: Tensor, counts_S: Tensor, size: Tensor, tau: float) -> Tensor:
    """Return the divergence factor in (0, 1]; the newest slope is the last that has a count.

    worst_S: slopes of the largest loss ratio; counts_S: how many slopes each is the mean of.
    size: sum of their absolute values, before any mean was taken.
    """
    number = counts_S.sum()
    heights_S = _over(-tau * number * worst_S, size)
    newest = heights_S[(counts_S > 0).sum() - 1]
    mean = torch.logsumexp(heights_S + counts_S.log(), dim=0) - number.log()  # log 0 = -inf: unused
    return torch.exp(newest - mean).clamp(max=1)


def _remember(worst_S: Tensor, counts_S: Tensor, worst: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes with one more; where they are full, the nearest become one.

    The factor sums over the slopes in whatever order, each by its exponential. So neighbours in
    size are merged, and not the steepest falls, which make up nearly all of the sum.
    """
    used = int((counts_S > 0).sum())
    if used == len(counts_S):
        order_S = worst_S.argsort(stable=True)
        worst_S, counts_S = worst_S[order_S], counts_S[order_S]
        alone = used // 4
        pairs_R2 = counts_S[alone:].view(-1, 2)
        merged_R = pairs_R2.sum(1)
        means_R = (worst_S[alone:].view(-1, 2) * pairs_R2).sum(1) / merged_R
        rest_R = torch.zeros_like(merged_R)
        worst_S = torch.cat([worst_S[:alone], means_R, rest_R])
        counts_S = torch.cat([counts_S[:alone], merged_R, rest_R])
        used -= len(merged_R)
    at = torch.tensor([used], device=counts_S.device)
    return worst_S.index_copy(0, at, worst), counts_S.index_fill(0, at, 1.0)


def _floored(weights_T: Tensor) -> Tensor:
    """Return the weights shrunk towards 1 / T, if one is below 1 / (10 T), so that none is."""
    least = 0.1 / len(weights_T)
    if not bool((weights_T < least).any()):
        return weights_T
    return weights_T * (1 - least * len(weights_T)) + least


def _over(top: Tensor, bottom: Tensor) -> Tensor:
    """Return the ratio, 0 where both are 0: a task that does not move has no slope to compare."""
    return top / torch.where(bottom > 0, bottom, 1.0)
