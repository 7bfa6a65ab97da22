"""A merged model made of coefficients: base + sum over tasks of coefficient x task vector.

Gradients go to the coefficients (and masks) alone. `pull` runs the tasks one after the other on a
detached copy of the merged tensors and goes back to the coefficients once, at the end.

Memory: the base, T task vectors, one merged copy with its gradient, and the activations of one
task; not T graphs. Coefficients of parts of tensors keep another T copies until `pull` returns.

Shapes: T = tasks, N = tensors, K = parts of a tensor, P = entries of a tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.family import Tensors, moved

Level = Literal["task", "layer"]


class Coefficients:
    """One coefficient per task, or per (tensor, task), or per (part of a tensor, task).

    values: (T,) for level "task", (N, T) for "layer", (N, T, K) for parts = K > 1.
    parts: each tensor's entries are dealt to K parts at random, by `seed` and the tensor's name.
    """

    def __init__(
        self,
        base: Tensors,
        deltas: Tensors,
        start: float,
        level: Level,
        parts: int = 1,
        seed: int = 0,
    ) -> None:
        if parts < 1 or (parts > 1 and level == "task"):
            raise UsageError(
                f"Coefficients of {parts} parts at level {level!r}; give parts >= 1, and parts > 1 "
                "with level 'layer' alone."
            )
        self._base, self._deltas = base, deltas
        first = next(iter(deltas.values()))
        shape = {"task": (), "layer": (len(base),)}[level] + (len(first),)
        self.values = torch.full((*shape, parts) if parts > 1 else shape, start).to(first.device)
        self._level = level
        self._parts: Tensors = {}
        if parts > 1:
            for name, tensor in base.items():
                drawn = torch.randint(parts, (tensor.numel(),), generator=named(seed, name))
                self._parts[name] = drawn.to(tensor.device)

    def of(self, values: Tensor) -> dict[str, Tensor]:
        """Return each tensor's coefficients, (T,) or (T, K)."""
        if self._level == "task":
            return dict.fromkeys(self._base, values)
        return dict(zip(self._base, values.unbind(), strict=True))

    def merge(self, values: Tensor, deltas: Tensors | None = None) -> Tensors:
        """Return the merged tensors. deltas: others than those it was made with, (T, ...)."""
        return moved(self._base, self.changes(values, deltas))

    def changes(self, values: Tensor, deltas: Tensors | None = None) -> Tensors:
        """Return the sum over tasks of coefficient x task vector."""
        deltas = deltas or self._deltas
        changes = {}
        for name, lam in self.of(values).items():
            delta = deltas[name]
            lam = lam.to(delta.dtype)
            if name in self._parts:
                each_TP = lam[:, self._parts[name]].reshape(delta.shape)
                changes[name] = (each_TP * delta).sum(0)
            else:
                changes[name] = torch.tensordot(lam, delta, 1)
        return changes


def pull(merged: Tensors, losses: Callable[[Tensors], Iterable[Tensor]]) -> Tensor:
    """Return the sum of the losses, detached, after adding gradients to what `merged` is made of.

    losses: called with leaf copies of the merged tensors; yields one loss after the other, and each
        is gone back through before the next is asked for. What else requires gradients in a loss
        (a head, a perturbation) gets them then.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in merged.items()}
    total: Tensor | None = None
    for loss in losses(leaves):
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None, "there is at least one task"
    reached = [
        (tensor, gradient)
        for name, tensor in merged.items()
        if tensor.requires_grad and (gradient := leaves[name].grad) is not None
    ]
    if reached:
        tensors, gradients = zip(*reached, strict=True)
        torch.autograd.backward(tensors, gradients)
    return total


def named(seed: int, name: str, turn: int = 0) -> torch.Generator:
    """Return a generator of its own for every seed, tensor and turn, whatever the others draw."""
    digest = hashlib.sha256(f"{seed}/{turn}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
