"""How far two models' values on the same rows differ by chance of the rows.

The delete-a-group jackknife: the metric is taken again without each of G parts of the rows, and
what it varies by tells its error. It needs no rows one by one, so it serves any metric.

Shapes: G = parts of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def paired_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard error of (one - other), from values that each leave one part out.

    one, other: G values each, of the same metric, rows and parts. Both sides see the same rows,
    so what is hard for both takes itself out. Parts without which one of them has no value (a
    metric of one class) are passed over; NaN where fewer than two are left.

    Source: Quenouille, Biometrika 43, 1956, for the jackknife; sqrt((G - 1) / G sum of squares)
        over parts: Shao & Tu, The Jackknife and Bootstrap, Springer 1995, section 2.3.
    Differs from the source: nothing known.
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    known = [value for value in differences if math.isfinite(value)]
    parts = len(known)
    if parts < 2:
        return math.nan
    middle = math.fsum(known) / parts
    squares = math.fsum((value - middle) ** 2 for value in known)
    return math.sqrt((parts - 1) / parts * squares)
