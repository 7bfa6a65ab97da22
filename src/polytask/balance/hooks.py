"""What the hooks into other people's loops share: `lightning` and `hugging_face`.

Both let the loop own accumulation, clipping, precision, schedules and checkpoints, and put a
Balancer where the loop would have called `loss.backward()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.balance.engine import Balancer
from polytask.balance.world import World
from polytask.balance.wrapper import Rows, label
from polytask.errors import RunError, UsageError

ByTask = dict[str, Tensor | None]
"""Mean losses of one batch, scalars with a graph; None, or no entry, where a task is absent."""


def losses_by_task(output: Any, balancer: Balancer, who: str) -> ByTask:
    """Return the losses that a user's function handed over; raise UsageError on anything else.

    who: the function, for the error. A loss without a graph, or of an unknown task, is for the
    balancer to tell.
    """
    wanted = "a dict of one scalar loss per task, such as {'depth': loss_a, 'normals': loss_b}"
    if not isinstance(output, Mapping):
        raise UsageError(f"{who} must return {wanted}; it returned {_kind(output)}.")
    for name, loss in output.items():
        if loss is None:
            continue
        if not isinstance(name, str) or not isinstance(loss, Tensor) or loss.dim() != 0:
            raise UsageError(
                f"{who} must return {wanted} (None where a task is absent); its entry {name!r} is "
                f"{_kind(loss)}."
            )
    if not balancer.tasks and "loss" in output and len(output) > 1:
        raise UsageError(
            f"{who} returned 'loss' beside {', '.join(map(repr, output.keys() - {'loss'}))}; "
            "return the losses by task alone, their sum is not one of them. If a task is called "
            "'loss', name the tasks: Balancer(..., tasks=[...])."
        )
    return dict(output)


def shares(losses: ByTask, parts: int) -> ByTask:
    """Return the losses over the number of parts of their update: micro-batches x processes."""
    if parts == 1:
        return losses
    return {name: None if loss is None else loss / parts for name, loss in losses.items()}


def of_tasks(losses: ByTask, tasks: Sequence[str]) -> ByTask:
    """Return the losses of these tasks alone."""
    return {task: losses[task] for task in tasks if task in losses}


def rows_of(batch: Any, rows: Rows) -> Any:
    """Return the batch with those rows of its tensors: a tensor, or dicts and sequences of them.

    What is no tensor, or one without rows, is kept as it is.
    """
    if isinstance(batch, Tensor):
        return rows(batch) if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {name: rows_of(value, rows) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [rows_of(value, rows) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def detached(losses: ByTask) -> dict[str, Tensor]:
    """Return the present tasks' losses without their graphs."""
    return {name: loss.detach() for name, loss in losses.items() if loss is not None}


def total(losses: ByTask, device: torch.device) -> Tensor:
    """Return the unweighted sum of the losses without a graph: what the loop may report."""
    given = detached(losses).values()
    return torch.stack(list(given)).sum() if given else torch.zeros((), device=device)


def add_trained(balancer: Balancer, optimiser: Optimizer, scheduled: bool, remedy: str) -> None:
    """Give the method's trained parameters, if any, to the optimiser, without weight decay.

    Those it has already stay where they are. scheduled: whether learning-rate schedules were made
    for the groups there are, so that none can be added; UsageError, with the remedy, if one must.
    """
    there = {id(p) for group in optimiser.param_groups for p in group["params"]}
    missing = [p for p in balancer.parameters() if id(p) not in there]
    if not missing:
        return
    if scheduled:
        raise UsageError(
            f"{label(balancer.method)} has trained parameters, and the learning-rate "
            f"schedule was made without them. {remedy}"
        )
    optimiser.add_param_group({"params": missing, "weight_decay": 0.0})


def check_tasks(balancer: Balancer, saved: Sequence[str]) -> None:
    """Return nothing where a checkpoint of these tasks fits; else raise RunError.

    A balancer that knows no tasks yet is for `load_state_dict` to refuse.
    """
    if balancer.tasks and balancer.tasks != tuple(saved):
        raise RunError(
            f"The checkpoint's balancer has the tasks {', '.join(saved)}; this one has "
            f"{', '.join(balancer.tasks)}. Give the same tasks in the same order."
        )


class Means:
    """Sums losses over the batches of a validation run."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: ByTask) -> None:
        """Add one batch."""
        for name, loss in detached(losses).items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, balancer: Balancer, device: torch.device) -> dict[str, Tensor]:
        """Return each task's sum over the batches that have it, in any process, over their number.

        Which is this process's share of the mean. Forgets the batches.
        device: one that the processes can talk from.
        """
        counts: dict[str, float] = dict(self._counts)
        if balancer.processes > 1:
            here = [float(counts.get(task, 0)) for task in balancer.tasks]
            counts_T = torch.tensor(here, device=device)
            World().add_up(counts_T)
            counts |= zip(balancer.tasks, counts_T.tolist(), strict=True)
        parts = {name: value / counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        return parts


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"
