"""Temperature: between proportional and uniform.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", JMLR 2020, https://arxiv.org/abs/1910.10683, section 3.5.2
Differs from the source: nothing known. The source sets a very large cap when it uses a
    temperature; None is no cap.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError


@dataclass(frozen=True)
class Temperature:
    """Shares in proportion to min(size, cap) ** (1 / temperature).

    temperature: > 0; 1 is proportional, infinity uniform, below 1 favours large streams.
    cap: the size from which streams count as equally large, in rows; None for none.
    """

    temperature: float = 2.0
    cap: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"Temperature: temperature is {self.temperature}; give a value > 0 (default 2)."
            )
        if self.cap is not None and self.cap < 1:
            raise UsageError(f"Temperature: cap is {self.cap}; give at least 1 row, or None.")

    def __call__(self, sizes_S: Tensor, step: int) -> Tensor:
        """Return shares of shape (S,), float64."""
        capped_S = sizes_S if self.cap is None else sizes_S.clamp(max=self.cap)
        rows_S = capped_S.to(torch.float64)
        # Relative to the largest, so that a low temperature underflows and never overflows.
        parts_S = (rows_S / rows_S.max()) ** (1 / self.temperature)
        return parts_S / parts_S.sum()
