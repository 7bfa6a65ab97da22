"""Standard errors of what is computed from rows, by leaving out a block of them at a time.

Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polytask.errors import DataError

BLOCKS = 10
"""Blocks left out in turn."""

LEAST = 2 * BLOCKS
"""Rows needed: two in every block."""


def jackknife(rows: int, statistic: Callable[[Tensor], Tensor], who: str) -> tuple[Tensor, Tensor]:
    """Return the statistic of all rows and its standard error, entry by entry.

    statistic: numbers of rows -> values. Row n is in block n mod BLOCKS, so order them so that
    neighbours need not be independent. Raises DataError for fewer than LEAST rows.
    """
    if rows < LEAST:
        raise DataError(f"{who}: {rows} rows in common are too few; give at least {LEAST}.")
    every_N = torch.arange(rows)
    parts = torch.stack([statistic(every_N[every_N % BLOCKS != b]) for b in range(BLOCKS)])
    off = parts - parts.mean(0)
    return statistic(every_N), ((BLOCKS - 1) / BLOCKS * off.square().sum(0)).sqrt()
