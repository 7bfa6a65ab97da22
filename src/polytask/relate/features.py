"""Features of several tasks' models on the same inputs, checked and flattened.

Shapes: N = rows, F = features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import check_tasks


def on_same_rows(features: Mapping[str, Tensor], who: str) -> tuple[tuple[str, ...], list[Tensor]]:
    """Return the tasks and their features (N, F) in float64; F may differ between tasks."""
    tasks = tuple(features)
    check_tasks(tasks, who)
    rows = {task: len(given) for task, given in features.items()}
    if len(set(rows.values())) > 1:
        raise UsageError(
            f"{who}: features are to be of the same inputs, row by row; rows per task: {rows}."
        )
    flat = [
        given.detach().to("cpu", torch.float64).reshape(len(given), -1)
        for given in features.values()
    ]
    for task, given in zip(tasks, flat, strict=True):
        if not bool(given.isfinite().all()):
            raise DataError(f"{who}: the features of {task!r} are not all finite.")
    return tasks, flat
