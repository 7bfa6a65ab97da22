"""Which of several trained models serves each task, and the models that do as one.

Shapes: B = rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.evaluate import delta_m, paired_error
from polytask.recipes.train import Job, load_run, look, suite_of
from polytask.share import SharedModel
from polytask.share.base import Inputs
from polytask.tasks import Task, TaskSet

How = Literal["shared", "group", "alone", "from shared"]
"""A run of all tasks, of several, of one, and of one from the weights of one of all."""

HOWS: dict[How, str] = {
    "shared": "a model of all tasks",
    "group": "a model of a group",
    "alone": "a model trained alone",
    "from shared": "a model that went on alone from shared weights",
}
"""The same for people."""

SURE = 1.96
"""Errors to either side of a 95 % interval."""

ALL = "all"
"""The value of all rows in what `fit.LeftOut` computes; the others leave a part out."""


@dataclass(frozen=True)
class Candidate:
    """What may serve a task: a run. run: its name. how: what sort of run. values: what `LeftOut`
    told of the task."""

    task: str
    run: str
    how: How
    job: Job
    values: Mapping[str, float]

    @property
    def value(self) -> float:
        """The primary metric on the validation split."""
        return self.values[ALL]

    @property
    def chose(self) -> bool:
        """Whether the task's own scores chose the weights, out of all epochs."""
        return self.how in ("alone", "from shared")

    @property
    def like(self) -> str:
        """What it has in common with candidates of other tasks: how it came about."""
        return self.how if self.chose else self.run

    @classmethod
    def all_of(cls, run: str, how: How, job: Job) -> list[Candidate]:
        """Return the candidates of a run that was looked at, one per task of it."""
        return [cls(task, run, how, job, values) for task, values in look(job).items()]


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
    tasks: TaskSet,
    default: Sequence[Candidate],
    candidates: Sequence[Candidate],
) -> dict[str, Choice]:
    """Return what serves each task: the default, or what is expected to be better.

    default: of one run of all tasks. What to expect of a candidate: its gain over the default on
    validation, less its standard error (the best of many candidates is lucky too), less another
    where the task's own scores chose its weights (out of many epochs), drawn towards the mean gain
    of its like over all tasks, the more the less is known of it (see `expected`). The best
    expectation above 0 serves, of those that are better than the default at all.

    Whatever comes out, a model of the task alone that is better than it by more than its 95 %
    interval takes its place.
    """
    first = {one.task: one for one in default}
    kinds: dict[str, dict[str, Candidate]] = {}
    for one in candidates:
        if one.run != first[one.task].run:
            kinds.setdefault(one.like, {})[f"{one.task}/{one.run}"] = one
    found = {task: (0.0, Choice(one, one, 0.0, 0.0)) for task, one in first.items()}
    for alike in kinds.values():
        pairs = {
            name: compared(tasks.named(one.task), one, first[one.task])
            for name, one in alike.items()
        }
        lucky = {
            name: (gain - error * (2 if alike[name].chose else 1), error)
            for name, (gain, error) in pairs.items()
        }
        for name, hoped in expected(lucky).items():
            one = alike[name]
            if pairs[name][0] > 0 and hoped > found[one.task][0]:
                choice = Choice(one, first[one.task], *pairs[name])
                found[one.task] = hoped, choice
    chosen = {task.name: found[task.name][1] for task in tasks}
    for one in candidates:
        task = tasks.named(one.task)
        if one.how == "alone" and sure(task, one, chosen[one.task].taken):
            choice = Choice(one, first[one.task], *compared(task, one, first[one.task]))
            chosen[one.task] = choice
    return chosen


def ahead(tasks: TaskSet, one: Sequence[Candidate], other: Sequence[Candidate]) -> float:
    """Return the mean gain of a run of all tasks over another in standard errors, up is better.

    The error is that of the mean over tasks: rows that many tasks share are left out for all.
    """
    mine, theirs = ({c.task: c.values for c in side} for side in (one, other))
    parts = list(mine[tasks.names[0]])
    means = {
        part: delta_m(
            tasks,
            {task: mine[task][part] for task in tasks.names},
            {task: theirs[task][part] for task in tasks.names},
        )
        for part in parts
    }
    whole = means.pop(ALL)
    error = paired_error(list(means.values()), [0.0] * len(means))
    return whole / error if error else math.copysign(math.inf, whole) if whole else 0.0


def sure(task: Task, one: Candidate, other: Candidate) -> bool:
    """Return whether one is better on validation beyond the 95 % interval of the difference."""
    if math.isnan(other.value):
        return not math.isnan(one.value)
    gain, error = compared(task, one, other)
    return gain > SURE * error  # never where either is NaN


def expected(pairs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return what to expect of each, from values and their standard errors: drawn to the mean.

    Values vary more than their errors explain by a variance tau^2, and the mean of all is mu; then
    (value tau^2 + mu error^2) / (tau^2 + error^2) is expected. Those that are not known, or whose
    error is not, are left out.

    Source: DerSimonian & Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials 7,
        1986, for tau^2 and mu; the mean of the posterior: Morris, JASA 78(381), 1983.
    """
    known = {
        name: (value, max(error, 1e-9))
        for name, (value, error) in pairs.items()
        if math.isfinite(value) and math.isfinite(error)
    }
    if len(known) < 2:
        return {name: value for name, (value, _) in known.items()}
    weights = {name: error**-2 for name, (_, error) in known.items()}
    total = math.fsum(weights.values())
    middle = math.fsum(w * known[name][0] for name, w in weights.items()) / total
    spread = math.fsum(w * (known[name][0] - middle) ** 2 for name, w in weights.items())
    less = total - math.fsum(w**2 for w in weights.values()) / total
    tau2 = max(0.0, (spread - (len(known) - 1)) / less) if less > 0 else 0.0
    own = {name: 1 / (error**2 + tau2) for name, (_, error) in known.items()}
    mu = math.fsum(w * known[name][0] for name, w in own.items()) / math.fsum(own.values())
    return {
        name: (value * tau2 + mu * error**2) / (tau2 + error**2)
        for name, (value, error) in known.items()
    }


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
    def of(cls, jobs: Mapping[str, Job]) -> Self:
        """Return the models of finished or resting runs, one per task; each is built once."""
        every = {job.folder: job for job in jobs.values()}
        folders = list(every)
        members = [_load(job) for job in every.values()]
        return cls(members, {task: folders.index(job.folder) for task, job in jobs.items()})

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


def _load(job: Job) -> SharedModel:
    model = load_run(job, suite_of(job))
    model.eval()
    return model
