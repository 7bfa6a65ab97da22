"""Relate: evidence about tasks -> an affinity; an affinity and a budget of models -> groups.

`Affinity` is what every method that looks at tasks returns, `Groups` what every method that splits
them returns, and `Watch` what a method that watches training looks like:

    watch = TAG(model, model.shared_parameters(), optimiser, tasks)
    for batch in batches:
        losses = compute(batch)                       # task -> scalar, with its graph
        watch.observe(losses, again=lambda: compute(batch))
        sum(losses.values()).backward(); optimiser.step(); optimiser.zero_grad()
    groups = exact(watch.affinity(), budget=3)

Shapes: T = tasks, K = groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError, unknown
from polytask.records import read_json, write_json

NAN = math.nan

Made = TypeVar("Made")

Losses = Mapping[str, Tensor]
"""Task -> mean loss of the batch, a scalar. A task without a label in the batch is left out."""


@dataclass(frozen=True, eq=False)
class Affinity:
    """How much training each task helps each other one, with a standard error.

    tasks: T >= 2 names. values_TT: float64; [i, j] is how much training i helps j, higher is
        better; NaN is not known. The diagonal is what a task does to itself; grouping ignores it.
    error_TT: standard error of each value, NaN where there is none to be had.
    source: the method, by its name in the catalog. zero: True where 0 means "neither helps nor
        hurts"; False for similarities, whose zero says nothing about help (see `centred`).
    notes: what a reader should know, such as entries that rest on few rows.
    """

    tasks: tuple[str, ...]
    values_TT: Tensor
    error_TT: Tensor
    source: str = ""
    zero: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tasks = tuple(self.tasks)
        check_tasks(tasks, "An affinity")
        for name in ("values_TT", "error_TT"):
            given = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64).clone()
            if given.shape != (len(tasks), len(tasks)):
                raise UsageError(
                    f"Affinity: {name} has shape {tuple(given.shape)}; {len(tasks)} tasks need "
                    f"({len(tasks)}, {len(tasks)})."
                )
            if bool(given.isinf().any()):
                raise DataError(f"Affinity: {name} holds an infinity; use NaN for what is unknown.")
            object.__setattr__(self, name, given)
        if bool((self.error_TT < 0).any()):
            raise DataError("Affinity: a standard error is below 0.")
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "notes", tuple(self.notes))

    def __eq__(self, other: object) -> bool:
        """Return True where all is the same, NaN counting as NaN."""
        if not isinstance(other, Affinity):
            return NotImplemented
        same = (self.tasks, self.source, self.zero, self.notes) == (
            other.tasks, other.source, other.zero, other.notes,
        )  # fmt: skip
        pairs = ((self.values_TT, other.values_TT), (self.error_TT, other.error_TT))
        return same and all(
            torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
            for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash((self.tasks, self.source, self.notes))

    def of(self, source: str, target: str) -> float:
        """Return how much training `source` helps `target`."""
        return float(self.values_TT[self.index(source), self.index(target)])

    def index(self, task: str) -> int:
        """Return the position of a task on axis T."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks, f"The tasks are: {', '.join(self.tasks)}.")
        return self.tasks.index(task)

    def missing(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs (i, j), i not j, whose value is not known."""
        off_TT = self.values_TT.isnan() & ~torch.eye(len(self.tasks), dtype=torch.bool)
        return tuple((self.tasks[i], self.tasks[j]) for i, j in off_TT.nonzero().tolist())

    def known(self) -> Tensor:
        """Return the values with a diagonal of 0, or raise DataError where one is missing."""
        missing = self.missing()
        if missing:
            first = " on ".join(map(repr, missing[0]))
            raise DataError(
                f"The affinity lacks {len(missing)} of {len(self.tasks) * (len(self.tasks) - 1)} "
                f"values, first that of {first}. Observe more, or fill them in: affinity.filled()."
            )
        return self.values_TT.clone().fill_diagonal_(0.0)

    def filled(self) -> Affinity:
        """Return the same with every missing value filled in; those have no standard error.

        [i, j] takes the value of [j, i] where that is known, else the mean of i as a source plus
        the mean of j as a target minus the mean of all. Raises DataError where nothing is known.
        """
        off_TT = ~torch.eye(len(self.tasks), dtype=torch.bool)
        there_TT = ~self.values_TT.isnan() & off_TT
        if not bool(there_TT.any()):
            raise DataError("The affinity holds no value between two tasks; nothing to fill from.")
        mean = self.values_TT[there_TT].mean()
        values_TT = self.values_TT.where(there_TT, torch.zeros(()).double())

        def over(dim: int) -> Tensor:
            count_T = there_TT.sum(dim)
            return (values_TT.sum(dim) / count_T.clamp_min(1)).where(count_T > 0, mean)

        guess_TT = over(1)[:, None] + over(0)[None, :] - mean
        guess_TT = self.values_TT.T.where(there_TT.T, guess_TT)
        gone_TT = off_TT & ~there_TT
        count = int(gone_TT.sum())
        if not count:
            return self
        return replace(
            self,
            values_TT=guess_TT.where(gone_TT, self.values_TT),
            error_TT=torch.full_like(self.error_TT, NAN).where(gone_TT, self.error_TT),
            notes=(*self.notes, f"{count} of {int(off_TT.sum())} values were filled in"),
        )

    def centred(self) -> Affinity:
        """Return every value less the mean of its target's column: 0 is then an average source.

        For similarities, and where something common to all sources is in the values, such as the
        momentum of the optimiser in a look-ahead.
        """
        off_TT = ~torch.eye(len(self.tasks), dtype=torch.bool)
        rest_TT = self.values_TT.where(off_TT, torch.full((), NAN).double())
        values_TT = self.values_TT - rest_TT.nanmean(0, keepdim=True)
        notes = (*self.notes, "centred: 0 is a target's average source")
        return replace(self, values_TT=values_TT, zero=True, notes=notes)

    def symmetric(self) -> Affinity:
        """Return the mean of both directions; where one is missing, the other."""
        both = torch.stack([self.values_TT, self.values_TT.T])
        errors = torch.stack([self.error_TT, self.error_TT.T]).square()
        known = (~both.isnan()).sum(0)
        # of two means that need not be independent: no smaller than the mean of both errors
        error_TT = errors.sqrt().where(~both.isnan(), torch.full((), NAN).double()).nanmean(0)
        return replace(
            self,
            values_TT=both.nanmean(0),
            error_TT=error_TT.where(known > 0, torch.full((), NAN).double()),
        )

    def only(self, tasks: Sequence[str]) -> Affinity:
        """Return the affinity among these tasks, in the order given."""
        at = torch.tensor([self.index(task) for task in tasks])
        return replace(
            self,
            tasks=tuple(tasks),
            values_TT=self.values_TT[at][:, at],
            error_TT=self.error_TT[at][:, at],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes null when it is written."""
        return {
            "tasks": list(self.tasks),
            "values": self.values_TT.tolist(),
            "errors": self.error_TT.tolist(),
            "source": self.source,
            "zero": self.zero,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, or raise DataError."""
        return _read(cls, lambda: cls(
            tuple(raw["tasks"]), _matrix(raw["values"]), _matrix(raw["errors"]),
            raw["source"], bool(raw["zero"]), tuple(raw["notes"]),
        ))  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return what `save` wrote."""
        return cls.from_json(read_json(Path(path)))


@dataclass(frozen=True)
class Groups:
    """Which tasks are trained together, and which group's model serves each task.

    tasks: all T. groups: K sets of tasks, each in the order of `tasks`; they may overlap: a task
        may train in a group that does not serve it, because it helps there.
    serve: of each task, the number of the group whose model serves it.
    value: of each task, the gain that was expected of its group; NaN where none was.
    score: their mean. optimal: True where no other choice within the budget has a higher score.
    gap: how much higher the score of another choice could be; NaN where that is not known.
    """

    tasks: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    serve: tuple[int, ...]
    value: tuple[float, ...]
    score: float
    optimal: bool = False
    gap: float = NAN
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.serve) != len(self.tasks) or len(self.value) != len(self.tasks):
            raise UsageError(
                f"Groups: {len(self.tasks)} tasks need as many entries in serve and value; got "
                f"{len(self.serve)} and {len(self.value)}."
            )
        for task, at in zip(self.tasks, self.serve, strict=True):
            if not 0 <= at < len(self.groups) or task not in self.groups[at]:
                raise UsageError(f"Groups: task {task!r} is served by a group it is not in.")
        for group in self.groups:
            for task in group:
                if task not in self.tasks:
                    raise unknown("task", task, self.tasks, f"Tasks: {', '.join(self.tasks)}.")

    def of(self, task: str) -> tuple[str, ...]:
        """Return the group that serves a task."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks, f"The tasks are: {', '.join(self.tasks)}.")
        return self.groups[self.serve[self.tasks.index(task)]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "tasks": list(self.tasks),
            "groups": [list(group) for group in self.groups],
            "serve": list(self.serve),
            "value": list(self.value),
            "score": self.score,
            "optimal": self.optimal,
            "gap": self.gap,
            "source": self.source,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, or raise DataError."""
        return _read(cls, lambda: cls(
            tuple(raw["tasks"]), tuple(map(tuple, raw["groups"])), tuple(raw["serve"]),
            tuple(map(_number, raw["value"])), _number(raw["score"]), bool(raw["optimal"]),
            _number(raw["gap"]), raw["source"], tuple(raw["notes"]),
        ))  # fmt: skip


@runtime_checkable
class Watch(Protocol):
    """A method that watches training, in anybody's loop.

    observe: call it at every step, after the losses and before their backward pass. It leaves
        parameters, gradients, buffers, the optimiser and random states as they were, bit for bit.
    state_dict, load_state_dict: everything it knows, as tensors; a run goes on as if never stopped.
    """

    def observe(self, losses: Losses, again: Callable[[], Losses] | None = None) -> bool:
        """Look where it is time to; return True where it looked."""

    def affinity(self) -> Affinity:
        """Return the mean over all looks so far."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all it knows."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""


def check_tasks(tasks: Sequence[str], what: str) -> None:
    """Raise UsageError unless there are two tasks or more, named differently."""
    if len(tasks) < 2:
        raise UsageError(f"{what} relates at least two tasks; got {len(tasks)}.")
    if len(set(tasks)) != len(tasks):
        twice = sorted({task for task in tasks if list(tasks).count(task) > 1})
        raise UsageError(f"{what}: task names must differ; {', '.join(twice)} occurs twice.")


def check_budget(budget: int, tasks: int, who: str) -> int:
    """Return how many models may be used: more than there are tasks would serve nobody."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"{who}: budget is {budget!r}; give a number of models >= 1.")
    return min(budget, tasks)


def _matrix(rows: Sequence[Sequence[float | None]]) -> Tensor:
    return torch.tensor([[_number(v) for v in row] for row in rows], dtype=torch.float64)


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _read(cls: type, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"This is no {cls.__name__} as to_json writes it ({type(error).__name__}: {error})."
        ) from error
