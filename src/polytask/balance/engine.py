"""The balancer: the three lines that put a balance method into anybody's loop.

    balancer = Balancer(PCGrad(), model.shared_parameters())
    weights = balancer.backward({"depth": loss_a, "normals": loss_b})  # for loss.backward()
    optimizer.step()

A method sees numbers; everything that touches autograd, several processes, gradient accumulation
and checkpoints is here, once for all methods.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.balance import gradients, saved
from polytask.balance.base import Balance, Observed, Observer, State
from polytask.balance.exact import Exact, GramianBy, Pending
from polytask.balance.losses import At, Axis, Given, Losses, Weights, detached, names_given, unbound
from polytask.balance.measure import Measured, measure
from polytask.balance.refusals import (
    NonFinite,
    check_again,
    check_method,
    check_observed,
    check_parts,
    check_processes,
    check_settings,
)
from polytask.balance.scaled import LossScale
from polytask.balance.sharded import refuse_mean
from polytask.balance.turn import BY_LOSSES, Said, Turn
from polytask.balance.undo import Undo
from polytask.balance.world import World
from polytask.balance.wrapped import explained
from polytask.balance.wrapper import Again, Wrapper, label, nest, plain, under, wrappers
from polytask.errors import Diverged, UsageError


class Balancer:
    """Turns the losses of a step into gradients, by a method of this room.

    method: a `Balance`, or a `Wrapper` around one, such as EveryN(PCGrad()). One with trained
        parts is an nn.Module; give `parameters()` to the optimiser.
    shared_parameters: those the tasks share, all on one device. Frozen ones may be among them.
    tasks: names in the order of axis T. None: the first call's names, and no name can come later.
        Needed beforehand by several processes, by `load_state_dict` and by trained methods.
    steps_per_epoch: updates in an epoch; needed by methods that compare epochs (`by_epoch`).
    process_group: the processes that share one global batch; None: all, where torch.distributed
        is initialised.
    gramian: "auto" forms the Gramian layer by layer wherever it can (see `gramian`), in a
        fraction of the time and memory; "rows" forms every task's gradient, one backward per
        task present, as "auto" does where it must. Both are exact; `engine` says what was done.
    branches: the shared parameters of each modality branch of the encoder, by name; for methods
        that balance modalities (Fuller).

    nonfinite: what to do where a loss or a gradient is not finite. "stop": raise Diverged, which
        names the task. "skip": leave the whole update out, with every `.grad` and the state as
        they were before it (micro-batches included), and count it in `notes`; no weight comes
        back. It costs one look at every gradient. With "stop", gradients are looked at where the
        method compares them; those of a method of losses alone show in the next loss. Losses
        given as one tensor share a graph: a gradient that is not finite may then show in all.

    `notes` counts the updates in which the method had to use a substitute for what its source
    asks, or that were skipped, by what it was; the first of each is warned of.

    Shared parameters that no loss of an update reaches get no gradient, as in autograd; where none
    of them is reached, a method that compares gradients raises UsageError.

    Several processes: each passes its share of the global losses (sum over its rows, divided by
    the count over all rows), calls equally often, and afterwards the loop sums `.grad` over the
    processes, for shared and other parameters alike (`sum_gradients`). The Gramian holds the
    products across processes, and every process takes the same weights. With
    DistributedDataParallel the forward pass runs under its `no_sync()`: its own averaging would
    run once per task. Parameters sharded by FSDP2 come from `fully_shard`, with `sum_not_mean`.
    """

    def __init__(
        self,
        method: Balance | Wrapper,
        shared_parameters: Iterable[nn.Parameter],
        tasks: Sequence[str] | None = None,
        steps_per_epoch: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        gramian: GramianBy = "auto",
        branches: Mapping[str, Sequence[nn.Parameter]] | None = None,
        nonfinite: NonFinite = "stop",
    ) -> None:
        check_method(method)
        self.method = method
        self.shared = tuple(dict.fromkeys(shared_parameters))
        check_settings(method, self.shared, steps_per_epoch, gramian, nonfinite)
        methods = dict(plain(method))
        self._wrappers = tuple(wrappers(method))
        needs = "losses" if isinstance(method, Wrapper) else method.needs
        self.step = 0
        self.state: State = {}
        self._undo = Undo() if nonfinite == "skip" else None
        self._branches = branches
        self._world = World(process_group)
        self._exact = Exact(self.shared, self._world, needs, gramian)
        self._said = Said(self._exact.said if needs != "losses" else BY_LOSSES)
        if self._wrappers:
            self._said.how = f"{label(method)}: chosen at the first step"
        self._steps_per_epoch = steps_per_epoch
        self.notes: dict[str, int] = {}
        self._axis = Axis()
        self._device: torch.device | None = None
        self._pending: Pending | None = None
        self._modules = {path: m for path, m in methods.items() if isinstance(m, nn.Module)}
        observers = [(path, m) for path, m in methods.items() if isinstance(m, Observer)]
        self._observer = observers[0] if observers else None
        self._unobserved = False
        if tasks is not None:
            self._start(tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names on axis T; empty before they are known."""
        return self._axis.tasks

    @property
    def processes(self) -> int:
        """How many processes share a batch."""
        return self._world.size

    @property
    def engine(self) -> str:
        """Return how gradients were computed last, in words, for the record of a run."""
        looks = {
            None: "",
            "after": ", one forward more",
            "validation": ", one forward of validation rows",
        }[self.observes]
        return self._said.how + looks

    @property
    def looks_again(self) -> bool:
        """Whether `backward` must be given `again`; false for most methods."""
        return any(wrapper.looks_again for wrapper in self._wrappers)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tasks' gradients, or what stood for them, at most in an update so far."""
        return self._exact.held_bytes

    @property
    def observes(self) -> Observed | None:
        """Which losses the loop must hand to `observe`; None for most methods."""
        return None if self._observer is None else self._observer[1].observes

    def parameters(self) -> list[nn.Parameter]:
        """Return the method's trained parameters, for the optimiser; most methods have none."""
        if self._modules:
            self._need_tasks("parameters()")
        return [p for module in self._modules.values() for p in module.parameters()]

    def backward(
        self,
        losses: Losses,
        *,
        tasks: Sequence[str] | None = None,
        accumulate: bool = False,
        again: Again | None = None,
        scale: float | None = None,
    ) -> Weights:
        """Add this step's balanced gradients to `.grad`; return the weights used.

        losses: mean losses of this step, scalars with a graph. A task whose name is missing or
            whose loss is None is absent: it is left out of the problem. With every task absent
            nothing is done and no weight comes back.
        tasks: the names that go with a sequence or a (K,) tensor; None: all tasks in order.
        accumulate: True for a micro-batch that is not the last of its update. The losses of the
            micro-batches add up to the step's (divide by the counts of the whole). The weights
            that come back are then those of this call alone: empty for methods that wait.
        again: computes these losses again, see `wrapper.Again`; asked of each micro-batch. Methods
            that look again (`looks_again`) need it, such as SampledRows. FeatureLevel takes it
            where there are micro-batches, to save backward passes.
        scale: of a loss scaler, `scaler.get_scale()`; the losses are given as they are. `.grad`
            gets the scaled gradients that `scaler.step(optimizer)` expects, while the method sees
            losses and gradients without the scale. Where the scaled gradients in the shared
            parameters are not finite, no weight comes back and the method's state stays as it was;
            the scaler passes over this update.

        Methods that need losses alone: the gradient of sum w_k L_k, everywhere. The others: the
        shared parameters get the method's update, every task's own parameters the gradient of
        its unweighted loss. Raises Diverged naming the task whose loss is not finite.
        """
        check_observed(self.method, self._unobserved)
        check_again(self.method, again)
        at, given = self._read(losses, tasks)
        losses_K = detached(given)
        scaled = LossScale(scale)
        given = scaled.up(given)
        if self._exact.sharded:
            self._world.check_alike(self._axis, at, self.shared[0].device)
            if self.step == 0:
                refuse_mean(unbound(given))
        if self._undo is None:
            if accumulate:
                self._axis.check_finite(at, losses_K, self.step)
                return self._part(at, given, losses_K, scaled, again)
            return self._whole(at, given, losses_K, scaled, again)
        if scale is not None:
            raise UsageError(
                "Balancer: a loss scaler leaves out updates by itself; give nonfinite='stop' with "
                "it, which stops at losses that are not finite alone."
            )
        self._undo.note(unbound(given), (*self.shared, *self.parameters()))
        if accumulate:
            if self._world.anywhere(1.0 - losses_K.isfinite().all().float(), self.shared):
                # It makes the sum so: the last call leaves the update out, in all processes.
                self._pending = self._pending or Pending()
                self._pending.add_losses(at, losses_K)
                return Weights((), losses_K[:0], losses_K[:0])
            return self._part(at, given, losses_K, scaled, again)
        undo, self._undo = self._undo, Undo()
        return self._whole_or_none(at, given, losses_K, again, undo)

    def observe(self, losses: Losses, *, tasks: Sequence[str] | None = None) -> None:
        """Show the method losses that it does not weigh; `observes` says which.

        losses, tasks: as for `backward`; no graph is needed. Several processes: each hands in its
        share, as often as the others. Raises Diverged naming the task whose loss is not finite;
        with nonfinite="skip" the method is not shown such losses.
        """
        if self._observer is None:
            raise UsageError(f"{label(self.method)} looks at no other losses; leave out observe().")
        path, method = self._observer
        at, given = self._read(losses, tasks, graph=False)
        losses_K = detached(given)
        if self._world.size > 1:
            at, losses_K = self._exchange(at, losses_K)
        self._unobserved = False
        try:
            self._axis.check_finite(at, losses_K, self.step)
        except Diverged as error:
            if self._undo is None:
                raise
            self._count(f"{error.what}, as observed; did not look at it", 3)
            return
        if at:
            turn = self._turn(at, losses_K, at, given)
            own = under(path, self.state) if path else self.state
            found = turn.naming(lambda: method.observe(turn.signal(), own))
            self.state = self.state | (nest(path, found) if path else found)

    def measure(
        self,
        losses: Losses,
        *,
        tasks: Sequence[str] | None = None,
        again: Again | None = None,
    ) -> Measured:
        """Return how far this update's approximation is from the exact method, on these losses.

        losses, tasks, again: as for `backward`. Nothing is left behind: no `.grad` and no state
        changes, and the losses can be given to `backward` afterwards. Costs the exact method and
        the approximation. One process; not between two micro-batches.
        """
        if self._world.size > 1:
            raise UsageError("Balancer: measure() works in one process; call it in a run of one.")
        check_again(self.method, again)
        at, given = self._read(losses, tasks)
        losses_K = detached(given)
        self._axis.check_finite(at, losses_K, self.step)
        if not at:
            raise UsageError("Balancer: measure() needs the loss of at least one task.")
        turn = self._turn(at, losses_K, at, given, again=again)
        return measure(turn, self.method, self.state)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the next step depends on, as a flat dict of tensors."""
        if self._pending is not None:
            raise UsageError(
                "Balancer: state_dict() between two micro-batches of one update; finish the "
                "update (a call without accumulate) first."
            )
        return saved.pack(self.step, self.state, self._modules, self._exact.state())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state`, from `state_dict`, was taken; bit for bit."""
        self._need_tasks("load_state_dict()")
        saved.check(self.state_dict(), state, label(self.method), self.tasks)
        self.step = int(state["step"])
        self.state = saved.unpack(state, self.state, self._modules)
        self._exact.restore(saved.of_engine(state))
        self._pending, self._unobserved = None, False
        if self._undo is not None:
            self._undo = Undo()

    def _part(
        self, at: At, given: Given, losses_K: Tensor, scaled: LossScale, again: Again | None
    ) -> Weights:
        """Take a micro-batch that is not the last of its update."""
        pending = self._pending or Pending(scaled.factor)
        pending.check_scale(scaled.factor)
        losses_K = losses_K if at else losses_K.to(self._device or losses_K.device)
        turn = self._turn(at, losses_K, at, given, pending, scaled, again)
        weights = Weights((), losses_K[:0], losses_K[:0])
        with explained():
            if isinstance(self.method, Wrapper) or self.method.needs != "losses":
                turn.take(self.method, self.state)
            else:
                check_parts(self.method)
                if at:
                    # The next state is not this one's: it follows from the whole update's losses.
                    update = turn.ask(self.method, self.state)
                    turn.add_sum(replace(update, penalty=None))
                    names = self._axis.names(at)
                    weights = Weights(names, update.weights_K.detach(), losses_K)
        pending.add_losses(at, losses_K)
        self._pending = pending
        return weights

    def _whole(
        self, at: At, given: Given, losses_K: Tensor, scaled: LossScale, again: Again | None
    ) -> Weights:
        """Take a whole step, or its last micro-batch: the method answers for the whole of it."""
        pending, self._pending = self._pending, None
        all_at, all_K = at, losses_K
        if pending is not None:
            pending.check_scale(scaled.factor)
            pending.add_losses(at, losses_K)
            all_at, all_K = pending.all_losses()
        if self._world.size > 1:
            all_at, all_K = self._exchange(all_at, all_K)
        self._axis.check_finite(all_at, all_K, self.step)
        if not all_at:
            self.step += 1
            return Weights((), all_K, all_K)
        turn = self._turn(all_at, all_K, at, given, pending, scaled, again)
        with explained():
            update = turn.exact(self.method, self.state)
        if self._wrappers and scaled.factor is not None:  # not all of them ask for a Gramian
            scaled.overflowed |= self._world.anywhere(gradients.broken(self.shared), self.shared)
        if scaled.overflowed:
            return Weights((), all_K[:0], all_K[:0])
        if update.note is not None:
            self._count(update.note)
        self.state = update.state
        self.step += 1
        self._unobserved = self.observes == "after"
        return Weights(self._axis.names(all_at), update.weights_K.detach(), all_K)

    def _whole_or_none(
        self, at: At, given: Given, losses_K: Tensor, again: Again | None, undo: Undo
    ) -> Weights:
        """Take a whole step; leave it out where something in it is not finite."""
        state, step, unobserved = self.state, self.step, self._unobserved
        try:
            weights = self._whole(at, given, losses_K, LossScale(), again)
            if not self._world.anywhere(undo.broken(), self.shared):
                return weights
            why = "a gradient is not finite"
        except Diverged as error:
            why = error.what
        undo.restore()
        self.state, self.step, self._unobserved = state, step, unobserved
        self._count(f"{why}; left the whole update out")
        self.step += 1
        return Weights((), losses_K[:0], losses_K[:0])

    def _count(self, note: str, depth: int = 4) -> None:
        """Add to `notes`; warn the caller of `backward`, `depth` calls up, of a new one."""
        text = f"{label(self.method)}: {note}"
        if text not in self.notes:
            said = f"{text} (update {self.step}; the others are counted in Balancer.notes)."
            warnings.warn(said, RuntimeWarning, stacklevel=depth)
        self.notes[text] = self.notes.get(text, 0) + 1

    def _turn(
        self,
        all_at: At,
        losses_K: Tensor,
        at: At,
        given: Given,
        pending: Pending | None = None,
        scaled: LossScale | None = None,
        again: Again | None = None,
    ) -> Turn:
        self._place(losses_K.device)
        check_processes(self.method, self._world.size, self._exact.sharded)
        self._said.gram_KK = None
        per_epoch = self._steps_per_epoch
        return Turn(
            axis=self._axis,
            at=all_at,
            losses_K=losses_K,
            mine=at,
            given=given,
            number=self.step,
            epoch=None if per_epoch is None else self.step // per_epoch,
            shared=self.shared,
            world=self._world,
            engine=self._exact,
            pending=pending,
            again=again,
            branches=self._branches,
            loss_scale=scaled or LossScale(),
            said=self._said,
        )

    # -- tasks, devices and processes ----------------------------------------------------------

    def _start(self, tasks: Sequence[str]) -> None:
        if not tasks:
            raise UsageError("Balancer: tasks must be one or more different names; got ().")
        self._axis = Axis(tasks)
        self.state = self.method.start(len(self.tasks))

    def _need_tasks(self, what: str) -> None:
        if not self.tasks:
            raise UsageError(
                f"Balancer: {what} needs the tasks' order beforehand; give Balancer(..., "
                "tasks=[...])."
            )

    def _read(
        self, losses: Losses, tasks: Sequence[str] | None, graph: bool = True
    ) -> tuple[At, Given]:
        """Return the present tasks' positions, ascending, and their losses in that order."""
        names = names_given(losses, tasks, self.tasks)
        if not self.tasks:
            if self._world.size > 1:
                self._need_tasks("a run of several processes")
            self._start(names)
        return self._axis.read(names, losses, graph)

    def _exchange(self, at: At, losses_K: Tensor) -> tuple[At, Tensor]:
        """Return the tasks present in any process, and their losses summed over the processes."""
        device = self.shared[0].device if self.shared else losses_K.device
        return self._world.exchange(self._axis, at, losses_K, device)

    def _place(self, device: torch.device) -> None:
        """Bring the method's state and trained parts to where the losses are, once."""
        if self._device == device:
            return
        self.state = {name: value.to(device) for name, value in self.state.items()}
        for module in self._modules.values():
            module.to(device)
        self._device = device
