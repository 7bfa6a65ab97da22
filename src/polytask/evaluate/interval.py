"""Intervals over seeds: Student's t for the mean of paired differences, and many tests at once.

The number of seeds is small (2 to 10), so the normal distribution's 1.96 would be far too sure: at
three seeds t is 4.30, at two it is 12.7. Student's t is exact where the differences of seeds are
normal; pairing by seed takes out what both sides share (the split, the order of the data).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from polytask.errors import UsageError
from polytask.evaluate.gain import mean

LEVEL = 0.95
"""The confidence everything here is said with, unless asked otherwise."""


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return the t interval of the mean of `values`, one paired difference per seed.

    None where there are fewer than two values, or where one is not finite: a failed seed is
    never dropped, since the seeds that are left would then speak for it.
    Values that are all exactly equal give (v, v): seeds that change nothing leave no spread to
    estimate from, and no width is invented.
    """
    if not 0 < level < 1:
        raise UsageError(f"The level of an interval is {level}; give a number between 0 and 1.")
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return None
    from scipy.special import stdtrit  # light; scipy.stats takes a second to import

    middle, error = _mean_and_error(values)
    if error == 0:
        return middle, middle
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return middle - half, middle + half


def p_value(values: Sequence[float]) -> float | None:
    """Return the two-sided p value of the t test that the mean of `values` is 0.

    None where `interval` is None. The p value is below 1 - level exactly where the interval
    excludes 0. Equal values give 0, or 1 where they are 0.
    """
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return None
    from scipy.special import stdtr

    middle, error = _mean_and_error(values)
    if error == 0:
        return 1.0 if middle == 0 else 0.0
    return 2.0 * float(stdtr(len(values) - 1, -abs(middle / error)))


def discoveries(p_values: Sequence[float], rate: float = 1 - LEVEL) -> list[bool]:
    """Return which of many tests hold when at most `rate` of those that do may be false.

    Source: Benjamini & Hochberg, "Controlling the False Discovery Rate", JRSS B 57(1), 1995,
        doi:10.1111/j.2517-6161.1995.tb02031.x. The rate is proven for independent tests and for
        tests that depend positively, which tasks of one model commonly do.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    allowed = [rank for rank, i in enumerate(order, 1) if p_values[i] <= rate * rank / len(order)]
    holds = [False] * len(p_values)
    for i in order[: max(allowed, default=0)]:
        holds[i] = True
    return holds


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, both from sums that do not depend on order."""
    if all(value == values[0] for value in values):
        return values[0], 0.0  # rounding in the mean would leave a tiny spread that is not there
    middle = mean(list(values))
    scale = max(abs(value) for value in values)  # keeps the squares finite
    squares = math.fsum((value / scale - middle / scale) ** 2 for value in values)
    return middle, scale * math.sqrt(squares / (len(values) - 1) / len(values))
