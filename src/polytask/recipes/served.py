"""Which of several trained models serves each task, and the models that do as one.

Shapes: B = rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.evaluate import paired_error
from polytask.fit import load_weights
from polytask.parsing import parse
from polytask.recipes.train import Job, build, look, suite_of
from polytask.share import SharedModel
from polytask.share.base import Inputs
from polytask.tasks import Task, TaskSet

SURE = 1.96
"""Errors to either side of a 95 % interval."""

ALL = "all"
"""The value of all rows in what `fit.LeftOut` computes; the others leave a part out."""


@dataclass(frozen=True)
class Part:
    """Weights of a run. own: the task whose own best ones they are; None for the run's best."""

    job: Job
    own: str | None = None

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return it with the run's folder as it is named inside `folder`, which may move."""
        job = self.job.to_json()
        inside = self.job.folder.relative_to(folder).as_posix()
        return {"job": {**job, "folder": inside, "start": None}, "own": self.own}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], folder: Path) -> Part:
        """Return the part that `to_json` wrote, of the folder where it lies now."""
        job = Job.from_json(raw["job"])
        return cls(replace(job, folder=folder / job.folder), raw["own"])


@dataclass(frozen=True)
class Candidate:
    """What may serve a task. run: its name. values: what `LeftOut` told of the task."""

    task: str
    run: str
    part: Part
    values: Mapping[str, float]

    @property
    def value(self) -> float:
        """The primary metric on the validation split."""
        return self.values[ALL]

    @classmethod
    def all_of(cls, run: str, job: Job) -> list[Candidate]:
        """Return the candidates of a run that was looked at: its best weights come first."""
        found = []
        for own, of_task in look(job).items():
            for task, values in of_task.items():
                part = Part(job, own or None)
                numbers = {k: math.nan if v is None else v for k, v in values.items()}
                found.append(cls(task, run, part, numbers))
        return found


@dataclass(frozen=True)
class Choice:
    """What serves a task. default: what would, if nothing were better. gain: of `taken` over it on
    validation, in %; error: the standard error of that difference, in % too. NaN: not known."""

    taken: Candidate
    default: Candidate
    gain: float
    error: float


def compared(task: Task, one: Candidate, other: Candidate) -> tuple[float, float]:
    """Return the gain of one candidate over the other in %, up is better, and its error."""
    metric = task.primary
    gain = metric.gain(one.value, other.value)
    parts = [name for name in one.values if name != ALL]
    error = paired_error([one.values[p] for p in parts], [other.values[p] for p in parts])
    return gain, 100.0 * error / abs(other.value) if other.value else math.nan


def choose(
    task: Task, default: Candidate, candidates: Sequence[Candidate], alone: Collection[str] = ()
) -> Choice:
    """Return the candidate with the best validation score of those that are better for sure.

    For sure: by more errors of the difference than the luckiest of as many candidates of equal
    worth would be, sqrt(2 ln K) of K. Where nothing stands out the default stays, which most tasks
    share. A model of the task alone needs no more than its 95 % interval.

    alone: the runs of the task alone from the start.
    """
    others = [one for one in candidates if one.task == task.name and one.part != default.part]
    lucky = max(1.0, math.sqrt(2 * math.log(len(others)))) if others else 1.0
    taken, found = default, (0.0, 0.0)
    for one in others:
        gain, error = compared(task, one, default)
        errors = min(lucky, SURE) if one.run in alone else lucky
        worthless = math.isnan(default.value) and not math.isnan(one.value)
        stands_out = worthless or gain > errors * error  # never where either is NaN
        if stands_out and task.primary.better(one.value, taken.value):
            taken, found = one, (gain, error)
    return Choice(taken, default, *found)


def choose_all(
    tasks: TaskSet,
    default: Sequence[Candidate],
    candidates: Sequence[Candidate],
    alone: Collection[str] = (),
) -> dict[str, Choice]:
    """Return what serves each task. default: of one run, its best weights first."""
    first = {one.task: one for one in reversed(default)}
    return {task.name: choose(task, first[task.name], candidates, alone) for task in tasks}


class Served(SharedModel):
    """Several trained models as one: every task is answered by the one that serves it.

    members: models. serve: of each task, the number of its model. Only the members that are asked
    run.
    """

    def __init__(self, members: Sequence[SharedModel], serve: Mapping[str, int]) -> None:
        super().__init__()
        for task, at in serve.items():
            if not 0 <= at < len(members) or task not in members[at].tasks:
                raise UsageError(f"Served: task {task!r} has no model among {len(members)}.")
        self.members = nn.ModuleList(members)
        self.serve = dict(serve)

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> Self:
        """Return the models that these weights make, each once."""
        every = list(dict.fromkeys(_key(part) for part in parts.values()))
        first = {_key(part): part for part in reversed(list(parts.values()))}
        members = [_load(first[key]) for key in every]
        return cls(members, {task: every.index(_key(part)) for task, part in parts.items()})

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.serve)

    @property
    def models(self) -> int:
        return len(self.members)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return one output per asked task; None asks for all."""
        asked = self._asked(tasks)
        outputs: dict[str, Tensor] = {}
        for at, member in enumerate(self.members):
            mine = tuple(task for task in asked if self.serve[task] == at)
            if mine:
                outputs |= member(inputs, tasks=mine)
        return {task: outputs[task] for task in asked}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the shared parameters of the members that serve more than one task."""
        serves = list(self.serve.values())
        return [
            parameter
            for at, member in enumerate(self._models())
            if serves.count(at) > 1
            for parameter in member.shared_parameters()
        ]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters only this task reaches: of a model of its own, all of them."""
        (asked,) = self._asked([task])
        at = self.serve[asked]
        member = self._models()[at]
        alone = list(self.serve.values()).count(at) == 1
        return [*(member.shared_parameters() if alone else ()), *member.task_parameters(asked)]

    def _models(self) -> list[SharedModel]:
        return [member for member in self.members if isinstance(member, SharedModel)]


def _key(part: Part) -> tuple[Any, ...]:
    return str(part.job.folder), part.own


def _load(part: Part) -> SharedModel:
    suite = suite_of(part.job)
    model, _, _ = build(suite, parse(part.job.recipe), part.job.config.seed)
    model.load_state_dict(load_weights(part.job.folder, part.own), strict=part.own is None)
    model.eval()
    return model
