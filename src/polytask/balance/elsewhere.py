"""Tasks' gradients here, and at parameters a step away -> summed over the whole update.

The whole: every micro-batch, computed again, and every process. Where a task's loss is looked at is
its own; so each process moves the parameters by the whole update's gradient, and looks at its rows.

Shapes: K = tasks present in the update, P = shared parameters, W = processes, N = numbers of some
parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.exact import Pending
from polytask.balance.losses import At, Given, unbound
from polytask.balance.sharded import pieces
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Rows
from polytask.errors import UsageError

Grads = Mapping[int, tuple[Tensor, Tensor]]
"""A parameter and its gradient, by the parameter's id."""


class Slopes:
    """Gradients of an update's tasks, added up.

    rows_KP: in the shared parameters, in the order of `turn.at`; zeros where no loss reaches.
    own: by task, in all other parameters; this process's part.
    seen: the losses looked at, where they are to be checked.
    reached: positions of the shared parameters that a loss reaches.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self.seen = Pending()
        self.rows_KP = gradients.empty_rows(len(turn.at), turn.shared)
        self.own: dict[int, dict[int, tuple[Tensor, Tensor]]] = {task: {} for task in turn.at}
        self.reached: set[int] = set()

    def add(self, at: At, given: Given, retain: bool = False) -> None:
        """Add the gradients of these tasks' losses. retain: whether to keep their graph."""
        shared = self._turn.shared
        ours = {id(parameter) for parameter in shared}
        for n, (task, loss) in enumerate(zip(at, unbound(given), strict=True), 1):
            leaves, _ = gradients.leaves([loss])
            keep = retain or n < len(at)
            grads = torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True)
            found = {id(p): g for p, g in zip(leaves, grads, strict=True) if g is not None}
            row_P, own = self.rows_KP[self._turn.at.index(task)], self.own[task]
            for i, parameter, where in pieces(shared):
                if id(parameter) in found:
                    self.reached.add(i)
                    row_P[where] += found[id(parameter)].flatten()
            for leaf in leaves:
                if id(leaf) in found and id(leaf) not in ours:
                    _, before = own.get(id(leaf), (leaf, None))
                    grad = found[id(leaf)]
                    own[id(leaf)] = leaf, grad if before is None else before + grad

    def sum(self) -> None:
        """Sum the rows over the processes."""
        turn = self._turn
        if turn.world.size > 1:
            turn.world.add_up(self.rows_KP)
            self.reached = turn.world.reached_anywhere(self.reached, turn.shared)

    def own_together(self) -> Mapping[int, Grads]:
        """Return the gradients in the other parameters, by task, summed over the processes.

        Every process learns those of the parameters that its own losses reach.
        """
        turn = self._turn
        if turn.world.size == 1:
            return self.own
        own = [list(self.own[task].values()) for task in turn.at]
        device = turn.shared[0].device
        mine = torch.tensor([_layout(parts) for parts in own], device=device)
        most, _ = turn.world.gather(mine).max(0)
        alike = bool(((mine == most) | (mine[:, :1] == 0)).all())
        if not turn.world.everywhere(alike, device):
            raise UsageError(
                "Balancer: a task's losses reach other parameters of its own in one process than "
                "in another; a move along their gradient needs the same in all. Use one process, "
                "or another method."
            )
        like = torch.promote_types(self.rows_KP.dtype, torch.float32)
        sizes = most[:, 1].tolist()
        flat_N = torch.zeros(sum(sizes), dtype=like, device=device)
        places = torch.split(flat_N, sizes)
        for parts, place_N in zip(own, places, strict=True):
            if parts:
                place_N.copy_(torch.cat([grad.flatten() for _, grad in parts]))
        turn.world.add_up(flat_N)
        whole: dict[int, Grads] = {}
        for task, parts, place_N in zip(turn.at, own, places, strict=True):
            summed = torch.split(place_N, [p.numel() for p, _ in parts]) if parts else ()
            whole[task] = {
                id(p): (p, part_N.view_as(p)) for (p, _), part_N in zip(parts, summed, strict=True)
            }
        return whole

    def overflow(self, own: Mapping[int, Grads]) -> bool:
        """Return, in all processes alike, whether a loss scaler will pass over these gradients.

        own: those that were summed, by task.
        """
        turn = self._turn
        if turn.loss_scale.factor is None:
            return False
        every = [self.rows_KP, *(grad for grads in own.values() for _, grad in grads.values())]
        finite = bool(torch.stack([values.isfinite().all() for values in every]).all())
        if turn.world.size > 1:
            finite = turn.world.everywhere(finite, turn.shared[0].device)
        turn.loss_scale.overflowed = not finite
        return not finite

    def shifts(
        self, task: int, scale: Tensor | float, own: Grads, own_scale: Tensor | float
    ) -> list[tuple[Tensor, Tensor]]:
        """Return a move of the task's parameters along its gradient, by a factor each."""
        row_P = self.rows_KP[self._turn.at.index(task)]
        moves = [
            (parameter, (row_P[where] * scale).view_as(parameter))
            for i, parameter, where in pieces(self._turn.shared)
            if i in self.reached
        ]
        return [*moves, *((parameter, grad * own_scale) for parameter, grad in own.values())]

    def look(
        self, task: int, shifts: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Rows]
    ) -> list[int]:
        """Add the gradients of one task's loss at shifted parameters; return where it had one.

        rows: of every micro-batch. What comes back is the number of each micro-batch with a label
        of the task among those rows.
        """
        labelled: list[int] = []
        with moved(shifts):
            for n, ((again, _), taken) in enumerate(zip(self._turn.every, rows, strict=True)):
                at, given, losses_K = self._turn.look(again, taken, (task,))
                self.seen.add_losses(at, losses_K)
                self.add(at, given)
                if at:
                    labelled.append(n)
        return labelled

    def add_direction(self, direction_P: Tensor) -> None:
        """Add the update to the shared `.grad`; each process its part of it."""
        turn = self._turn
        gradients.add_direction(direction_P, turn.shared, self.reached, turn.world.size)

    def add_own(self, weights_K: Tensor | None = None) -> None:
        """Add every other parameter's gradient to its `.grad`, times the weights where given."""
        for k, task in enumerate(self._turn.at):
            for parameter, grad in self.own[task].values():
                if weights_K is not None:
                    grad = grad * weights_K[k].to(grad.dtype)
                gradients.add(parameter, grad)


@contextlib.contextmanager
def moved(shifts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Add each shift to its parameter inside; every number is back after."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in shifts]
    try:
        for parameter, shift in shifts:
            # Unseen by autograd: graphs made before stay good.
            parameter.data.add_(shift.to(parameter.dtype))
        yield
    finally:
        for parameter, value in before:
            parameter.data.copy_(value)


def _layout(parts: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
    """Return numbers by which processes see whether their parameters are the same ones.

    How many, how many numbers, and a sum that other shapes or another order would change.
    """
    mark = 0
    for parameter, _ in parts:
        for size in (parameter.dim(), *parameter.shape):
            mark = (mark * 1_000_003 + size) % (1 << 52)
    return [len(parts), sum(parameter.numel() for parameter, _ in parts), mark]
