"""Reused memory: tensors over one buffer, with their bytes at hand for the system's reads.

Shapes: R = rows, P = elements of a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 64
"""Views that are kept: pieces of full size, and those of the last few tensors that end earlier."""


@dataclass(frozen=True, slots=True)
class Window:
    """A contiguous tensor and its memory as bytes."""

    values_P: Tensor
    bytes: memoryview


def window(values_P: Tensor) -> Window:
    """Return a window on a contiguous tensor of the processor's memory."""
    numbers: Any = values_P.reshape(-1).view(torch.uint8).numpy()
    return Window(values_P, memoryview(numbers))


class Arena:
    """One buffer that all views of it share; it grows where a view needs more."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)
        self._views: dict[tuple[int, int, torch.dtype], tuple[Tensor, tuple[Window, ...]]] = {}

    def rows(self, rows: int, count: int, dtype: torch.dtype) -> tuple[Tensor, tuple[Window, ...]]:
        """Return (rows, count) elements as one tensor, and each row; what they held is lost."""
        key = (rows, count, dtype)
        found = self._views.get(key)
        if found is None:
            size = rows * count * dtype.itemsize
            if size > len(self._memory) or len(self._views) >= KEPT:
                self._views.clear()
            if size > len(self._memory):
                self._memory = torch.empty(size, dtype=torch.uint8)
            all_RP = self._memory[:size].view(dtype).view(rows, count)
            found = self._views[key] = (all_RP, tuple(map(window, all_RP)))
        return found

    def one(self, count: int, dtype: torch.dtype) -> Window:
        """Return one row of `count` elements."""
        return self.rows(1, count, dtype)[1][0]
