"""A step's losses as people hand them in -> positions of the present tasks, and their losses.

The same order on the way back: the weights of an update, by name.

Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from polytask.errors import Diverged, UsageError, unknown

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
"""Scalars by name; or in the order of the tasks, None where absent; or one tensor of shape (K,)."""

At = tuple[int, ...]  # positions of tasks on axis T, ascending
Given = Sequence[Tensor] | Tensor  # the present tasks' losses, with their graphs

CACHE = 256
"""Sets of present tasks whose order and index tensor are kept, so that a step makes none anew."""


class Weights(Mapping[str, float]):
    """The weights of one update: task -> float, for the tasks present, in the order of axis T.

    Looking at a number waits for the device; the detached tensors do not: `weights_K`, and
    `losses_K`, the losses weighed, summed over micro-batches and processes.
    """

    def __init__(self, tasks: tuple[str, ...], weights_K: Tensor, losses_K: Tensor) -> None:
        self.tasks = tasks
        self.weights_K = weights_K
        self.losses_K = losses_K

    def __getitem__(self, task: str) -> float:
        try:
            return float(self.weights_K[self.tasks.index(task)])
        except ValueError:
            raise KeyError(task) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return f"Weights({dict(self)})"


def names_given(
    losses: Losses, tasks: Sequence[str] | None, known: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the names that go with the losses, as many as there are losses.

    tasks: what the caller said; None: the mapping's own, else `known`, else "0", "1", ...
    """
    if isinstance(losses, Mapping):
        if tasks is not None:
            raise UsageError("Balancer: a mapping of losses has its names; leave out tasks.")
        return tuple(losses)
    if isinstance(losses, Tensor) and losses.dim() != 1:
        raise UsageError(
            f"Balancer: losses as one tensor have shape (K,); got {tuple(losses.shape)}."
        )
    names = tuple(tasks) if tasks is not None else known
    names = names or tuple(map(str, range(len(losses))))
    if len(names) != len(losses):
        raise UsageError(
            f"Balancer: {len(losses)} losses came for {len(names)} tasks; give one per "
            "task (None where absent), or name those given with tasks=[...]."
        )
    return names


class Axis:
    """The run's tasks in order: axis T. Without names while they are not known."""

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self.tasks = tuple(tasks)
        if len(set(self.tasks)) != len(self.tasks):
            raise UsageError(
                f"Balancer: tasks must be one or more different names; got {self.tasks}."
            )
        self._at = {name: t for t, name in enumerate(self.tasks)}
        self._index: dict[At, Tensor] = {}
        self._orders: dict[tuple[str, ...], tuple[At, list[int] | None]] = {}

    def read(self, names: tuple[str, ...], losses: Losses, graph: bool = True) -> tuple[At, Given]:
        """Return the present tasks' positions, ascending, and their losses in that order.

        names: one per loss. graph: whether each loss must have one.
        """
        if isinstance(losses, Tensor):
            return self._read_tensor(names, losses, graph)
        values = losses.values() if isinstance(losses, Mapping) else losses
        at: list[int] = []
        given: list[Tensor] = []
        for name, loss in zip(names, values, strict=True):
            position = self._position(name)
            if loss is None:
                continue
            if loss.dim() != 0:
                raise UsageError(
                    f"Balancer: the loss of task {name!r} has shape {tuple(loss.shape)}; reduce "
                    "it to a scalar (mean over the labels present)."
                )
            if graph and not loss.requires_grad:
                raise _no_graph(name)
            at.append(position)
            given.append(loss)
        order = _ascending(at, names)
        return tuple(at[i] for i in order), [given[i] for i in order]

    def _read_tensor(
        self, names: tuple[str, ...], losses_K: Tensor, graph: bool
    ) -> tuple[At, Given]:
        if graph and names and not losses_K.requires_grad:
            raise _no_graph(names[0])
        if names not in self._orders:
            at = list(map(self._position, names))
            order = _ascending(at, names)
            if len(self._orders) >= CACHE:
                self._orders.clear()
            in_order = order == list(range(len(at)))
            self._orders[names] = tuple(sorted(at)), None if in_order else order
        sorted_at, moved = self._orders[names]
        return sorted_at, losses_K if moved is None else losses_K[moved]

    def _position(self, name: str) -> int:
        try:
            return self._at[name]
        except KeyError:
            known = f"This balancer's tasks are: {', '.join(self.tasks)}."
            raise unknown("task", name, self.tasks, known) from None

    def check_finite(self, at: At, losses_K: Tensor, step: int) -> None:
        """Return nothing, or raise Diverged naming the tasks whose loss is not finite."""
        # One number and one wait for the device, however many tasks; the look at each of them is
        # for when the sum is not finite, which huge losses can also make it.
        if math.isfinite(losses_K.sum().item()) or bool(torch.isfinite(losses_K).all()):
            return
        there = {self.tasks[t]: v for t, v in zip(at, losses_K.tolist(), strict=True)}
        bad = {name: v for name, v in there.items() if not math.isfinite(v)}
        names = ", ".join(f"{name!r} is {v}" for name, v in bad.items())
        raise Diverged(
            f"At step {step} the loss of task {names}; expected a finite number. Check its "
            "inputs and targets, lower the learning rate, or clip gradients.",
            f"the loss of task {', '.join(map(repr, bad))} is not finite",
        )

    def check_gradients(self, at: At, gram_KK: Tensor, step: int) -> None:
        """Return nothing, or raise Diverged naming the tasks whose gradient is not finite."""
        squares_K = gram_KK.diagonal()
        if math.isfinite(squares_K.sum().item()):
            return
        found = [t for t, v in zip(at, squares_K.tolist(), strict=True) if not math.isfinite(v)]
        if not found:  # their sum alone is too large
            return
        what = (
            f"the gradient of task {', '.join(repr(self.tasks[t]) for t in found)} in the shared "
            "parameters, or its square, is not finite"
        )
        raise Diverged(
            f"At step {step} {what}. Check the task's loss, lower the learning rate, or scale the "
            "loss.",
            what,
        )

    def names(self, at: At) -> tuple[str, ...]:
        """Return the names of the tasks at these positions."""
        if len(at) == len(self.tasks):
            return self.tasks
        return tuple(self.tasks[t] for t in at)

    def index(self, at: At, device: torch.device) -> Tensor:
        """Return the positions as an int64 tensor on the device."""
        index_K = self._index.get(at)
        if index_K is None or index_K.device != device:
            if len(self._index) >= CACHE:
                self._index.clear()
            index_K = self._index[at] = torch.tensor(at, device=device, dtype=torch.int64)
        return index_K


def _ascending(at: list[int], names: tuple[str, ...]) -> list[int]:
    if len(set(at)) != len(at):
        raise UsageError(f"Balancer: a task is named twice in {names}.")
    return sorted(range(len(at)), key=at.__getitem__)


def detached(given: Given) -> Tensor:
    """Return the losses' values, (K,), without a graph."""
    if isinstance(given, Tensor):
        return given.detach()
    return torch.stack([loss.detach() for loss in given]) if given else torch.empty(0)


def stacked(given: Given) -> Tensor:
    """Return the losses as one tensor, (K,), with their graphs; at least one."""
    return given if isinstance(given, Tensor) else torch.stack(list(given))


def multiplied(given: Given, scale_K: Tensor) -> Given:
    """Return the losses times numbers; those given one by one keep graphs of their own."""
    if isinstance(given, Tensor):
        return given * scale_K.to(given.dtype)
    return [loss * scale.to(loss.dtype) for loss, scale in zip(given, scale_K, strict=True)]


def unbound(given: Given) -> Sequence[Tensor]:
    """Return the losses one by one, with their graphs."""
    return given.unbind() if isinstance(given, Tensor) else given


def _no_graph(task: str) -> UsageError:
    return UsageError(
        f"Balancer: the loss of task {task!r} has no graph to differentiate; compute it from the "
        "model's output outside torch.no_grad() and without detach() or item()."
    )
