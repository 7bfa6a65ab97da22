"""The search of `auto`: what is trained, in which order, within a budget.

Models of all tasks are trained and watched. Then every task goes on alone from the best one's
weights: where that helps, sharing holds the task back. Those tasks also train alone from the
start, a while first; one that is behind the shared models at the same epoch stops there. What is
left of the budget goes to other ways to share, to the groups that the watch proposes, and to more
tasks alone. At the end each task is served by the best model of all tasks, unless something else
is better on validation by more than chance.

What is tried follows from arithmetic counted beforehand and from validation scores, never from
seconds, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from polytask.errors import Diverged, PolytaskError, RunError
from polytask.evaluate import delta_m
from polytask.fit import affinity_of
from polytask.recipes.adapting import grid_for
from polytask.recipes.plan import GRID, SINGLE, AutoPlan, Setting
from polytask.recipes.relating import proposals
from polytask.recipes.runs import DIVERGED, Show
from polytask.recipes.served import Candidate, How, compared
from polytask.recipes.train import Job, record_of
from polytask.recipes.work import work_of_epoch
from polytask.recipes.workers import Call, Died, Pool
from polytask.records import Point, Record, file_name, read_json, write_json
from polytask.suites import Suite

FIRST = "equal"
"""How the first model of all tasks trains: hard sharing, equal weights."""

WATCH = "gradient-cosine"
"""How the tasks' relation is seen: on the suites of the library it settled most pairs."""

GROUPS = (2, 3)
"""Budgets of models for which groups are proposed."""

RUNG = 3
"""Tasks first train alone for this part of the epochs that the first shared model took."""

FROM = 3
"""Going on from shared weights, the learning rate is divided by this."""

LEG = 8
"""A task goes on from shared weights for this part of the shared model's epochs at first."""

PHASES = ("tasks alone", "models of all tasks, and groups", "tasks from shared weights", "choice")
"""What a person is told of; as many as `compare` has."""

ALONE, SHARED, STARTED, LOOKS = range(len(PHASES))


@dataclass(frozen=True)
class Tried:
    """A run of the search. name: of its folder."""

    name: str
    how: How
    job: Job
    work: float
    """Of an epoch, see `work_of_epoch`."""

    @property
    def tasks(self) -> tuple[str, ...] | None:
        return self.job.tasks

    @property
    def setting(self) -> Setting:
        return self.job.config.lr, self.job.config.weight_decay

    def record(self) -> Record:
        return record_of(self.job.folder)

    @property
    def task(self) -> str:
        """The task of a run of one."""
        assert self.tasks is not None
        return self.tasks[0]

    @property
    def points(self) -> tuple[Point, ...]:
        """What was validated up to where it is to rest: a search that is taken up after a kill
        finds runs that are farther, and decides as it did."""
        return self.record().points[: self.job.until]

    @property
    def epochs(self) -> int:
        return len(self.points)

    @property
    def spent(self) -> float:
        return self.work * self.epochs

    def candidates(self) -> list[Candidate]:
        """Return what may serve tasks; the run must have been looked at."""
        return Candidate.all_of(self.name, self.how, self.job)

    @property
    def done(self) -> bool:
        """Whether it trained to its end, rather than rests."""
        record = self.record()
        return bool(record.stopped) and len(record.points) <= (self.job.until or math.inf)


class Search:
    """One search in progress: what was tried, what it cost, and what comes next."""

    def __init__(self, plan: AutoPlan, suite: Suite, budget: float, show: Show, pool: Pool) -> None:
        self.plan, self.suite, self.budget, self.show, self.pool = plan, suite, budget, show, pool
        self.tasks = suite.tasks
        self.config = plan.trained
        self.grid = grid_for(suite, FIRST) or GRID
        self.shared: list[Tried] = []  # groups too
        self.alone: dict[str, Tried] = {}
        self.started: dict[str, Tried] = {}
        self.others: list[Tried] = []  # of one task, beside those in `alone`
        self.failed: dict[str, str] = {}
        self._counts = [0] * len(PHASES)
        self._work: dict[tuple[str, tuple[str, ...] | None], float] = {}

    def run(self) -> None:
        """Train all that is to be trained, and look at it on the validation split."""
        self._first()
        self._share(self._settings(), self.left / 2)
        self._from_shared()
        self._race(self._held_back())
        self._share(self._methods(), self.left)
        self._share(self._groups(), self.left)
        self._race([task for task in self._by_risk() if task not in self.alone])
        self._alone_otherwise()
        self._call(LOOKS, "look", self.everything)

    # What is trained, in order.

    def _first(self) -> None:
        """Train the first model of all tasks, watched; another setting where one diverges."""
        for setting in self.grid[: self.plan.tune]:
            one = self._tried("shared", FIRST, None, setting, watches=(WATCH,))
            self.shared += self._train(SHARED, [one])
            if self.shared:
                break
        else:
            raise RunError(
                f"auto: every setting of a model of all tasks diverges: {self.failed}. Give more "
                "settings with tune, or look at the data with `polytask fit`."
            )
        first = self.shared[0].record()
        self.reference = self._primary(first)
        self.epochs = len(first.points)

    def _share(self, runs: Sequence[Tried], left: float) -> None:
        """Train those models of several tasks that fit into what is left."""
        self.shared += self._train(SHARED, self._capped(runs, left))

    def _from_shared(self) -> None:
        """Let every task go on alone from the best model of all tasks, those at risk first.

        A short leg each; who is ahead of that model then goes on, twice as far each time.
        """
        self.source = self._hard()
        lr, weight_decay = self.source.setting
        setting = lr / FROM, weight_decay
        new = [
            self._tried("from shared", FIRST, (task,), setting, start=self.source)
            for task in self._by_risk()
        ]
        self._legs(self.started, new, math.ceil(self.epochs / LEG), STARTED, self._improved)

    def _improved(self, task: str) -> float:
        """Return by how much % a task that went on from shared weights is better than with them."""
        before = self._reached(self.source, task, self.source.record().best.epoch)
        return self._gain(task, self._reached(self.started[task], task), before)

    def _held_back(self) -> list[str]:
        """Return the tasks that did better alone from the shared weights, the surest first."""
        runs = list(self.started.values())
        self._call(LOOKS, "look", [self.source, *runs])
        shared = {one.task: one for one in self.source.candidates()}
        sure: dict[str, float] = {}
        for run in runs:
            (one,) = run.candidates()
            gain, error = compared(self.tasks.named(one.task), one, shared[one.task])
            if gain > error:
                sure[one.task] = gain / error if error else math.inf
        return sorted(sure, key=lambda task: -sure[task])

    def _race(self, tasks: Sequence[str]) -> None:
        """Train tasks alone; those that lead the shared models go on, twice as far each time."""
        new = [self._tried("alone", FIRST, (task,), self.grid[0]) for task in tasks]
        new = self._affordable(new, self.epochs, self.left)
        self._legs(self.alone, new, math.ceil(self.epochs / RUNG), ALONE, self._lead)

    def _legs(
        self,
        runs: dict[str, Tried],
        new: Sequence[Tried],
        first: int,
        phase: int,
        lead: Callable[[str], float],
    ) -> None:
        """Train runs of one task each for `first` epochs, and on while one is not behind.

        runs: where they are kept, by task; one that fails is there as it rested last, if it did.
        lead: of a task, in %.
        """
        legs = [replace(one, job=replace(one.job, until=first)) for one in new]
        legs = self._affordable(legs, first, self.left)
        while legs:
            done = self._train(phase, legs)
            runs.update({one.task: one for one in done})
            on = sorted((t for one in done if lead(t := one.task) >= 0), key=lead, reverse=True)
            legs = [
                replace(one, job=replace(one.job, until=min(2 * one.epochs, self.config.epochs)))
                for one in (runs[task] for task in on)
                if not one.done
            ]
            legs = self._affordable(legs, None, self.left)

    def _alone_otherwise(self) -> None:
        """Try other settings for the tasks that are best alone."""
        best = [
            task
            for task, one in self.alone.items()
            if one.done and self._gain(task, self._reached(one, task), self._ever(task)) >= 0
        ]
        runs = [
            self._tried("alone", FIRST, (task,), setting)
            for setting in self.grid[1 : self.plan.tune]
            for task in best
        ]
        self.others += self._train(ALONE, self._capped(runs, self.left))

    def _settings(self) -> list[Tried]:
        tried = {one.setting for one in self.shared}
        rest = [setting for setting in self.grid[: self.plan.tune] if setting not in tried]
        return [self._tried("shared", FIRST, None, setting) for setting in rest]

    def _groups(self) -> list[Tried]:
        """Return models of the groups that the first run's watch proposes."""
        affinity = affinity_of(self.shared[0].job.folder, WATCH)
        if len(affinity.missing()) == len(self.tasks) * (len(self.tasks) - 1):
            return []  # no update held two tasks
        setting = self._hard().setting
        found: dict[tuple[str, ...], None] = {}
        for proposed in proposals(affinity, max(GROUPS))[1:]:
            for group in proposed.groups:
                if 1 < len(group) < len(self.tasks):
                    found.setdefault(tuple(group))
        return [self._tried("group", FIRST, group, setting) for group in found]

    def _methods(self) -> list[Tried]:
        """Return models of all tasks by other methods, as far as they fit the suite."""
        found = []
        for text in self.plan.methods:
            try:
                found.append(self._tried("shared", text, None, self._hard().setting))
            except PolytaskError as error:  # such as an architecture that needs other inputs
                self.failed[text] = str(error)
        return found

    # What is known so far.

    @property
    def everything(self) -> list[Tried]:
        return [*self.shared, *self.started.values(), *self.alone.values(), *self.others]

    @property
    def spent(self) -> float:
        return sum(one.spent for one in self.everything)

    @property
    def alone_work(self) -> float:
        """What one run of every task alone takes: known, or as many epochs as the shared run's."""
        total = 0.0
        for task in self.tasks.names:
            one = self.alone.get(task)
            if one is not None and one.done:
                total += one.spent
            else:
                total += self.work_of(FIRST, (task,)) * self.epochs
        return total

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.budget * self.alone_work - self.spent

    def _affordable(self, runs: Sequence[Tried], epochs: int | None, left: float) -> list[Tried]:
        """Return the runs, in order, that fit into what is left; a dear one is passed over.

        epochs: expected of each; None: from where it rests to where it is to rest.
        """
        taken = []
        for one in runs:
            more = epochs if epochs is not None else (one.job.until or 0) - one.epochs
            cost = one.work * more
            if cost <= left:
                left -= cost
                taken.append(one)
        return taken

    def _capped(self, runs: Sequence[Tried], left: float) -> list[Tried]:
        """Return the runs that fit into what is left, none longer than its part of it."""
        taken = self._affordable(runs, self.epochs, left)
        spare = left - sum(one.work for one in taken) * self.epochs
        capped = []
        for one in taken:
            most = self.epochs + int(spare / len(taken) / one.work)
            capped.append(replace(one, job=replace(one.job, until=min(most, self.config.epochs))))
        return capped

    def work_of(self, recipe: str, tasks: tuple[str, ...] | None) -> float:
        """Return the work of an epoch."""
        if (recipe, tasks) not in self._work:
            job = Job(self.plan.suite, tasks, recipe, self.config, self.plan.out)
            self._work[recipe, tasks] = work_of_epoch(job)
        return self._work[recipe, tasks]

    def _by_risk(self) -> list[str]:
        """Return the tasks, those that the others help least first."""
        affinity = affinity_of(self.shared[0].job.folder, WATCH)
        values_TT = affinity.values_TT.clone()
        values_TT.fill_diagonal_(math.nan)
        helped_T = values_TT.nanmean(0).nan_to_num(-math.inf).tolist()
        help_of = dict(zip(affinity.tasks, helped_T, strict=True))
        return sorted(self.tasks.names, key=lambda task: help_of[task])

    def _lead(self, task: str) -> float:
        """Return by how much % the task alone leads the shared models at the same epoch."""
        one = self.alone[task]
        return self._gain(task, self._reached(one, task), self._ever(task, one.epochs))

    def _ever(self, task: str, epochs: int | None = None) -> float:
        """Return the best any shared model reached, in so many epochs."""
        reached = [
            self._reached(one, task, epochs)
            for one in self.shared
            if one.tasks is None or task in one.tasks
        ]
        return self._better(task, reached)

    def _reached(self, one: Tried, task: str, epochs: int | None = None) -> float:
        metric = self.tasks.named(task).primary.name
        return self._better(task, (point.val[task][metric] for point in one.points[:epochs]))

    def _better(self, task: str, values: Iterable[float]) -> float:
        known = [value for value in values if math.isfinite(value)]
        best = max if self.tasks.named(task).primary.direction == "max" else min
        return best(known) if known else math.nan

    def _gain(self, task: str, value: float, than: float) -> float:
        """Return by how much % better; what has no value never is."""
        metric = self.tasks.named(task).primary
        if math.isnan(value) or math.isnan(than):
            return -math.inf if math.isnan(value) else math.inf
        gain = metric.gain(value, than)
        return gain if not math.isnan(gain) else 100.0 * (metric.better(value, than) - 0.5)

    def settled(self, task: str) -> str:
        """Return how far a task's race has come, in words."""
        one = self.alone.get(task)
        if one is None:
            return "not alone"
        if one.done:
            return "to its end"
        return "behind" if self._lead(task) < 0 else "unfinished"

    def best(self, runs: Sequence[Tried]) -> Tried:
        """Return the model of all tasks with the best mean gain over the first one's scores."""
        whole = [one for one in runs if one.tasks is None]
        return max(whole, key=self.score)

    def score(self, one: Tried) -> float:
        score = delta_m(self.tasks, self._primary(one.record()), self.reference)
        return -math.inf if math.isnan(score) else score

    def _hard(self) -> Tried:
        """Return the best model of all tasks whose encoder is shared whole."""
        return self.best([one for one in self.shared if one.job.recipe == FIRST])

    def _primary(self, record: Record) -> dict[str, float]:
        return {t.name: record.best.val[t.name][t.primary.name] for t in self.tasks}

    # Training.

    def _tried(
        self,
        how: How,
        recipe: str,
        tasks: tuple[str, ...] | None,
        setting: Setting,
        *,
        watches: tuple[str, ...] = (),
        start: Tried | None = None,
    ) -> Tried:
        lr, weight_decay = setting
        who = recipe if tasks is None else f"{recipe}--{'+'.join(tasks)}"
        if len(who) > 80:  # more tasks than a file's name holds
            named = hashlib.sha256("\n".join(tasks or ()).encode()).hexdigest()[:12]
            who = f"{recipe}--{len(tasks or ())}-tasks-{named}"
        name = f"{how.replace(' ', '-')}--{file_name(who)}--lr{lr:.3g}-wd{weight_decay:g}"
        reference = None
        if self.shared and (tasks is None or len(tasks) > 1):
            reference = {task: self.reference[task] for task in tasks or self.tasks.names}
        job = Job(
            suite=self.plan.suite,
            tasks=tasks,
            recipe=recipe,
            config=replace(self.config, lr=lr, weight_decay=weight_decay),
            folder=self.plan.out / "runs" / name,
            reference=reference,
            label=SINGLE if how == "alone" else how,
            watches=watches,
            start=None if start is None else start.job.folder,
        )
        return Tried(name, how, job, self.work_of(recipe, tasks))

    def _train(self, phase: int, runs: Sequence[Tried]) -> list[Tried]:
        """Train them as far as they are to go; return those that did not fail."""
        self._call(phase, "train", runs)
        return [one for one in runs if one.name not in self.failed]

    def _call(self, phase: int, verb: Literal["train", "look"], runs: Sequence[Tried]) -> None:
        self._counts[phase] += len(runs)
        self.show.begin(self._counts)
        named = {one.job.folder: one for one in runs}
        calls = []
        for one in runs:
            trouble = one.job.folder / DIVERGED
            if trouble.exists():
                self.failed[one.name] = str(read_json(trouble)["text"])
                self.show.done(phase, one.job, False)
            else:
                calls.append(Call(verb, one.job, phase))

        def done(call: Call) -> Iterator[Call]:
            self.show.done(call.phase, call.job, True)
            return iter(())

        def failed(call: Call, error: PolytaskError) -> Iterator[Call]:
            one = named[call.job.folder]
            first = one.how == "shared" and not self.shared
            if isinstance(error, Died) or (first and not isinstance(error, Diverged)):
                raise error
            self.failed[one.name] = str(error)
            if isinstance(error, Diverged):
                write_json(call.job.folder / DIVERGED, {"text": str(error)})
            self.show.done(call.phase, call.job, True)
            return iter(())

        self.pool.run(
            calls,
            lambda call, step, steps, losses: self.show.step(
                call.phase, call.job, step, steps, losses
            ),
            done,
            failed,
        )
