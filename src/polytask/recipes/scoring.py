"""How a run's weights are chosen: one number of the tasks' primary metrics, up is better."""

from __future__ import annotations

from collections.abc import Mapping

from polytask.evaluate import delta_m
from polytask.fit import Score
from polytask.tasks import TaskSet


def score_for(tasks: TaskSet, reference: Mapping[str, float] | None) -> Score:
    """Return how weights are chosen: by delta-m in % against `reference`.

    Without one: a single task by its primary metric; several by delta-m against the run's own
    first validation, so that every task counts alike whatever its unit.
    """
    if reference is not None:
        return lambda values, first: delta_m(tasks, values, reference)
    if len(tasks) == 1:
        sign = 1.0 if tasks[0].primary.direction == "max" else -1.0
        return lambda values, first: sign * values[tasks[0].name]
    return lambda values, first: progress(tasks, values, first)


def progress(tasks: TaskSet, values: Mapping[str, float], first: Mapping[str, float]) -> float:
    """Return delta-m of a run against a first validation, its own or another's.

    A task that scored exactly 0 there (an F1 before anything is found) has no relative change; it
    counts by its points, so that what it learns later is not left out.
    """
    zero = {name for name in tasks.names if first[name] == 0}
    moved = {n: values[n] + 1 if n in zero else values[n] for n in tasks.names}
    return delta_m(tasks, moved, {n: 1.0 if n in zero else first[n] for n in tasks.names})
