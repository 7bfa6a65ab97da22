"""LookAhead: weigh each task by its loss on rows kept back, after a step of its own on the others.

Source: the two-step optimisation of Aoki, Tung & Oliveira, "Heterogeneous Multi-task Learning with
    Expert Diversity" (MMoEEx), 2021, https://arxiv.org/abs/2106.10595, algorithm 1, after MAML,
    Finn, Abbeel & Levine, ICML 2017, https://arxiv.org/abs/1703.03400
Differs from the source: known here from a summary of it, its text and code were not at hand. First
    order: the outer gradient is taken at the looked-ahead parameters and used at the present ones,
    without the derivative of the inner step. Any method combines the outer gradients; `equal` sums
    them, as the source does with constant weights.
Shapes: T = tasks of the run, K = tasks present, S = tasks with a label in the rows kept back,
    P = shared parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from polytask.balance import gradients
from polytask.balance.base import Balance, State, Update
from polytask.balance.elsewhere import Slopes
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped, nest, started, under
from polytask.errors import UsageError


@dataclass(frozen=True)
class LookAhead:
    """The method's answer to the tasks' gradients after a step of each task alone.

    Per task k: theta_k = theta - lr * grad of its loss in the inner rows; then the gradient of its
    loss in the other rows, at theta_k. The method combines these outer gradients into the update
    of theta. A task without a label in the outer rows has the weight 0 in this update; one without
    a label in the inner rows is looked at where it stands.

    method: any but those that look at losses between updates.
    lr: > 0, of the inner step; the optimiser's own is a good start.
    inner: in (0, 1), the part of the rows that the inner step is made on.
    seed: >= 0; of the split, drawn anew at every step.

    Needs `again`, see `wrapper.Again`: one forward pass for the inner rows, one per task for
    the outer, and two backward passes per task. The losses given to `backward` are told to the
    method and reported; their graph is not used. Running statistics and dropout: as in
    FlatRegions. Every micro-batch and process splits its own rows.
    """

    looks_again: ClassVar[bool] = True
    spans_processes: ClassVar[bool] = True

    method: Balance
    lr: float = 1e-3
    inner: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        check_wrapped("LookAhead", self.method, losses=True)
        if not 0 < self.lr < math.inf:
            raise UsageError(f"LookAhead: lr is {self.lr}; give a value > 0 (default 1e-3).")
        if not 0 < self.inner < 1:
            raise UsageError(
                f"LookAhead: inner is {self.inner}; give a part of the rows between 0 and 1 "
                "(default 0.8)."
            )
        if self.seed < 0:
            raise UsageError(f"LookAhead: seed is {self.seed}; give an integer >= 0.")

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return the method's state."""
        return started(self, tasks, {})

    def take(self, turn: Turn, state: State) -> None:
        """Keep what computes the micro-batch again: a task steps along its whole gradient."""
        turn.hold()

    def update(self, turn: Turn, state: State) -> Update:
        """Add the outer gradients; return the weights of all tasks present."""
        inner, parts = Slopes(turn), range(len(turn.every))
        for n, (again, _) in enumerate(turn.every):
            rows = turn.rows(self.seed, n, 0.0, self.inner)
            at, given, losses_K = turn.look(again, rows, turn.at)
            inner.seen.add_losses(at, losses_K)
            inner.add(at, given)
        turn.together(inner.seen)
        inner.sum()
        own = inner.own_together()
        if inner.overflow(own):
            return turn.overflowed(state)
        outer, step = Slopes(turn), -self.lr / turn.loss_scale.times
        kept_back = [turn.rows(self.seed, n, self.inner, 1.0) for n in parts]
        for task in turn.at:
            outer.look(task, inner.shifts(task, step, own[task], step), kept_back)
        at, _ = turn.together(outer.seen)
        outer.sum()
        turn.said.how = (
            f"look-ahead: one forward and two backward per task, inner lr {self.lr:g} on "
            f"{self.inner:g} of the rows"
        )
        weights_K = torch.zeros(len(turn.at), dtype=torch.float64, device=turn.losses_K.device)
        if not at:
            return Update(state, weights_K)
        index_S = torch.tensor([turn.at.index(task) for task in at], device=weights_K.device)
        seen = replace(turn, at=at, losses_K=turn.losses_K[index_S])
        rows_SP = outer.rows_KP[index_S]
        by_losses = self.method.needs == "losses"
        gram_SS = None if by_losses else gradients.gram(rows_SP)
        update = seen.ask(self.method, under("method", state), gram_SS, rows_SP)
        weights_S = update.weights_K.detach()
        direction_P = update.direction_P
        if direction_P is None:
            direction_P = weights_S.to(rows_SP.dtype) @ rows_SP
        weights_K = weights_K.index_copy(0, index_S, weights_S.to(weights_K))
        outer.add_direction(direction_P)
        outer.add_own(weights_K if by_losses else None)
        if by_losses:
            seen.add_trained(update)
        else:
            seen.add_penalty(update)
        return Update(nest("method", update.state), weights_K, note=update.note)
