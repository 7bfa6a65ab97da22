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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.base import Balance, State, Update
from polytask.balance.elsewhere import Slope, add_own, reached, slope, slope_at
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

    Needs `again`, see `Balancer.backward`: one forward and two backward passes per task present,
    and 2 K P numbers. `again` must not change the model: in it, running statistics of batch
    normalisation would be updated K times more (the authors stop them there, and so does `fit`);
    dropout is drawn anew, as in their code. One process.
    """

    looks_again: ClassVar[bool] = True
    accumulates: ClassVar[bool] = False
    spans_processes: ClassVar[bool] = False

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

    def update(self, turn: Turn, state: State) -> Update:
        """Add both parts' gradients; return the weights of the low loss part."""
        here = [slope(turn, loss, retain=True) for loss in turn.losses]
        low_KP = torch.stack([found.row(turn.shared) for found in here])
        low_KK = gradients.gram(low_KP)
        turn.axis.check_gradients(turn.at, low_KK, turn.number)  # before anything moves along them
        there: list[Slope] = []
        for task, low in zip(turn.at, here, strict=True):
            shifts = [*_uphill(low.shared, self.rho), *_uphill(low.own, self.rho)]
            found = slope_at(turn, task, shifts, Rows())
            if found is None:
                raise UsageError(
                    f"FlatRegions: again(...) gave no loss of task {turn.axis.tasks[task]!r}, "
                    "which has one in this step; with all rows it must give the same losses."
                )
            there.append(found)
        flat_KP = torch.stack([found.row(turn.shared) for found in there]) - low_KP
        turn.said.how = f"flat regions: one forward and two backward per task, rho {self.rho:g}"
        if self.method.needs == "losses":
            update = turn.ask(self.method, under("method", state))
            weights_K = update.weights_K.detach()
            direction_P = weights_K.to(low_KP.dtype) @ (low_KP + flat_KP)
            add_own(there, weights_K)
            states, notes = nest("method", update.state), [update.note]
            turn.add_trained(update)
        else:
            flat = turn.ask(self.method, under("flat", state), gradients.gram(flat_KP), flat_KP)
            update = turn.ask(self.method, under("method", state), low_KK, low_KP)
            direction_P = _direction(update, low_KP) + _direction(flat, flat_KP)
            add_own(there)
            states = nest("method", update.state) | nest("flat", flat.state)
            notes = [update.note, flat.note]
            turn.add_penalty(update)
        gradients.add_direction(direction_P, turn.shared, reached(turn, [*here, *there]))
        told = "; ".join(dict.fromkeys(note for note in notes if note is not None))
        return Update(states, update.weights_K.detach(), note=told or None)


def _uphill(slopes: Sequence[tuple[Tensor, Tensor]], rho: float) -> list[tuple[Tensor, Tensor]]:
    """Return the move of `rho` along the gradient; no move where it is zero."""
    if not slopes:
        return []
    norm = torch.stack([grad.norm() for _, grad in slopes]).norm()
    scale = torch.where(norm > 0, rho / norm, 0.0)
    return [(parameter, scale.to(grad.dtype) * grad) for parameter, grad in slopes]


def _direction(update: Update, rows_KP: Tensor) -> Tensor:
    if update.direction_P is not None:
        return update.direction_P
    return update.weights_K.detach().to(rows_KP.dtype) @ rows_KP
