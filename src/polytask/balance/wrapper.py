"""Wrapper: a method and one update -> gradients, by another way than the exact one.

A wrapper holds the method it wraps and decides where gradients are taken: at the features, from a
sample of rows, at other parameters. `turn.Turn` gives it what the engine can do.

Shapes: T = tasks of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polytask.balance.base import Balance, Observer, State, Update
from polytask.balance.losses import Losses
from polytask.errors import UsageError

if TYPE_CHECKING:
    from polytask.balance.turn import Turn


@runtime_checkable
class Wrapper(Protocol):
    """The contract of what stands around a method. Settings are frozen, state goes in and out.

    looks_again: whether it needs the step's losses computed again, see `Again`.
    spans_processes: whether it can share a batch with other processes.
    """

    looks_again: ClassVar[bool]
    spans_processes: ClassVar[bool]

    def methods(self) -> Mapping[str, Balance | Wrapper]:
        """Return what it wraps, by the name under which its state keeps theirs."""
        ...

    def start(self, tasks: int) -> State:
        """Return its state before the first step, with those of the wrapped under their names."""
        ...

    def take(self, turn: Turn, state: State) -> None:
        """Take a micro-batch that others follow; keep no more of it than `update` must have.

        `turn` tells of this micro-batch alone, save `pending`, where what is kept is left. Raises
        UsageError where micro-batches cannot be told from each other's losses.
        """
        ...

    def update(self, turn: Turn, state: State) -> Update:
        """Add this update's gradients to `.grad`; return the weights used and the next state."""
        ...


Method = Balance | Wrapper


@dataclass(frozen=True)
class Rows:
    """Rows of a step's tensors: called with a tensor, returns those of its rows (dim 0).

    Tensors with as many rows as each other lose the same rows, in one call or in several. The rows
    are drawn without replacement, in ascending order.

    draw: numbers that the draw follows from. start, stop: which part of the drawn order, as
        fractions; 0 to 1 is every row, and the tensor itself comes back.
    """

    draw: tuple[int, ...] = ()
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, tensor: Tensor) -> Tensor:
        if (self.start, self.stop) == (0.0, 1.0):
            return tensor
        return tensor.index_select(0, self.indices(len(tensor)).to(tensor.device))

    def indices(self, rows: int) -> Tensor:
        """Return which of `rows` rows are taken; at least one, if there is any."""
        order = np.random.default_rng((*self.draw, rows)).permutation(rows)
        first, last = round(self.start * rows), round(self.stop * rows)
        if first == last:
            first, last = (first - 1, last) if last == rows else (first, last + 1)
        return torch.from_numpy(np.sort(order[max(first, 0) : last]))


Again = Callable[[Rows, Sequence[str]], Losses]
"""The losses given to `backward`, computed again from the model as it is then: of some rows, for
some tasks.

    def again(rows, tasks):
        outputs = model(rows(x))
        return {task: loss_of[task](outputs[task], rows(y[task])) for task in tasks}

A task without a label in those rows is left out or None. Losses are means over the rows taken; of
all rows they are those that were given.

Micro-batches and processes: each has its own, for its own rows, and what they return adds up as the
losses given do. Where all have as many rows that is the mean over the rows taken, divided by the
number of parts; else the sum over the rows taken, divided by the labels in the rows taken anywhere
(every process is asked equally often, for the same tasks, so they can be counted), or by those of
the whole update times the part of the rows that is taken. It is kept until the update is done, and
so is the batch it holds.
"""


# -- state: that of a wrapper holds its methods' -------------------------------------------------


def nest(name: str, state: State) -> State:
    """Return the state with every entry's name under `name`."""
    return {f"{name}.{key}": value for key, value in state.items()}


def under(name: str, state: State) -> State:
    """Return the entries under `name`, with the names they had before `nest`."""
    cut = len(name) + 1
    return {key[cut:]: value for key, value in state.items() if key.startswith(f"{name}.")}


def started(wrapper: Wrapper, tasks: int, own: State) -> State:
    """Return a wrapper's first state: its own entries and those of what it wraps."""
    state = dict(own)
    for name, method in wrapper.methods().items():
        state |= nest(name, method.start(tasks))
    return state


def plain(method: Method) -> Iterator[tuple[str, Balance]]:
    """Yield every method in a nest of wrappers, with the name that its state is under."""
    if isinstance(method, Wrapper):
        for name, inner in method.methods().items():
            for path, found in plain(inner):
                yield (f"{name}.{path}" if path else name), found
    else:
        yield "", method


def wrappers(method: Method) -> Iterator[Wrapper]:
    """Yield every wrapper of a nest, the outermost first."""
    if isinstance(method, Wrapper):
        yield method
        for inner in method.methods().values():
            yield from wrappers(inner)


def label(method: Method) -> str:
    """Return the method as a person would write it: "EveryN(PCGrad)"."""
    name = type(method).__name__
    if not isinstance(method, Wrapper):
        return name
    return f"{name}({', '.join(label(inner) for inner in method.methods().values())})"


# -- what can be wrapped -------------------------------------------------------------------------


def check_wrapped(
    wrapper: str,
    method: Method,
    *,
    inside: tuple[type, ...] = (),
    losses: bool = False,
    rows: bool = True,
) -> None:
    """Return nothing where `wrapper` can stand around `method`; else raise UsageError.

    inside: wrappers that may stand inside. losses: whether methods that need losses alone may.
    rows: whether methods that need the gradients themselves may.
    """
    if isinstance(method, Wrapper):
        if not isinstance(method, inside):
            allowed = " or ".join(["a method", *(kind.__name__ for kind in inside)])
            raise UsageError(
                f"{wrapper} cannot stand around {type(method).__name__}; it goes around {allowed}."
            )
        return
    if not isinstance(method, Balance):
        raise UsageError(
            f"{wrapper}: {type(method).__name__} is no balance method; give one, such as "
            f"{wrapper}(PCGrad())."
        )
    name = type(method).__name__
    if isinstance(method, Observer):
        raise UsageError(
            f"{wrapper} cannot stand around {name}, which looks at other losses between updates; "
            "use it alone, or as Weighed(..., by=...)."
        )
    if method.needs == "losses" and not losses:
        raise UsageError(
            f"{wrapper} changes how gradients are compared, and {name} looks at losses alone: it "
            "costs one backward pass as it is. Use it without, or wrap a gradient method."
        )
    if method.needs == "rows" and not rows:
        raise UsageError(
            f"{wrapper} reuses weights, and {name} answers with a direction made of the "
            "gradients themselves. Wrap a method that needs the Gramian alone, such as PCGrad."
        )
