"""The loss of a mixed batch, normalised for each task that is present.

Shapes: N = labels (tokens or rows), T = tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import UsageError


def task_mean(
    losses_N: Tensor,
    tasks_N: Tensor,
    tasks: int,
    weights_T: Tensor | None = None,
    counts_T: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum_t w_t (mean of task t) / sum_t w_t over the tasks present; means_T; counts_T.

    losses_N: of every label, of any shape. tasks_N: whose it is, 0 to tasks - 1, same shape; -1 for
        what has no label: it adds nothing, whatever its loss is.
    weights_T: w, >= 0; None: all 1. A task that is absent takes its weight with it.
    counts_T: labels of the whole update, where this is one micro-batch or process of several: then
        the losses of all of them add up to that of the whole. None: those here.

    means_T is NaN for absent tasks, and carries no graph. Where nothing is present, or only tasks
    of weight 0, the loss is 0.
    """
    if losses_N.shape != tasks_N.shape:
        raise UsageError(
            f"task_mean: losses have shape {tuple(losses_N.shape)} and tasks "
            f"{tuple(tasks_N.shape)}; give the task of every loss."
        )
    if tasks_N.numel() and not -1 <= int(tasks_N.min()) <= int(tasks_N.max()) < tasks:
        raise UsageError(f"task_mean: a task is not in -1 to {tasks - 1}, of {tasks} tasks.")
    at_N = tasks_N.reshape(-1)
    there_N = at_N >= 0
    losses_N, at_N = losses_N.reshape(-1)[there_N], at_N[there_N]
    sums_T = losses_N.new_zeros(tasks).index_add(0, at_N, losses_N)
    if counts_T is None:
        counts_T = torch.bincount(at_N, minlength=tasks)
    counts_T = counts_T.to(losses_N.device)
    present_T = counts_T > 0
    weights_T = present_T.to(losses_N.dtype) if weights_T is None else weights_T.to(losses_N)
    if len(weights_T) != tasks or len(counts_T) != tasks or bool((weights_T < 0).any()):
        raise UsageError(f"task_mean: give a weight >= 0 and a count for each of {tasks} tasks.")
    weights_T = torch.where(present_T, weights_T, 0.0)
    means_T = sums_T / counts_T.clamp(min=1)
    total = weights_T.sum()
    loss = (weights_T * means_T).sum() / torch.where(total > 0, total, 1.0)
    return loss, torch.where(present_T, means_T.detach(), torch.nan), counts_T
