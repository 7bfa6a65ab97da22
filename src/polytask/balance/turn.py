"""One update as a wrapper sees it: its losses, the method to ask, and the engine's ways.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from polytask.balance import gradients
from polytask.balance.base import Balance, Signal, State, TaskFault, Update
from polytask.balance.exact import Exact, Pending
from polytask.balance.losses import (
    At,
    Axis,
    Given,
    detached,
    multiplied,
    names_given,
    stacked,
    unbound,
)
from polytask.balance.scaled import LossScale
from polytask.balance.world import World
from polytask.balance.wrapper import Again, Method, Rows, Wrapper
from polytask.errors import UsageError

Answer = TypeVar("Answer")

BY_LOSSES = "one backward of the weighted losses"


@dataclass
class Said:
    """What an update leaves for the record: how it was computed, and the last Gramian asked."""

    how: str = ""
    gram_KK: Tensor | None = None


@dataclass(frozen=True)
class Turn:
    """The services of the engine for one update.

    axis: the run's tasks. at: the tasks present anywhere; losses_K: their losses, detached, summed
        over the processes. mine, given: the tasks and losses, with graphs, of this process.
    pending: what the micro-batches before this one left; `take` adds to it. again: see
        `wrapper.Again`, of this micro-batch.
    branches: the shared parameters of each modality branch, by name.
    number: updates before this one. epoch: whole epochs before, None where nobody tells.
    shared: the shared parameters. retain: whether the losses' graph must outlive the update.
    scale_T: what every loss of the update was multiplied by; None: nothing.
    loss_scale: of a loss scaler, in the losses given.
    """

    axis: Axis
    at: At
    losses_K: Tensor
    mine: At
    given: Given
    number: int
    epoch: int | None
    shared: tuple[nn.Parameter, ...]
    world: World
    engine: Exact
    pending: Pending | None = None
    again: Again | None = None
    branches: Mapping[str, Sequence[nn.Parameter]] | None = None
    retain: bool = False
    scale_T: Tensor | None = None
    loss_scale: LossScale = field(default_factory=LossScale)
    said: Said = field(default_factory=Said)

    @property
    def index_K(self) -> Tensor:
        """Positions of the tasks present on axis T, int64."""
        return self.axis.index(self.at, self.losses_K.device)

    @property
    def losses(self) -> Sequence[Tensor]:
        """The losses of this process, one by one, with their graphs."""
        return unbound(self.given)

    # -- the method ------------------------------------------------------------------------------

    def ask(
        self,
        method: Balance,
        state: State,
        gram_KK: Tensor | None = None,
        rows_KP: Tensor | None = None,
    ) -> Update:
        """Return the method's answer to this update's losses and these products of gradients.

        rows_KP: handed on where the method needs them.
        Products that are not finite because of a loss scale are answered by weights of NaN, which
        leave gradients that the scaler passes over.
        """
        scaled = self.loss_scale
        if gram_KK is not None:
            if scaled.overflows(gram_KK.diagonal()):
                return Update(state, torch.full_like(self.losses_K, torch.nan))
            self.axis.check_gradients(self.at, gram_KK, self.number)
        self.said.gram_KK = gram_KK = scaled.down(gram_KK, 2)
        rows_KP = scaled.down(rows_KP) if method.needs == "rows" else None
        signal = self.signal(gram_KK, rows_KP)
        return scaled.answer(self.naming(lambda: method(signal, state)))

    def signal(self, gram_KK: Tensor | None = None, rows_KP: Tensor | None = None) -> Signal:
        """Return what a method is told of this update."""
        tasks = len(self.axis.tasks)
        return Signal(self.losses_K, self.index_K, tasks, self.number, self.epoch, gram_KK, rows_KP)

    def naming(self, answer: Callable[[], Answer]) -> Answer:
        """Return the answer; a complaint about a task is raised with the task's name."""
        try:
            return answer()
        except TaskFault as fault:
            raise fault.named(self.axis.tasks[fault.index]) from None

    def exact(self, method: Method, state: State) -> Update:
        """Add the gradients as without the wrapper; return the answer."""
        if isinstance(method, Wrapper):
            return method.update(self, state)
        if method.needs == "losses":
            update = self.ask(method, state)
            self.add_sum(update)
            self.said.how = BY_LOSSES
            return update
        update = self.engine.add(
            self.pending,
            self.mine,
            self.given,
            self.at,
            method.needs,
            lambda gram_KK, rows_KP: self.ask(method, state, gram_KK, rows_KP),
            self.retain,
        )
        self.said.how = self.engine.said
        return update

    # -- micro-batches ---------------------------------------------------------------------------

    def take(self, method: Method, state: State) -> None:
        """Take a micro-batch that others follow, as without the wrapper."""
        if isinstance(method, Wrapper):
            method.take(self, state)
        elif self.mine:
            assert self.pending is not None, "the engine gives one to every micro-batch"
            self.engine.take(self.pending, self.mine, self.given, method.needs)

    def hold(self) -> None:
        """Keep of a micro-batch that others follow what `add_weighted` needs in the end.

        Where it can be computed again, that is the function which does; else its tasks' gradients.
        """
        assert self.pending is not None, "the engine gives one to every micro-batch"
        if self.again is not None:
            self.pending.agains.append((self.again, self.mine))
        elif self.mine:
            self.engine.take(self.pending, self.mine, self.given, "gramian")

    @property
    def before(self) -> Sequence[tuple[Again, At]]:
        """The micro-batches that are to be computed again, and this process's tasks in each."""
        return () if self.pending is None else self.pending.agains

    @property
    def every(self) -> Sequence[tuple[Again, At]]:
        """Every micro-batch of the update, for wrappers that compute all of them again."""
        assert self.again is not None, "the engine has checked it"
        return (*self.before, (self.again, self.mine))

    @property
    def held(self) -> str:
        """Return what became of the micro-batches before this one, in words that end a sentence."""
        if self.before:
            return "; micro-batches before the last computed again"
        if self.pending is not None and self.pending.losses:
            return f"; micro-batches before the last: {self.engine.said}"
        return ""

    # -- gradients -------------------------------------------------------------------------------

    def add_sum(self, update: Update) -> None:
        """Add the gradient of the weighted losses, and of the penalty, to every `.grad`."""
        terms: list[Tensor] = []
        if self.mine:
            terms.append(torch.dot(stacked(self.given), self._of_mine(update.weights_K)))
        if update.penalty is not None:
            terms.append(update.penalty / self.world.size)
        with self.watched():
            if terms:
                sum(terms[1:], terms[0]).backward(retain_graph=self.retain)  # type: ignore[no-untyped-call]

    def add_trained(self, update: Update) -> None:
        """Add the gradient of weights that the method trains, and of its penalty.

        What it is when the method is alone: the losses count as numbers.
        """
        if not update.weights_K.requires_grad:
            self.add_penalty(update)
            return
        own = (update.weights_K * self.losses_K.to(update.weights_K.dtype)).sum()
        own = own * self.loss_scale.times
        if update.penalty is not None:
            own = own + update.penalty
        self.add_penalty(replace(update, penalty=own))

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for one backward pass of all losses that no wrapper may average."""
        if self.engine.sharded or not self.shared:
            return contextlib.nullcontext()
        return self.world.watched(lambda: gradients.marks(self.shared))

    def add_weighted(self, weights_K: Tensor) -> None:
        """Add the weighted sum to the shared `.grad`, and to every other its unweighted gradient.

        About the price of one backward pass: each pass goes only where it is needed. Of the
        micro-batches before this one too, where they are held.
        """
        with self.watched():
            self.add_held(weights_K)
            if self.mine:
                mine_K = self._of_mine(weights_K.detach())
                gradients.add_weighted(stacked(self.given), mine_K, self.shared, self.retain)

    def add_held(self, weights_K: Tensor) -> None:
        """Do what `add_weighted` does, of the micro-batches before this one alone."""
        if self.pending is None:
            return
        self.engine.weigh(self.pending, self.at, weights_K.detach())
        for again, at in self.before:
            found, given, _ = self.look(again, Rows(), self.at)
            if found != at:
                raise self.not_alike(at, found)
            if at:
                mine_K = self._of(at, given, weights_K.detach())
                gradients.add_weighted(stacked(given), mine_K, self.shared)

    def overflowed(self, state: State) -> Update:
        """Add gradients that are not finite, so that a loss scaler passes over the update."""
        for parameter in self.shared:
            if parameter.requires_grad:
                gradients.add(parameter, torch.full_like(parameter, torch.nan))
        return Update(state, torch.full_like(self.losses_K, torch.nan))

    def add_penalty(self, update: Update) -> None:
        """Add the gradient of the method's own penalty, where it has one."""
        if update.penalty is not None:
            (update.penalty / self.world.size).backward()  # type: ignore[no-untyped-call]

    def _of_mine(self, weights_K: Tensor) -> Tensor:
        return self._of(self.mine, self.given, weights_K)

    def _of(self, at: At, given: Given, weights_K: Tensor) -> Tensor:
        """Return the weights of some tasks, in the dtype of their losses."""
        if at != self.at:
            weights_K = weights_K[[self.at.index(t) for t in at]]
        return weights_K.to((given if isinstance(given, Tensor) else given[0]).dtype)

    # -- the step again --------------------------------------------------------------------------

    def rows(self, seed: int, part: int, start: float, stop: float) -> Rows:
        """Return rows drawn for this update, others in every micro-batch and process.

        part: number of the micro-batch. start, stop: see `Rows`.
        """
        alone = not part and not self.world.rank
        draw = () if alone else (part, self.world.rank)
        return Rows((seed, self.number, *draw), start, stop)

    def look(self, again: Again, rows: Rows, tasks: At) -> tuple[At, Given, Tensor]:
        """Return the tasks present in these rows, and their losses, with graphs and without.

        They are this process's, of one micro-batch, from the model as it is now; only those with
        graphs are scaled for half precision.
        """
        asked = self.axis.names(tasks)
        losses = again(rows, asked)
        at, given = self.axis.read(names_given(losses, None, asked), losses)
        if not set(at) <= set(tasks):  # a function that always gives all
            kept = [(t, loss) for t, loss in zip(at, unbound(given), strict=True) if t in tasks]
            at, given = tuple(t for t, _ in kept), [loss for _, loss in kept]
        if self.scale_T is not None and at:
            scale_K = self.scale_T[self.axis.index(at, self.scale_T.device)]
            given = multiplied(given, scale_K)
        return at, self.loss_scale.up(given), detached(given)

    def together(self, seen: Pending) -> tuple[At, Tensor]:
        """Return the tasks present anywhere in what was seen, and their losses, summed over all.

        Raises Diverged, in every process, naming the tasks whose sum is not finite.
        """
        at, losses_K = seen.all_losses()
        if self.world.size > 1:
            at, losses_K = self.world.exchange(self.axis, at, losses_K, self.shared[0].device)
        self.axis.check_finite(at, losses_K, self.number)
        return at, losses_K

    def not_alike(self, given: At, found: At) -> UsageError:
        """Return the error for losses that, computed again, are of other tasks."""
        tasks, others = (", ".join(self.axis.names(at)) or "none" for at in (given, found))
        return UsageError(
            f"Balancer: again(...) with all rows gave losses of {others}; those given to backward "
            f"were of {tasks}. With all rows it must give the same losses."
        )

    def weighed(self, weights_K: Tensor) -> Turn:
        """Return this update with every loss times a number."""
        scale_T = weights_K.new_ones(len(self.axis.tasks))
        scale_T = scale_T.index_copy(0, self.index_K, weights_K)
        given: Given = self.given
        if self.mine:
            given = multiplied(self.given, self._of_mine(weights_K))
        losses_K = self.losses_K * weights_K.to(self.losses_K.dtype)
        return replace(self, losses_K=losses_K, given=given, scale_T=scale_T)
