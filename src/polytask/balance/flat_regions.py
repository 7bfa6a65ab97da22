"""FlatRegions (F-MTL): lead every task to a flat region, balancing low loss and flatness apart.

Source: Phan et al., "Improving Multi-task Learning via Seeking Task-based Flat Regions", 2022,
    https://arxiv.org/abs/2211.13723, algorithm 1; authors' code
    https://github.com/VietHoang1512/FS-MTL
Differs from the source: nothing known of the update. As in the authors' code the shared parameters
    and a task's own are moved by `rho` each, not together. Where the method weighs by losses alone,
    of which the source says nothing, both parts take the same weights, and so do the tasks' own
    parameters.
Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.base import Balance, State, Update
from polytask.balance.elsewhere import Grads, Slopes
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, Rows, check_wrapped, nest, started, under
from polytask.errors import UsageError


@dataclass(frozen=True)
class FlatRegions:
    """The method's answer to the tasks' gradients, plus its answer to their flatness.

    Per task the parameters are moved up its gradient, by `rho` in norm, and the gradient is taken
    there. The difference to the gradient here points out of sharp regions: it is the flat part. The
    method aggregates both parts apart, and the shared parameters get the sum. Every task's own
    parameters get its gradient at the moved point. The weights that come back are those of the low
    loss part; the method has a state for each part.

    method: any but those that look at losses between updates.
    rho: > 0, the length of the move, of the shared parameters and of a task's own each.

    Needs `again`, see `wrapper.Again`: one forward and two backward passes per task present,
    and 2 K P numbers. `again` must not change the model: in it, running statistics of batch
    normalisation would be updated K times more (the authors stop them there, and so does `fit`);
    dropout is drawn anew, as in their code. Micro-batches before the last are computed once more.
    """

    looks_again: ClassVar[bool] = True
    spans_processes: ClassVar[bool] = True

    method: Balance
    rho: float = 0.05

    def __post_init__(self) -> None:
        check_wrapped("FlatRegions", self.method, losses=True)
        if not 0 < self.rho < math.inf:
            raise UsageError(f"FlatRegions: rho is {self.rho}; give a value > 0 (default 0.05).")

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return the method's state for the low loss part, and the one for the flat part."""
        flat = {} if self.method.needs == "losses" else nest("flat", self.method.start(tasks))
        return started(self, tasks, flat)

    def take(self, turn: Turn, state: State) -> None:
        """Keep what computes the micro-batch again: a task moves along its whole gradient."""
        turn.hold()

    def update(self, turn: Turn, state: State) -> Update:
        """Add both parts' gradients; return the weights of the low loss part."""
        here = Slopes(turn)
        for again, at in turn.before:
            found, given, _ = turn.look(again, Rows(), turn.at)
            if found != at:
                raise turn.not_alike(at, found)
            here.add(found, given)
        here.add(turn.mine, turn.given, turn.retain)
        here.sum()
        low_KP = here.rows_KP
        low_KK = gradients.gram(low_KP)
        own = here.own_together()
        if here.overflow(own):
            return turn.overflowed(state)
        turn.axis.check_gradients(turn.at, low_KK, turn.number)  # before anything moves along them
        norms_K = low_KK.diagonal().sqrt()
        there, all_rows = Slopes(turn), [Rows()] * len(turn.every)
        for task, norm in zip(turn.at, norms_K, strict=True):
            own_norm = _norm(own[task])
            shifts = here.shifts(task, self._uphill(norm), own[task], self._uphill(own_norm))
            labelled = there.look(task, shifts, all_rows)
            if labelled != [n for n, (_, at) in enumerate(turn.every) if task in at]:
                raise UsageError(
                    f"FlatRegions: again(...) gave no loss of task {turn.axis.tasks[task]!r}, "
                    "which has one in this step; with all rows it must give the same losses."
                )
        turn.together(there.seen)
        there.sum()
        there.reached |= here.reached
        flat_KP = there.rows_KP - low_KP
        turn.said.how = f"flat regions: one forward and two backward per task, rho {self.rho:g}"
        if self.method.needs == "losses":
            update = turn.ask(self.method, under("method", state))
            weights_K = update.weights_K.detach()
            direction_P = weights_K.to(low_KP.dtype) @ (low_KP + flat_KP)
            there.add_own(weights_K)
            states, notes = nest("method", update.state), [update.note]
            turn.add_trained(update)
        else:
            flat = turn.ask(self.method, under("flat", state), gradients.gram(flat_KP), flat_KP)
            update = turn.ask(self.method, under("method", state), low_KK, low_KP)
            direction_P = _direction(update, low_KP) + _direction(flat, flat_KP)
            there.add_own()
            states = nest("method", update.state) | nest("flat", flat.state)
            notes = [update.note, flat.note]
            turn.add_penalty(update)
        there.add_direction(direction_P)
        told = "; ".join(dict.fromkeys(note for note in notes if note is not None))
        return Update(states, update.weights_K.detach(), note=told or None)

    def _uphill(self, norm: Tensor) -> Tensor:
        """Return what makes a gradient of this norm a move of rho; no move where it is zero."""
        return torch.where(norm > 0, self.rho / norm, 0.0)


def _norm(grads: Grads) -> Tensor:
    """Return the norm of the gradients together; 0 where there are none."""
    squares = [grad.square().sum(dtype=torch.float64) for _, grad in grads.values()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _direction(update: Update, rows_KP: Tensor) -> Tensor:
    if update.direction_P is not None:
        return update.direction_P
    return update.weights_K.detach().to(rows_KP.dtype) @ rows_KP
