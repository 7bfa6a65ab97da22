"""DWA: raise the weight of the tasks whose loss falls slowest.

Source: Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    https://arxiv.org/abs/1803.10704
Differs from the source: nothing known where every task is in every step. A task that had no
    label in one of the last two epochs takes the rate 1, as all tasks do in the first two; the
    source does not treat missing labels. So does one whose mean loss was exactly 0 in the older
    of the two, and a note says so.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State, TaskFault, Update
from polytask.errors import UsageError


@dataclass(frozen=True)
class DWA:
    """Weights of all T tasks that sum to T: T softmax(rate / temperature).

    A task's rate is its mean loss of the last epoch over that of the epoch before. A task absent
    from a step takes its weight with it; the others keep theirs.
    temperature: > 0, unitless; larger means closer to equal weights.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = True

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"DWA: temperature is {self.temperature}; give a value > 0 (default 2)."
            )

    def start(self, tasks: int) -> State:
        """Return the empty history: NaN stands for an epoch without labels."""
        return {
            "epoch": torch.zeros((), dtype=torch.int64),
            "sum_T": torch.zeros(tasks, dtype=torch.float64),
            "steps_T": torch.zeros(tasks, dtype=torch.float64),
            "means_2T": torch.full((2, tasks), torch.nan, dtype=torch.float64),  # older, newer
            "weights_T": torch.ones(tasks, dtype=torch.float64),
        }

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of the present tasks; raise where an epoch's mean loss is negative."""
        assert signal.epoch is not None, "the engine tells the epoch where by_epoch is True"
        # An epoch begins once in many steps, so reading one number from the state is cheap; on a
        # device it follows the engine's own wait for the losses.
        note = None
        if int(state["epoch"]) != signal.epoch:
            state = self._next_epoch(state, signal.epoch)
            if bool((state["means_2T"][0] == 0).any()):
                note = "a mean loss was 0 over an epoch; took its task's rate as 1"
        losses_K = signal.losses_K.to(torch.float64)
        state = state | {
            "sum_T": state["sum_T"].index_add(0, signal.index_K, losses_K),
            "steps_T": state["steps_T"].index_add(0, signal.index_K, torch.ones_like(losses_K)),
        }
        return Update(state, state["weights_T"].index_select(0, signal.index_K), note=note)

    def _next_epoch(self, state: State, epoch: int) -> State:
        mean_T = state["sum_T"] / state["steps_T"]  # 0 / 0: NaN, no label in the whole epoch
        _check_means(mean_T, int(state["epoch"]))
        means_2T = torch.stack([state["means_2T"][1], mean_T])
        rate_T = torch.nan_to_num(means_2T[1] / means_2T[0], nan=1.0, posinf=1.0)
        return {
            "epoch": torch.full_like(state["epoch"], epoch),
            "sum_T": torch.zeros_like(mean_T),
            "steps_T": torch.zeros_like(mean_T),
            "means_2T": means_2T,
            "weights_T": len(rate_T) * torch.softmax(rate_T / self.temperature, dim=0),
        }


def _check_means(mean_T: Tensor, epoch: int) -> None:
    for t, mean in enumerate(mean_T.tolist()):
        if mean < 0:
            raise TaskFault(
                f"DWA: the mean loss of task {{task}} over epoch {epoch} is {mean:g}; DWA divides "
                "losses of epochs, so none may be negative. Use a loss bounded below by 0, or "
                "another method.",
                t,
            )
