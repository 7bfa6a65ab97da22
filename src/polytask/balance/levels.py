"""Levels: each task's mean loss over one early epoch, the yardstick of the losses that follow.

What IGB and STCH share: they descend the logarithms of the losses; IGB v1 and STCH weigh them by a
softmax over how high each loss stands above its level.

Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polytask.balance.base import Signal, State, Update, check_losses


def no_levels(tasks: int) -> State:
    """Return the state before the epoch that sets the levels."""
    return {
        "sum_T": torch.zeros(tasks, dtype=torch.float64),
        "steps_T": torch.zeros(tasks, dtype=torch.float64),
    }


def gather(signal: Signal, state: State, epoch: int) -> State:
    """Return the state with this step's losses added, if the step is one of `epoch`."""
    assert signal.epoch is not None, "the engine tells the epoch where by_epoch is True"
    if signal.epoch != epoch:
        return state
    losses_K = signal.losses_K.to(torch.float64)
    ones_K = torch.ones_like(losses_K)
    return state | {
        "sum_T": state["sum_T"].index_add(0, signal.index_K, losses_K),
        "steps_T": state["steps_T"].index_add(0, signal.index_K, ones_K),
    }


def levels(state: State) -> Tensor:
    """Return every task's level, (T,); NaN where that epoch had no loss of it, or none above 0."""
    mean_T = state["sum_T"] / state["steps_T"]
    return torch.where(mean_T > 0, mean_T, torch.nan)


def weigh_by_level(
    method: str, signal: Signal, state: State, epoch: int, height: Callable[[Tensor], Tensor]
) -> Update:
    """Return weights K softmax(height(L / level)) / L, float64; 1 / L up to the end of `epoch`.

    method: the name to tell. epoch: the one whose mean losses are the levels.
    A task without a level, for it had no label in that epoch, keeps 1 / L. One whose loss is 0 has
    the weight 0 and is left out of the softmax and of K. Raises where a loss is negative.
    """
    note = check_losses(method, signal)
    state = gather(signal, state, epoch)
    losses_K = signal.losses_K.to(torch.float64)
    if signal.epoch is None or signal.epoch <= epoch:
        return Update(state, torch.where(losses_K > 0, 1 / losses_K, 0.0), note=note)
    levels_K = levels(state).index_select(0, signal.index_K)
    known_K = ~levels_K.isnan() & (losses_K > 0)
    height_K = height(losses_K / levels_K).masked_fill(~known_K, -torch.inf)
    shares_K = torch.softmax(height_K, dim=0)  # NaN where no task has a level, and then not taken
    weights_K = torch.where(known_K, known_K.sum() * shares_K, 1.0) / losses_K
    return Update(state, torch.where(losses_K > 0, weights_K, 0.0), note=note)
