"""Rounds of tuning apart and merging: what ATM and ColD Fusion have in common.

Shapes: T = tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.family import Family, Merged, Tensors, moved
from polytask.tasks import TaskSet

Tune = Callable[[nn.Module, str], nn.Module]
"""A model and its task -> the model, tuned: the same object, changed, or another."""


def alternate(
    who: str,
    models: Mapping[str, nn.Module],
    tasks: TaskSet,
    tune: Tune,
    merge: Callable[[Family], Tensors],
    rounds: int,
    own: Sequence[str] | None,
    after: Callable[[int, dict[str, nn.Module]], None],
) -> dict[str, nn.Module]:
    """Return each task's model after all rounds: the same shared tensors, and its own head.

    models: per task, with its head, where the first round starts; they stay as they are, and must
        agree in what they share. after: is told the number of rounds done, and the models.
    """
    if rounds < 1:
        raise UsageError(f"{who}: rounds is {rounds}; give a whole number >= 1.")
    now = {task: copy.deepcopy(models[task]) for task in tasks.names}
    start = Family(now[tasks.names[0]], now, tasks, own)
    for name, delta in start.deltas.items():
        if bool(delta.any()):
            raise UsageError(
                f"{who}: the models to begin with differ in {name!r}, which they share; give "
                "copies of one base with a head each."
            )
    for done in range(1, rounds + 1):
        base = copy.deepcopy(now[tasks.names[0]])
        tuned = {task: tune(model, task) for task, model in now.items()}
        family = Family(base, tuned, tasks, own)
        now = family.models(Merged(merge(family)))
        after(done, now)
    return now


def nothing(done: int, models: dict[str, nn.Module]) -> None:
    """Do nothing after a round."""


def moved_mean(family: Family, scale: float) -> Tensors:
    """Return base + (scale / T) * sum of the task vectors."""
    with torch.no_grad():
        return moved(family.base, {n: scale * d.mean(0) for n, d in family.deltas.items()})
