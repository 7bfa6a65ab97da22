"""The balancer: the three lines that put a balance method into anybody's loop.

    balancer = Balancer(PCGrad(), model.shared_parameters())
    weights = balancer.backward({"depth": loss_a, "normals": loss_b})  # for loss.backward()
    optimizer.step()

A method sees numbers; everything that touches autograd, several processes, gradient accumulation
and checkpoints is here, once for all methods.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.balance import gradients
from polytask.balance.base import Balance, Observed, Observer, Signal, State, TaskFault, Update
from polytask.balance.gramian import PerLayer
from polytask.errors import Diverged, RunError, UsageError, unknown

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
"""Scalars by name; or in the order of the tasks, None where absent; or one tensor of shape (K,)."""


At = tuple[int, ...]  # positions of tasks on axis T, ascending
Given = Sequence[Tensor] | Tensor  # the present tasks' losses, with their graphs
Answer = TypeVar("Answer")

BY_ROWS = "exact: one backward per task present"

INDEX_CACHE = 256
"""Sets of present tasks whose index tensor is kept, so that a step copies none to the device."""


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


class Balancer:
    """Turns the losses of a step into gradients, by a method of this room.

    method: a `Balance`. One with trained parts is an nn.Module; give `parameters()` to the
        optimiser.
    shared_parameters: those the tasks share, all on one device. Frozen ones may be among them.
    tasks: names in the order of axis T. None: the first call's names, and no name can come later.
        Needed beforehand by several processes, by `load_state_dict` and by trained methods.
    steps_per_epoch: updates in an epoch; needed by methods that compare epochs (`by_epoch`).
    process_group: the processes that share one global batch; None: all, where torch.distributed
        is initialised.
    gramian: "rows" forms the tasks' gradients, one backward per task present; "per layer" forms
        the Gramian without them wherever it can (see `gramian`), in a fraction of the time. Both
        are exact. "per layer" learns from a few trial steps which rows belong to which task, and
        a checkpoint does not hold what it learned: a resumed run may differ from one that was
        never stopped in the last digits, so it has to be asked for.

    held_bytes: of the tasks' gradients, or what stood for them, at most in an update so far.

    `notes` counts the updates in which the method had to use a substitute for what its source
    asks, by what it was; the first of each is warned of.

    Several processes: each passes its share of the global losses (sum over its rows, divided by
    the count over all rows), calls equally often, and afterwards the loop sums `.grad` over the
    processes, for shared and other parameters alike. The Gramian holds the products across
    processes, and every process takes the same weights. Use the bare model, not
    DistributedDataParallel: its own averaging would run once per task.
    """

    def __init__(
        self,
        method: Balance,
        shared_parameters: Iterable[nn.Parameter],
        tasks: Sequence[str] | None = None,
        steps_per_epoch: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        gramian: Literal["rows", "per layer"] = "rows",
    ) -> None:
        name = type(method).__name__
        if not isinstance(method, Balance):
            raise UsageError(
                f"Balancer: {name} is no balance method; it lacks one of needs, foresees, "
                "by_epoch, start and __call__ (see polytask.balance.Balance)."
            )
        if method.by_epoch and steps_per_epoch is None:
            raise UsageError(f"{name} compares epochs; give Balancer(..., steps_per_epoch=N).")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise UsageError(f"Balancer: steps_per_epoch is {steps_per_epoch}; give at least 1.")
        self.method = method
        self.shared = tuple(dict.fromkeys(shared_parameters))
        if not self.shared and method.needs != "losses":
            raise UsageError(f"{name} balances shared parameters; Balancer was given none.")
        if gramian not in ("rows", "per layer"):
            raise UsageError(f"Balancer: gramian is {gramian!r}; give 'rows' or 'per layer'.")
        self.step = 0
        self.state: State = {}
        self._gramian = gramian
        self._per_layer = PerLayer()
        fast = method.needs == "gramian" and gramian == "per layer"
        self._how = "exact, per layer: chosen at the first step" if fast else BY_ROWS
        self.held_bytes = 0
        self._steps_per_epoch = steps_per_epoch
        self._group = process_group
        self.notes: dict[str, int] = {}
        self._tasks: tuple[str, ...] = ()
        self._at: dict[str, int] = {}
        self._index: dict[tuple[int, ...], Tensor] = {}
        self._orders: dict[tuple[str, ...], tuple[At, list[int] | None]] = {}
        self._device: torch.device | None = None
        self._pending: _Pending | None = None
        self._observes = method.observes if isinstance(method, Observer) else None
        self._unobserved = False
        if tasks is not None:
            self._start(tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names on axis T; empty before they are known."""
        return self._tasks

    @property
    def engine(self) -> str:
        """Return how gradients were computed last, in words, for the record of a run."""
        looks = {
            None: "",
            "after": ", one forward more",
            "validation": ", one forward of validation rows",
        }[self.observes]
        if self.method.needs == "losses":
            return "one backward of the weighted losses" + looks
        return self._how + looks

    @property
    def observes(self) -> Observed | None:
        """Which losses the loop must hand to `observe`; None for most methods."""
        return self._observes

    def parameters(self) -> list[nn.Parameter]:
        """Return the method's trained parameters, for the optimiser; most methods have none."""
        if not isinstance(self.method, nn.Module):
            return []
        self._need_tasks("parameters()")
        return list(self.method.parameters())

    def backward(
        self, losses: Losses, *, tasks: Sequence[str] | None = None, accumulate: bool = False
    ) -> Weights:
        """Add this step's balanced gradients to `.grad`; return the weights used.

        losses: mean losses of this step, scalars with a graph. A task whose name is missing or
            whose loss is None is absent: it is left out of the problem. With every task absent
            nothing is done and no weight comes back.
        tasks: the names that go with a sequence or a (K,) tensor; None: all tasks in order.
        accumulate: True for a micro-batch that is not the last of its update. The losses of the
            micro-batches add up to the step's (divide by the counts of the whole). The weights
            that come back are then those of this call alone: empty for methods that wait.

        Methods that need losses alone: the gradient of sum w_k L_k, everywhere. The others: the
        shared parameters get the method's update, every task's own parameters the gradient of
        its unweighted loss. Raises Diverged naming the task whose loss is not finite.
        """
        if self._unobserved:
            raise UsageError(
                f"{type(self.method).__name__} must see each batch's losses after the update too; "
                "compute them again after optimizer.step(), under torch.no_grad(), and give them "
                "to balancer.observe(losses)."
            )
        at, given = self._read(losses, tasks)
        losses_K = _detached(given)
        if accumulate:
            self._check_finite(at, losses_K)
            return self._part(at, given, losses_K)
        return self._whole(at, given, losses_K)

    def observe(self, losses: Losses, *, tasks: Sequence[str] | None = None) -> None:
        """Show the method losses that it does not weigh; `observes` says which.

        losses, tasks: as for `backward`; no graph is needed. Several processes: each hands in its
        share, as often as the others. Raises Diverged naming the task whose loss is not finite.
        """
        method = self.method
        if not isinstance(method, Observer):
            raise UsageError(
                f"{type(method).__name__} looks at no other losses; leave out observe()."
            )
        at, given = self._read(losses, tasks, graph=False)
        losses_K = _detached(given)
        if self._world() > 1:
            at, losses_K = self._exchange(at, losses_K)
        self._check_finite(at, losses_K)
        self._unobserved = False
        if at:
            signal = self._signal(at, losses_K)
            self.state = self._named_faults(lambda: method.observe(signal, self.state))

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the next step depends on, as a flat dict of tensors."""
        if self._pending is not None:
            raise UsageError(
                "Balancer: state_dict() between two micro-batches of one update; finish the "
                "update (a call without accumulate) first."
            )
        saved = {"step": torch.tensor(self.step)}
        saved |= {f"state.{name}": value for name, value in self.state.items()}
        if isinstance(self.method, nn.Module):
            saved |= {f"trained.{name}": v for name, v in self.method.state_dict().items()}
        return {name: value.detach().clone() for name, value in saved.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Go on where `saved`, from `state_dict`, was taken; bit for bit."""
        self._need_tasks("load_state_dict()")
        expected = self.state_dict()
        for name in sorted(expected.keys() ^ saved.keys()):
            what = "lacks" if name in expected else "has the unknown entry"
            raise RunError(
                f"Balancer: the saved state {what} {name!r}; it is not one of "
                f"{type(self.method).__name__}. Load it with the method that wrote it."
            )
        for name, value in expected.items():
            # A state that starts without elements takes its size at the first step.
            grows = not (value.numel() and saved[name].numel())
            if not grows and saved[name].shape != value.shape:
                raise RunError(
                    f"Balancer: saved {name!r} has shape {tuple(saved[name].shape)}, expected "
                    f"{tuple(value.shape)}: it was saved with other tasks than {self._tasks}."
                )
        self.step = int(saved["step"])
        self.state = {
            name: saved[f"state.{name}"].to(
                value.device, value.dtype if value.numel() else None, copy=True
            )
            for name, value in self.state.items()
        }
        if isinstance(self.method, nn.Module):
            cut = len("trained.")
            own = {name[cut:]: v for name, v in saved.items() if name.startswith("trained.")}
            self.method.load_state_dict(own)
        self._pending, self._unobserved = None, False

    def _part(self, at: At, given: Given, losses_K: Tensor) -> Weights:
        """Take a micro-batch that is not the last of its update."""
        if self.method.needs == "losses" and not self.method.foresees:
            raise UsageError(
                f"{type(self.method).__name__} weighs by the whole step's losses, so it cannot "
                "weigh a part of them: accumulate=True does not work with it. Take a smaller "
                "batch without accumulation, or a method with foresees = True."
            )
        self._pending = pending = self._pending or _Pending()
        pending.add_losses(at, losses_K)
        if not at:
            return Weights((), losses_K, losses_K)
        if self.method.needs != "losses":
            pending.add_rows(at, given, self.shared)
            return Weights((), losses_K[:0], losses_K[:0])
        # The next state is not taken from here: it follows from the losses of the whole update.
        update = self._ask(at, losses_K)
        _weighted_sum(given, update.weights_K).backward()  # type: ignore[no-untyped-call]
        return Weights(self._names(at), update.weights_K.detach(), losses_K)

    def _whole(self, at: At, given: Given, losses_K: Tensor) -> Weights:
        """Take a whole step, or its last micro-batch: the method answers for the whole of it."""
        pending, self._pending = self._pending, None
        all_at, all_K = at, losses_K
        if pending is not None:
            pending.add_losses(at, losses_K)
            all_at, all_K = pending.all_losses()
        if self._world() > 1:
            all_at, all_K = self._exchange(all_at, all_K)
        self._check_finite(all_at, all_K)
        if not all_at:
            self.step += 1
            return Weights((), all_K, all_K)
        if self.method.needs == "losses":
            update = self._ask(all_at, all_K)
            self._add_gradients(update, all_at, at, given)
        else:
            self._how = BY_ROWS
            fast = self._add_fast(at, given, all_K) if self._may_be_fast(pending) else None
            update = fast or self._add_rows(pending or _Pending(), at, given, all_at, all_K)
        if update.note is not None:
            self._count(update.note)
        self.state = update.state
        self.step += 1
        self._unobserved = self._observes == "after"
        return Weights(self._names(all_at), update.weights_K.detach(), all_K)

    def _count(self, note: str) -> None:
        """Add to `notes`; warn the caller of `backward` where this one is new."""
        text = f"{type(self.method).__name__}: {note}"
        if text not in self.notes:
            said = f"{text} (update {self.step}; the others are counted in Balancer.notes)."
            warnings.warn(said, RuntimeWarning, stacklevel=4)
        self.notes[text] = self.notes.get(text, 0) + 1

    def _add_gradients(self, update: Update, all_at: At, at: At, given: Given) -> None:
        """Run the one backward pass of the weighted sum; `at` holds this process's tasks."""
        terms: list[Tensor] = []
        if at:
            weights_K = update.weights_K
            if at != all_at:
                weights_K = weights_K[[all_at.index(t) for t in at]]
            terms.append(_weighted_sum(given, weights_K))
        if update.penalty is not None:
            terms.append(update.penalty / self._world())
        if terms:
            sum(terms[1:], terms[0]).backward()  # type: ignore[no-untyped-call]

    def _may_be_fast(self, pending: _Pending | None) -> bool:
        # Micro-batches and processes add up the rows themselves before they are multiplied.
        return (
            self.method.needs == "gramian"
            and self._gramian == "per layer"
            and pending is None
            and self._world() == 1
        )

    def _add_fast(self, at: At, given: Given, losses_K: Tensor) -> Update | None:
        """Form the Gramian layer by layer and add the method's update; None where it cannot."""
        losses = given.unbind() if isinstance(given, Tensor) else given
        products = self._per_layer.products(losses, self.shared)
        self._how = self._per_layer.said
        if products is None:
            return None
        self.held_bytes = max(self.held_bytes, self._per_layer.held)
        update = self._ask(at, losses_K, products.gram_KK)
        assert update.direction_P is None, "a direction needs rows"
        products.add(update.weights_K.detach(), self.shared)
        if update.penalty is not None:
            update.penalty.backward()  # type: ignore[no-untyped-call]
        return update

    def _add_rows(
        self, pending: _Pending, at: At, given: Given, all_at: At, losses_K: Tensor
    ) -> Update:
        """Form every task's gradient and add the method's update to the shared `.grad`."""
        pending.add_rows(at, given, self.shared)
        rows_KP, reached = pending.spread(all_at, self.shared), pending.reached
        self.held_bytes = max(self.held_bytes, rows_KP.numel() * rows_KP.element_size())
        world = self._world()
        if world > 1:
            dist.all_reduce(rows_KP, group=self._group)
            reached = self._reached_anywhere(reached)
        needs_rows = self.method.needs == "rows"
        gram_KK = gradients.gram(rows_KP)
        update = self._ask(all_at, losses_K, gram_KK, rows_KP if needs_rows else None)
        direction_P = update.direction_P
        if direction_P is None:
            direction_P = update.weights_K.detach().to(rows_KP.dtype) @ rows_KP
        # The loop sums .grad over the processes, each of which holds the whole update here.
        gradients.add_direction(
            direction_P if world == 1 else direction_P / world, self.shared, reached
        )
        if update.penalty is not None:
            (update.penalty / world).backward()  # type: ignore[no-untyped-call]
        return update

    def _ask(
        self,
        at: At,
        losses_K: Tensor,
        gram_KK: Tensor | None = None,
        rows_KP: Tensor | None = None,
    ) -> Update:
        signal = self._signal(at, losses_K, gram_KK, rows_KP)
        return self._named_faults(lambda: self.method(signal, self.state))

    def _signal(
        self,
        at: At,
        losses_K: Tensor,
        gram_KK: Tensor | None = None,
        rows_KP: Tensor | None = None,
    ) -> Signal:
        self._place(losses_K.device)
        return Signal(
            losses_K,
            self._index_of(at, losses_K.device),
            len(self._tasks),
            self.step,
            None if self._steps_per_epoch is None else self.step // self._steps_per_epoch,
            gram_KK,
            rows_KP,
        )

    def _named_faults(self, answer: Callable[[], Answer]) -> Answer:
        try:
            return answer()
        except TaskFault as fault:
            raise fault.named(self._tasks[fault.index]) from None

    # -- what the user hands in -----------------------------------------------------------------

    def _start(self, tasks: Sequence[str]) -> None:
        names = tuple(tasks)
        if not names or len(set(names)) != len(names):
            raise UsageError(f"Balancer: tasks must be one or more different names; got {names}.")
        self._tasks = names
        self._at = {name: t for t, name in enumerate(names)}
        self.state = self.method.start(len(names))

    def _need_tasks(self, what: str) -> None:
        if not self._tasks:
            raise UsageError(
                f"Balancer: {what} needs the tasks' order beforehand; give Balancer(..., "
                "tasks=[...])."
            )

    def _read(
        self, losses: Losses, tasks: Sequence[str] | None, graph: bool = True
    ) -> tuple[At, Given]:
        """Return the present tasks' positions, ascending, and their losses in that order.

        graph: whether each loss must have one.
        """
        if isinstance(losses, Mapping):
            if tasks is not None:
                raise UsageError("Balancer: a mapping of losses has its names; leave out tasks.")
            names = tuple(losses)
            values: Sequence[Tensor | None] | Tensor = tuple(losses.values())
        else:
            if isinstance(losses, Tensor) and losses.dim() != 1:
                raise UsageError(
                    f"Balancer: losses as one tensor have shape (K,); got {tuple(losses.shape)}."
                )
            names = tuple(tasks) if tasks is not None else self._tasks
            names = names or tuple(map(str, range(len(losses))))
            if len(names) != len(losses):
                raise UsageError(
                    f"Balancer: {len(losses)} losses came for {len(names)} tasks; give one per "
                    "task (None where absent), or name those given with tasks=[...]."
                )
            values = losses
        if not self._tasks:
            if self._world() > 1:
                self._need_tasks("a run of several processes")
            self._start(names)
        if isinstance(values, Tensor):
            return self._read_tensor(names, values, graph)
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
        order = sorted(range(len(at)), key=at.__getitem__)
        if len(set(at)) != len(at):
            raise UsageError(f"Balancer: a task is named twice in {names}.")
        return tuple(at[i] for i in order), [given[i] for i in order]

    def _read_tensor(
        self, names: tuple[str, ...], losses_K: Tensor, graph: bool
    ) -> tuple[At, Given]:
        if graph and names and not losses_K.requires_grad:
            raise _no_graph(names[0])
        if names not in self._orders:
            at = tuple(map(self._position, names))
            if len(set(at)) != len(at):
                raise UsageError(f"Balancer: a task is named twice in {names}.")
            if len(self._orders) >= INDEX_CACHE:
                self._orders.clear()
            order = sorted(range(len(at)), key=at.__getitem__)
            in_order = order == list(range(len(at)))
            self._orders[names] = tuple(sorted(at)), None if in_order else order
        sorted_at, moved = self._orders[names]
        return sorted_at, losses_K if moved is None else losses_K[moved]

    def _position(self, name: str) -> int:
        try:
            return self._at[name]
        except KeyError:
            known = f"This balancer's tasks are: {', '.join(self._tasks)}."
            raise unknown("task", name, self._tasks, known) from None

    def _check_finite(self, at: At, losses_K: Tensor) -> None:
        # One number and one wait for the device, however many tasks; the look at each of them is
        # for when the sum is not finite, which huge losses can also make it.
        if math.isfinite(losses_K.sum().item()) or bool(torch.isfinite(losses_K).all()):
            return
        bad = {self._tasks[t]: v for t, v in zip(at, losses_K.tolist(), strict=True)}
        names = ", ".join(f"{name!r} is {v}" for name, v in bad.items() if not math.isfinite(v))
        raise Diverged(
            f"At step {self.step} the loss of task {names}; expected a finite number. Check its "
            "inputs and targets, lower the learning rate, or clip gradients."
        )

    def _names(self, at: At) -> tuple[str, ...]:
        if len(at) == len(self._tasks):
            return self._tasks
        return tuple(self._tasks[t] for t in at)

    # -- devices and processes ------------------------------------------------------------------

    def _place(self, device: torch.device) -> None:
        """Bring the method's state and trained parts to where the losses are, once."""
        if self._device == device:
            return
        self.state = {name: value.to(device) for name, value in self.state.items()}
        if isinstance(self.method, nn.Module):
            self.method.to(device)
        self._device = device

    def _index_of(self, at: At, device: torch.device) -> Tensor:
        index_K = self._index.get(at)
        if index_K is None or index_K.device != device:
            if len(self._index) >= INDEX_CACHE:
                self._index.clear()
            index_K = self._index[at] = torch.tensor(at, device=device, dtype=torch.int64)
        return index_K

    def _world(self) -> int:
        if self._group is None and not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self._group)

    def _exchange(self, at: At, losses_K: Tensor) -> tuple[At, Tensor]:
        """Return the tasks present in any process, and their losses summed over the processes."""
        device = self.shared[0].device if self.shared else losses_K.device
        both_2T = torch.zeros(2, len(self._tasks), dtype=torch.float64, device=device)
        if at:
            index_K = self._index_of(at, device)
            both_2T[0, index_K] = losses_K.to(torch.float64)
            both_2T[1, index_K] = 1.0
        dist.all_reduce(both_2T, group=self._group)
        everywhere = tuple(t for t, count in enumerate(both_2T[1].tolist()) if count > 0)
        return everywhere, both_2T[0, self._index_of(everywhere, device)]

    def _reached_anywhere(self, reached: set[int]) -> set[int]:
        device = self.shared[0].device
        flags = torch.zeros(len(self.shared), dtype=torch.int32, device=device)
        flags[sorted(reached)] = 1
        dist.all_reduce(flags, group=self._group)
        return set(flags.nonzero().flatten().tolist())


@dataclass
class _Pending:
    """What the micro-batches of an unfinished update left: losses, rows, parameters reached."""

    losses: dict[int, Tensor] = field(default_factory=dict)
    at: At = ()
    rows_KP: Tensor | None = None
    reached: set[int] = field(default_factory=set)

    def add_losses(self, at: At, losses_K: Tensor) -> None:
        for t, loss in zip(at, losses_K.unbind(), strict=True):
            self.losses[t] = self.losses[t] + loss if t in self.losses else loss

    def all_losses(self) -> tuple[At, Tensor]:
        at = tuple(sorted(self.losses))
        return at, torch.stack([self.losses[t] for t in at]) if at else torch.empty(0)

    def add_rows(self, at: At, given: Given, shared: Sequence[Tensor]) -> None:
        if not at:
            return
        together = tuple(sorted({*self.at, *at}))
        rows_KP = self.spread(together, shared)
        mine = [rows_KP[together.index(t)] for t in at]
        losses = given.unbind() if isinstance(given, Tensor) else given
        self.reached |= gradients.add_rows(losses, shared, mine)
        self.at, self.rows_KP = together, rows_KP

    def spread(self, at: At, shared: Sequence[Tensor]) -> Tensor:
        """Return the rows for the tasks `at`, zeros where none came yet."""
        if self.rows_KP is not None and at == self.at:
            return self.rows_KP
        rows_KP = gradients.empty_rows(len(at), shared)
        if self.rows_KP is not None:
            rows_KP[[at.index(t) for t in self.at]] = self.rows_KP
        return rows_KP


def _detached(given: Given) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    return torch.stack([loss.detach() for loss in given]) if given else torch.empty(0)


def _weighted_sum(given: Given, weights_K: Tensor) -> Tensor:
    losses_K = given if isinstance(given, Tensor) else torch.stack(list(given))
    return torch.dot(losses_K, weights_K.to(losses_K.dtype))


def _no_graph(task: str) -> UsageError:
    return UsageError(
        f"Balancer: the loss of task {task!r} has no graph to differentiate; compute it from the "
        "model's output outside torch.no_grad() and without detach() or item()."
    )
