"""One task's loss and its gradients at parameters a step away -> and back again.

Shapes: P = shared parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Rows


@dataclass(frozen=True)
class Slope:
    """A loss's gradients: in the shared parameters it reaches, and in all others."""

    shared: list[tuple[Tensor, Tensor]]
    own: list[tuple[Tensor, Tensor]]

    def row(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the shared gradients laid end to end, (P,), zeros where it does not reach."""
        row_P = gradients.empty_rows(1, parameters)[0]
        gradients.put(row_P, parameters, {id(p): grad for p, grad in self.shared})
        return row_P


def slope(turn: Turn, loss: Tensor, retain: bool) -> Slope:
    """Return the gradients of one loss. retain: whether to keep its graph."""
    found, _ = gradients.leaves([loss])
    grads = torch.autograd.grad(loss, found, retain_graph=retain, allow_unused=True)
    ours = {id(parameter) for parameter in turn.shared}
    reached = [(p, g) for p, g in zip(found, grads, strict=True) if g is not None]
    return Slope(
        [(p, g) for p, g in reached if id(p) in ours],
        [(p, g) for p, g in reached if id(p) not in ours],
    )


@contextlib.contextmanager
def moved(shifts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Add each shift to its parameter inside; every number is back after."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in shifts]
    try:
        for parameter, shift in shifts:
            parameter.data.add_(shift)  # unseen by autograd: graphs made before stay good
        yield
    finally:
        for parameter, value in before:
            parameter.data.copy_(value)


def slope_at(
    turn: Turn, task: int, shifts: Sequence[tuple[Tensor, Tensor]], rows: Rows
) -> Slope | None:
    """Return the gradients of one task's loss in some rows, at shifted parameters.

    task: its position on axis T. None where it has no label in those rows.
    """
    with moved(shifts):
        at, given = turn.look_again(rows, (task,))
        return slope(turn, given[0], retain=False) if at else None


def add_own(slopes: Sequence[Slope], weights_K: Tensor | None = None) -> None:
    """Add every other parameter's gradient to its `.grad`, times the weights where given."""
    for k, found in enumerate(slopes):
        for parameter, grad in found.own:
            if weights_K is not None:
                grad = grad * weights_K[k].to(grad.dtype)
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def reached(turn: Turn, slopes: Sequence[Slope]) -> set[int]:
    """Return the positions of the shared parameters that one of the losses reaches."""
    there = {id(parameter) for found in slopes for parameter, _ in found.shared}
    return {i for i, parameter in enumerate(turn.shared) if id(parameter) in there}
