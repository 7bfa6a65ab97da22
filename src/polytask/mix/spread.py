"""Numbers from 0 to 1 that spread evenly from step to step."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

GOLDEN = (math.sqrt(5) - 1) / 2


@lru_cache(maxsize=64)
def offset(seeds: tuple[int, ...]) -> float:
    """Return where a sequence begins: uniform over seeds."""
    return float(np.random.default_rng(seeds).random())


def spread(begin: float, step: int) -> float:
    """Return number `step` of the sequence: uniform over beginnings, even over steps.

    The golden ratio's multiples are the sequence whose points lie most evenly at every length.
    """
    return (begin + step * GOLDEN) % 1
