"""Trimmed mean: in every coordinate, the mean without the largest and smallest gradients.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, https://arxiv.org/abs/1803.01498, definition 2
Differs from the source: made for machines some of which lie; here the rows are tasks, none of
    which does. A number is trimmed, not a fraction. With fewer tasks present than it takes, fewer
    are trimmed, so that at least one of an odd number, two of an even, stay.
Shapes: K = tasks present, P = shared parameters, C = columns of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.gradients import CHUNK
from polytask.errors import UsageError


@dataclass(frozen=True)
class TrimmedMean:
    """A direction: the coordinate-wise mean of what is left after trimming both ends.

    trim: >= 0, how many of the largest and of the smallest values are left out; 0 is the mean.
    """

    needs: ClassVar[Needs] = "rows"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    trim: int = 1

    def __post_init__(self) -> None:
        if self.trim < 0:
            raise UsageError(f"TrimmedMean: trim is {self.trim}; give an integer >= 0 (default 1).")

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the direction, (P,), and weights of 1 / K."""
        rows_KP = signal.rows_KP
        assert rows_KP is not None, "the engine gives the rows to methods that need them"
        present = len(rows_KP)
        trim = min(self.trim, (present - 1) // 2)
        direction_P = torch.empty_like(rows_KP[0])
        for rows_KC, into_C in zip(
            rows_KP.split(CHUNK, dim=1),  # type: ignore[no-untyped-call]
            direction_P.split(CHUNK),  # type: ignore[no-untyped-call]
            strict=True,
        ):
            into_C.copy_(rows_KC.sort(dim=0).values[trim : present - trim].mean(0))
        weights_K = torch.full_like(signal.losses_K, 1 / present)
        return Update(state, weights_K, direction_P=direction_P)
