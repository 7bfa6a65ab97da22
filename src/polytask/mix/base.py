"""Mix: step, sizes and progress -> which streams feed the step.

A method answers with shares; `schedule.Schedule` turns shares into rows, once for all of them.

Shapes: S = streams.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.errors import UsageError, unknown

State = dict[str, Tensor]
"""What a method remembers: named tensors, which keep shape and dtype through the run."""

Varies = Literal["never", "by step", "by run"]
"""What moves a method's shares between two looks at losses: nothing; the step; the step and how
many steps the run has."""


@dataclass(frozen=True)
class Streams:
    """What is mixed. sizes_S: rows of each stream, int64, all > 0."""

    names: tuple[str, ...]
    sizes_S: Tensor

    @classmethod
    def of(cls, sizes: Mapping[str, int] | Sequence[int]) -> Streams:
        """Return streams of these sizes; without names they are called "0", "1", ..."""
        named = (
            sizes
            if isinstance(sizes, Mapping)
            else dict(zip(map(str, range(len(sizes))), sizes, strict=True))
        )
        empty = [name for name, size in named.items() if size < 1]
        if not named or empty:
            which = f"; {', '.join(map(repr, empty))} has none" if empty else ""
            raise UsageError(
                f"Every stream needs at least one row; sizes are {list(named.values())}{which}."
            )
        return cls(tuple(named), torch.tensor(list(named.values()), dtype=torch.int64))

    def at(self, chosen: Sequence[str], method: str) -> list[int]:
        """Return where the chosen streams stand, in their order. `method` is for the error."""
        for name in chosen:
            if name not in self.names:
                raise unknown(
                    f"stream of {method}",
                    name,
                    self.names,
                    f"The streams: {', '.join(self.names)}.",
                )
        if len(set(chosen)) != len(chosen):
            raise UsageError(
                f"{method}: a stream is named twice in {'/'.join(chosen)}; name it once."
            )
        return [self.names.index(name) for name in chosen]

    def each(self, given: Sequence[object], method: str, what: str) -> None:
        """Refuse settings of one per stream that are for another number of streams."""
        if len(given) != len(self):
            raise UsageError(
                f"{method}: {len(given)} {what} came for {len(self)} streams "
                f"({', '.join(self.names)}); give one per stream."
            )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Now:
    """step: updates before this one. steps: those of the whole run, None where nobody knows."""

    step: int
    steps: int | None = None

    @property
    def part(self) -> float:
        """How much of the run is over, from 0 to 1."""
        assert self.steps is not None, "the schedule refuses methods that vary by run without steps"
        return min(self.step / self.steps, 1.0)


@runtime_checkable
class Mix(Protocol):
    """The contract of this room. observes: True for an `Observer`."""

    @property
    def varies(self) -> Varies: ...

    @property
    def observes(self) -> bool: ...

    def start(self, streams: Streams) -> State:
        """Return the state before the first step; UsageError where a setting fits no stream."""
        ...

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of the step's rows: (S,), float64, all >= 0, summing to 1."""
        ...


@runtime_checkable
class Observer(Mix, Protocol):
    """A method that is shown the streams' validation losses, as often as the loop likes."""

    def observe(self, losses_S: Tensor, streams: Streams, now: Now, state: State) -> State:
        """Return the next state. losses_S: float64, NaN for a stream that was not looked at."""
        ...


class StreamOptimiser(Optimizer):
    """An optimiser of steps that are of one stream each, and which is told whose."""

    @abstractmethod
    def at(self, stream: str, /) -> None:
        """Say whose rows feed the next step; told before each."""


@runtime_checkable
class Optimised(Mix, Protocol):
    """A method whose steps, of one stream each, may want an optimiser of their own."""

    def optimiser_for(
        self, groups: list[dict[str, Any]], streams: Streams, *, lr: float, weight_decay: float
    ) -> StreamOptimiser | None:
        """Return what updates these parameter groups; None: whatever the loop has."""
        ...


def optimiser_for(
    mix: Mix, groups: list[dict[str, Any]], streams: Streams, *, lr: float, weight_decay: float
) -> StreamOptimiser | None:
    """Return the optimiser that a mix wants for these parameter groups; None, as most: any."""
    if not isinstance(mix, Optimised):
        return None
    return mix.optimiser_for(groups, streams, lr=lr, weight_decay=weight_decay)
