"""Temperature: between proportional and uniform.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", JMLR 2020, https://arxiv.org/abs/1910.10683, section 3.5.2; `scale` is that of
    Roberts et al., "Scaling Up Models and Data with t5x and seqio", JMLR 2023,
    https://arxiv.org/abs/2203.17189
Differs from the source: nothing known. The source sets a very large cap when it uses a
    temperature; None is no cap.
Shapes: S = streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Now, State, Streams, Varies


@dataclass(frozen=True)
class Temperature:
    """Shares in proportion to min(size * scale, cap) ** (1 / temperature).

    temperature: > 0; 1 is proportional, infinity uniform, below 1 favours large streams.
    cap: the size from which streams count as equally large, in rows; None for none.
    scale: > 0, what sizes are multiplied by before the cap: rows per stored row, such as 0.1 where
        the cap is meant in batches of ten.
    """

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = False

    temperature: float = 2.0
    cap: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"Temperature: temperature is {self.temperature}; give a value > 0 (default 2)."
            )
        if self.cap is not None and self.cap < 1:
            raise UsageError(f"Temperature: cap is {self.cap}; give at least 1 row, or None.")
        if not 0 < self.scale < math.inf:
            raise UsageError(f"Temperature: scale is {self.scale}; give a finite value > 0.")

    def start(self, streams: Streams) -> State:
        """Return nothing: there is nothing to remember."""
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        rows_S = streams.sizes_S.to(torch.float64) * self.scale
        if self.cap is not None:
            rows_S = rows_S.clamp(max=self.cap)
        # Relative to the largest, so that a low temperature underflows and never overflows.
        parts_S = (rows_S / rows_S.max()) ** (1 / self.temperature)
        return parts_S / parts_S.sum()
