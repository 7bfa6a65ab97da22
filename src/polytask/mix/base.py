"""Mix: step, sizes and progress -> which streams feed the step.

A method answers with shares; `schedule.Schedule` turns shares into rows, once for all of them.

Shapes: S = streams.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Mix(Protocol):
    """The contract of this room: sizes -> the share of each step's rows every stream gets."""

    def __call__(self, sizes_S: Tensor, step: int) -> Tensor:
        """Return shares of shape (S,), float64, all >= 0, summing to 1.

        sizes_S: rows of each stream, int64, all > 0. step: how many updates came before.
        """
        ...
