"""Tasks: a name, a kind (what the target is), and metrics with a direction and a unit.

A kind knows the target and nothing else: its head, its loss with its own denominator, which
labels are missing, and how it is measured.

Shapes: B = rows (any leading size), K = tasks stacked side by side, C = classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from torch import Tensor, nn

from polytask.errors import UsageError, unknown

if TYPE_CHECKING:  # torchmetrics takes 0.7 s to import; only building a metric needs it
    from torchmetrics import Metric as TorchMetric

IGNORE = -100
"""The ignore index of integer targets: no label here. Torch's own default."""


@dataclass(frozen=True)
class Metric:
    """One number of one task: its name, which way is better, its unit, and how to build it."""

    name: str
    direction: Literal["max", "min"]
    unit: str
    build: Callable[[], TorchMetric]

    def gain(self, value: float, reference: float) -> float:
        """Return the relative change against `reference` in %, signed so that up is better.

        NaN where the reference is 0 or either number is not finite: no relative change exists.
        """
        if reference == 0 or not (math.isfinite(value) and math.isfinite(reference)):
            return math.nan
        sign = 1.0 if self.direction == "max" else -1.0
        return 100.0 * sign * (value - reference) / abs(reference)

    def better(self, value: float, than: float) -> bool:
        """Return whether `value` is strictly better; anything finite is better than NaN."""
        if math.isnan(value):
            return False
        if math.isnan(than):
            return True
        return value > than if self.direction == "max" else value < than


class Kind(ABC):
    """What a task's target is. Concrete kinds are frozen dataclasses.

    reads: which of the encoder's features the head takes: "row" (B, width), "sequence"
        (B, L, width) or "map" (B, width, H, W).
    stacks: True where `loss` reduces dim 0 alone, so that K tasks of this kind can be computed
        as one (B, K) problem. Once a target is encoded, their loss must not depend on the kind's
        fields, and their head returns (B, 1).
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["row", "sequence", "map"]] = "row"
    stacks: ClassVar[bool] = False

    @abstractmethod
    def fit(self, target: Tensor, task: str) -> Self:
        """Return this kind with what it learns from the training labels (scaling, classes).

        Raises DataError, naming `task`, where nothing can be learned from them.
        """

    @abstractmethod
    def check(self, target: Tensor, task: str, split: str) -> None:
        """Raise DataError where `target` has a value no such kind has, or train never saw."""

    @abstractmethod
    def encode(self, target: Tensor) -> Tensor:
        """Return the target as `loss` takes it: right dtype, scaled; missing stays missing."""

    @abstractmethod
    def present(self, encoded: Tensor) -> Tensor:
        """Return which labels are there, bool, in the shape of the encoded target."""

    @abstractmethod
    def head(self, width: int) -> nn.Module:
        """Return a head for features of `width` channels."""

    @abstractmethod
    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the sum of the loss over the labels present.

        A scalar, except where `stacks`: then it keeps every dimension but the first.
        A row without label adds exactly 0 to the sum and to its gradient.
        """

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss over the labels present, and their count.

        Both in the shape of `loss_sum`; the mean over the labels is their ratio. A loop that
        knows the counts beforehand, as `fit` does, asks for the sum alone.
        """
        there = self.present(encoded)
        return self.loss_sum(output, encoded), there.sum(0) if self.stacks else there.sum()

    @abstractmethod
    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (prediction, target) with missing labels removed, in the target's own units.

        `target` is the raw one, not encoded. Both go to `metric.update`.
        """

    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """Return this kind's metrics, the primary one first."""


@dataclass(frozen=True)
class Task:
    """A name and a kind. Metrics default to the kind's; the first one is primary."""

    name: str
    kind: Kind

    @property
    def primary(self) -> Metric:
        return self.kind.metrics()[0]


class TaskSet(Sequence[Task]):
    """Tasks in a fixed order: axis T everywhere."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = tuple(tasks)
        self._at = {task.name: i for i, task in enumerate(self._tasks)}
        if not self._tasks:
            raise UsageError("A task set needs at least one task; none was given.")
        if len(self._at) != len(self._tasks):
            names = [task.name for task in self._tasks]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UsageError(f"Task names must differ; {', '.join(twice)} occurs more than once.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._at)

    def index(self, name: str) -> int:  # type: ignore[override]  # by name, as tasks are named
        """Return the position of the task called `name` on axis T."""
        try:
            return self._at[name]
        except KeyError:
            known = f"The tasks are: {', '.join(self._at)}."
            raise unknown("task", name, self._at, known) from None

    def named(self, name: str) -> Task:
        return self._tasks[self.index(name)]

    def only(self, names: Iterable[str]) -> TaskSet:
        """Return the named tasks, in the order of this set."""
        wanted = {self.index(name) for name in names}
        return TaskSet(task for i, task in enumerate(self._tasks) if i in wanted)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self._tasks[i]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskSet) and self._tasks == other._tasks

    def __hash__(self) -> int:
        return hash(self._tasks)

    def __repr__(self) -> str:
        return f"TaskSet({', '.join(f'{t.name}: {t.kind.name}' for t in self._tasks)})"
