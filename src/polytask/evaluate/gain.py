"""Gain: how much better or worse than the reference, per task and on average (delta-m).

Source: Maninis, Radosavovic & Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019,
    https://arxiv.org/abs/1904.08918, equation 1.
Differs from the source: nothing where every gain is defined; the source does not say what to do
    with a reference of 0. Here such a task has no gain and is left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from polytask.errors import UsageError
from polytask.tasks import TaskSet


def gains(
    tasks: TaskSet, values: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float]:
    """Return each task's gain in %, up is better, in the order of `tasks`.

    values, reference: the primary metric of every task in `tasks`; other keys are not read.
    NaN where no relative change exists: the reference is 0, either number is not finite, or the
    reference is so small that the change overflows.
    """
    found = {}
    for task in tasks:
        for name, side in (("values", values), ("reference", reference)):
            if task.name not in side:
                raise UsageError(
                    f"Gain needs a value of {task.primary.name} for every task; {name} has none "
                    f"for {task.name!r}. Give it, or ask for fewer tasks with tasks.only(...)."
                )
        gain = task.primary.gain(values[task.name], reference[task.name])
        found[task.name] = gain if math.isfinite(gain) else math.nan
    return found


def delta_m(tasks: TaskSet, values: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the mean gain over tasks in %, every task counting alike.

    Tasks whose gain is NaN (see `gains`) are left out of the mean; NaN where none is left.
    """
    defined = [gain for gain in gains(tasks, values, reference).values() if not math.isnan(gain)]
    return mean(defined) if defined else math.nan


def mean(values: list[float]) -> float:
    """Return the mean of at least one finite number; exact to rounding, so order is no matter."""
    scale = max(abs(value) for value in values) or 1.0  # keeps the sum of huge gains finite
    return scale * (math.fsum(value / scale for value in values) / len(values))
