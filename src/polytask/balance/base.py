"""Balance: losses, a Gramian or a Jacobian, and a state -> one weight per task, and the next state.

A method never calls `backward` and never sees a model; `engine.Balancer` does both, once, for all
of them. Tasks absent from the batch never reach a method: it sees the K present tasks, and
`index_K` says where they stand on axis T of its state.

Shapes: T = tasks of the run, K = tasks present in this step, P = shared parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from polytask.errors import RunError

State = dict[str, Tensor]
"""What a method remembers: named tensors, so that a checkpoint holds it as it is.

A tensor keeps its shape and dtype through the run; one that starts without elements, because its
size is known from the first signal alone, takes them at the first step.
"""

Needs = Literal["losses", "gramian", "rows"]
"""What a method must see: the K losses; their gradients' K x K products; the gradients."""

Observed = Literal["after", "validation"]
"""Losses a method looks at besides those it weighs, see `Observer`: the same batch's after the
update; a validation batch's."""


@dataclass(frozen=True)
class Signal:
    """What a step tells a method.

    losses_K: this step's mean losses, detached.
    index_K: positions of the present tasks on axis T, int64.
    tasks: T, how many tasks the run has.
    step: how many updates came before this one.
    epoch: how many whole epochs came before; None where the loop told nobody.
    gram_KK: float64 products of the shared gradients, where the method needs them.
    rows_KP: the shared gradients themselves, where the method needs them.
    """

    losses_K: Tensor
    index_K: Tensor
    tasks: int
    step: int = 0
    epoch: int | None = None
    gram_KK: Tensor | None = None
    rows_KP: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """A method's answer.

    state: the next state.
    weights_K: what multiplies each present task's loss. May carry a graph into the method's own
        parameters (a method with trained parts is an nn.Module).
    penalty: a scalar added to the weighted losses, with a graph into the method's own parameters.
    direction_P: the shared update itself, from methods whose answer is no weighted sum of rows.
        Exactly one of weights_K and direction_P drives the shared parameters.
    note: None, or what was used in place of what the source asks for: a solver that did not
        settle, a problem without a solution. One wording per cause, without numbers: the engine
        warns of each once and counts them, for the run's record.
    """

    state: State
    weights_K: Tensor
    penalty: Tensor | None = None
    direction_P: Tensor | None = None
    note: str | None = None


class TaskFault(RunError):
    """A method's complaint about one task. The text may hold "{task}": the engine knows its name.

    index: the task's position on axis T.
    """

    def __init__(self, text: str, index: int) -> None:
        super().__init__(text.replace("{task}", f"number {index}"))
        self.text, self.index = text, index

    def named(self, task: str) -> RunError:
        """Return the same complaint with the task's name."""
        return RunError(self.text.replace("{task}", repr(task)))


@runtime_checkable
class Balance(Protocol):
    """The contract of this room.

    needs: the least a method must see; the engine computes no more than that.
    foresees: True where a task's weight depends neither on this step's losses nor on which other
        tasks are present, so that gradient accumulation can weigh each micro-batch as it comes.
    by_epoch: True where the method compares epochs and must be told of them.
    """

    needs: ClassVar[Needs]
    foresees: ClassVar[bool]
    by_epoch: ClassVar[bool]

    def start(self, tasks: int) -> State:
        """Return the state before the first step of a run with T = `tasks`."""
        ...

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the weights for this step and the next state."""
        ...


@runtime_checkable
class Observer(Balance, Protocol):
    """A method that also looks at losses which nobody differentiates.

    observes: which. "after": of the same batch, after every update. "validation": of a batch of
        the validation split, as often as the loop likes; the loop says how often.
    """

    observes: ClassVar[Observed]

    def observe(self, signal: Signal, state: State) -> State:
        """Return the next state.

        signal: its losses_K are those observed; `step` counts the updates that came before.
        """
        ...


LEFT_OUT = "a loss is exactly 0; left its task out of the step"
"""Of methods that divide by losses. A cross-entropy that underflows on an easy batch is exactly 0,
and should not end a long run: its task has nothing to learn there, and is treated as absent."""


def check_losses(method: str, signal: Signal) -> str | None:
    """Return None where every loss is > 0, and a note, `LEFT_OUT`, where one is 0.

    method: the name to tell. Raises TaskFault where a loss is negative.
    """
    lowest = float(signal.losses_K.min())  # follows the engine's own wait for the device
    if lowest > 0:
        return None
    if lowest == 0:
        return LEFT_OUT
    k = int(signal.losses_K.argmin())
    raise TaskFault(
        f"{method}: the loss of task {{task}} is {lowest:g}; {method} takes losses bounded below "
        "by 0. Use such a loss, or another method.",
        int(signal.index_K[k]),
    )


def from_first(initial_T: Tensor, signal: Signal) -> Tensor:
    """Return each task's first loss above 0, (T,): NaN before, taken from the signal, then kept."""
    known_K = initial_T.index_select(0, signal.index_K)
    losses_K = signal.losses_K.to(initial_T.dtype)
    first_K = torch.where(known_K.isnan() & (losses_K > 0), losses_K, known_K)
    return initial_T.index_copy(0, signal.index_K, first_K)
