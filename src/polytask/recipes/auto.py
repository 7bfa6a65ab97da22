"""`auto`: which tasks to train together and how, within a budget, so that none loses by it.

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

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from polytask.errors import Diverged, PolytaskError, RunError, UsageError
from polytask.evaluate import delta_m
from polytask.fit import FitConfig, Meters, affinity_of
from polytask.lock import alone as nobody_else
from polytask.mix import steps_per_epoch
from polytask.parsing import parse
from polytask.recipes.compare import DIVERGED, Show, identity_of
from polytask.recipes.plan import GRID, SINGLE, Setting
from polytask.recipes.relating import proposals
from polytask.recipes.served import Candidate, Choice, Part, Served, choose_all, compared
from polytask.recipes.train import Job, load_suite, record_of, validated
from polytask.recipes.work import work_of_row
from polytask.recipes.workers import Call, Died, Pool
from polytask.records import Record, claim, file_name, read_json, to_json, write_json
from polytask.suites import Suite
from polytask.tasks import Task

AUTO = "auto"
"""Its name among the methods of `compare`, and of its folder there."""

FOUND = "auto.json"
"""The result's name in its folder."""

FIRST = "equal"
"""How the first model of all tasks trains: hard sharing, equal weights."""

METHODS = ("cross-stitch", "mmoe", "dsmtl", "uncertainty")
"""What else is tried where the budget lasts, in this order, unless methods are named."""

WATCH = "gradient-cosine"
"""How the tasks' relation is seen: on the suites of the library it settled most pairs."""

MANY = 8
"""From so many tasks on, a model of all costs little beside one for each."""

GROUPS = (2, 3)
"""Budgets of models for which groups are proposed."""

RUNG = 3
"""Tasks first train alone for this part of the epochs that the first shared model took."""

FROM = 3
"""Going on from shared weights: the learning rate, and the epochs expected, are this part."""

FROM_PATIENCE = 2
"""Epochs without a better score after which such a run stops."""

SNAPSHOTS = 2**30
"""A shared run keeps every task's own best weights where they take no more bytes than this."""

How = Literal["shared", "group", "alone", "from shared"]

PHASES = ("tasks alone", "models of all tasks, and groups", "tasks from shared weights", "choice")
"""What a person is told of; as many as `compare` has."""

ALONE, SHARED, STARTED, LOOKS = range(len(PHASES))


def usual_budget(tasks: int) -> float:
    """Return what `auto` may cost against one run of every task alone: 0.5 of many tasks, else 2.

    A model of two tasks costs half of what both cost alone, so little is to be saved there.
    """
    return 0.5 if tasks >= MANY else 2.0


@dataclass(frozen=True)
class AutoPlan:
    """What `auto` is asked for.

    suite: a name, or the path of a file that declares one. budget: what all training together may
    cost, in runs of every task alone; None: see `usual_budget`. The first model of all tasks is
    trained whatever it costs. methods: recipes to try beside hard sharing with equal weights.
    tune: settings of `GRID` to try. config: of each run, its seed included; lr and weight_decay
    are not used, and patience is at most a fifth of the epochs. processes, threads: as of `Plan`.
    """

    suite: str
    budget: float | None = None
    methods: tuple[str, ...] = METHODS
    tune: int = 3
    config: FitConfig = field(default_factory=FitConfig)
    out: Path = Path("runs")
    processes: int = 1
    threads: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise UsageError(
                f"auto: budget is {self.budget}; give a number > 0, such as 0.5 for half of what "
                "training every task alone costs."
            )
        if not 1 <= self.tune <= len(GRID):
            raise UsageError(f"auto: tune is {self.tune}; give 1 to {len(GRID)} settings.")
        for text in self.methods:
            parse(text)

    @property
    def trained(self) -> FitConfig:
        """How every run trains: it stops sooner than a run that a table of results is made of."""
        fifth = max(2, self.config.epochs // 5)
        patience = min(self.config.patience or fifth, fifth)
        return replace(self.config, patience=patience, probes=0)


def auto(plan: AutoPlan, show: Show) -> dict[str, Any]:
    """Search, choose, test, and return the result, which is also `auto.json` in the plan's folder.

    A folder of the same plan is taken up. `load_auto` builds the models it chose. Raises UsageError
    where the suite has a single task, RunError where every setting of the first model diverges.
    """
    suite = load_suite(plan.suite)
    if len(suite.tasks) < 2:
        raise UsageError(
            f"Suite {suite.name!r} has one task, so there is nothing to share; train it with "
            f"`polytask fit {plan.suite}`."
        )
    with nobody_else(plan.out):
        asked = {"tune": plan.tune, "methods": list(plan.methods), "seed": plan.config.seed}
        budget = plan.budget if plan.budget is not None else usual_budget(len(suite.tasks))
        identity = {**identity_of(suite, plan.config), **asked, "budget": budget}
        claim(plan.out / "searching.json", identity, "search")
        if (plan.out / FOUND).exists():
            return read_json(plan.out / FOUND)  # type: ignore[no-any-return]
        with Pool(plan.processes, plan.threads) as pool:
            found = to_json(_Search(plan, suite, budget, show, pool).found())
        write_json(plan.out / FOUND, found)
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Tried:
    """A run of the search. name: of its folder."""

    name: str
    how: How
    job: Job
    work: float
    """Of a row, see `work_of_row`."""

    @property
    def tasks(self) -> tuple[str, ...] | None:
        return self.job.tasks

    def record(self) -> Record:
        return record_of(self.job.folder)

    @property
    def spent(self) -> float:
        return self.work * (self.record().cost.rows or 0)

    @property
    def epochs(self) -> int:
        return len(self.record().points)

    @property
    def done(self) -> bool:
        """Whether it trained to its end, rather than rests."""
        return bool(self.record().stopped)


class _Search:
    """One search in progress: what was tried, what it cost, and what comes next."""

    def __init__(self, plan: AutoPlan, suite: Suite, budget: float, show: Show, pool: Pool) -> None:
        self.plan, self.suite, self.budget, self.show, self.pool = plan, suite, budget, show, pool
        self.tasks = suite.tasks
        self.config = plan.trained
        self.shared: list[Tried] = []  # groups too
        self.alone: dict[str, Tried] = {}
        self.others: list[Tried] = []  # of one task, beside those in `alone`
        self.failed: dict[str, str] = {}
        self._counts = [0] * len(PHASES)
        self._work: dict[tuple[str, tuple[str, ...] | None], float] = {}

    def found(self) -> dict[str, Any]:
        """Search and return what `auto` returns."""
        self._first()
        self._share(self._settings(), self.left / 2)
        self._from_shared()
        self._race(self._held_back())
        self._share(self._methods(), self.left)
        self._share(self._groups(), self.left)
        self._race([task for task in self._by_risk() if task not in self.alone])
        self._alone_otherwise()
        return self._result()

    # What is trained, in order.

    def _first(self) -> None:
        """Train the first model of all tasks, watched; another setting where one diverges."""
        for setting in GRID[: self.plan.tune]:
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
        self.shared += self._train(SHARED, self._affordable(runs, self.epochs, left))

    def _from_shared(self) -> None:
        """Let every task go on alone from the best model of all tasks, those at risk first."""
        self.source = self._best([one for one in self.shared if self._whole(one)])
        lr, weight_decay = self.source.job.config.lr, self.source.job.config.weight_decay
        setting = lr / FROM, weight_decay
        runs = [
            self._tried("from shared", FIRST, (task,), setting, start=self.source)
            for task in self._by_risk()
        ]
        expected = min(math.ceil(self.epochs / FROM), FROM_PATIENCE + 2)
        runs = self._affordable(runs, expected, self.left)
        self.others += self._train(STARTED, runs)

    def _held_back(self) -> list[str]:
        """Return the tasks that did better alone from the shared weights, the surest first."""
        runs = [one for one in self.others if one.how == "from shared"]
        self._call(LOOKS, "look", [self.source, *runs])
        shared = {c.task: c for c in reversed(Candidate.all_of("", self.source.job))}
        sure: dict[str, float] = {}
        for run in runs:
            (one,) = Candidate.all_of(run.name, run.job)
            gain, error = compared(self.tasks.named(one.task), one, shared[one.task])
            if gain > error:
                sure[one.task] = gain / error if error else math.inf
        return sorted(sure, key=lambda task: -sure[task])

    def _race(self, tasks: Sequence[str]) -> None:
        """Train tasks alone; those that lead the shared models go on, twice as far each time."""
        new = [self._tried("alone", FIRST, (task,), GRID[0]) for task in tasks]
        rung = math.ceil(self.epochs / RUNG)
        runs = [
            replace(one, job=replace(one.job, until=rung))
            for one in self._affordable(new, self.epochs, self.left)
        ]
        while runs:
            self._go_on(runs)
            ahead = sorted(self._racing(), key=lambda task: -self._lead(task))
            runs = [
                replace(one, job=replace(one.job, until=2 * one.epochs))
                for one in (self.alone[task] for task in ahead)
            ]
            runs = self._affordable(runs, None, self.left)

    def _go_on(self, runs: Sequence[Tried]) -> None:
        """Train tasks alone as far as they are to go; one that fails is out of the race."""
        for one in self._train(ALONE, runs):
            self.alone[one.job.tasks[0]] = one  # type: ignore[index]  # of one task
        self.alone = {task: one for task, one in self.alone.items() if one.name not in self.failed}

    def _alone_otherwise(self) -> None:
        """Try other settings for the tasks that are best alone."""
        best = [
            task
            for task, one in self.alone.items()
            if one.done and self._gain(task, self._reached(one, task), self._ever(task)) >= 0
        ]
        runs = [
            self._tried("alone", FIRST, (task,), setting)
            for setting in GRID[1 : self.plan.tune]
            for task in best
        ]
        self.others += self._train(ALONE, self._affordable(runs, self.epochs, self.left))

    def _settings(self) -> list[Tried]:
        rest = [s for s in GRID[: self.plan.tune] if s not in self._settings_of(self.shared)]
        return [self._tried("shared", FIRST, None, setting) for setting in rest]

    def _groups(self) -> list[Tried]:
        """Return models of the groups that the first run's watch proposes."""
        affinity = affinity_of(self.shared[0].job.folder, WATCH)
        if len(affinity.missing()) == len(self.tasks) * (len(self.tasks) - 1):
            return []  # no update held two tasks
        setting = self._setting()
        found: dict[tuple[str, ...], None] = {}
        for proposed in proposals(affinity, max(GROUPS))[1:]:
            for group in proposed.groups:
                if 1 < len(group) < len(self.tasks):
                    found.setdefault(tuple(group))
        return [self._tried("group", FIRST, group, setting) for group in found]

    def _methods(self) -> list[Tried]:
        setting = self._setting()
        return [self._tried("shared", text, None, setting) for text in self.plan.methods]

    # What is known so far.

    @property
    def everything(self) -> list[Tried]:
        return [*self.shared, *self.alone.values(), *self.others]

    @property
    def _spent(self) -> float:
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
                total += self._expected(self._work_of(FIRST, (task,)), (task,), self.epochs)
        return total

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.budget * self.alone_work - self._spent

    def _affordable(
        self, runs: Sequence[Tried], epochs: int | None, left: float
    ) -> list[Tried]:
        """Return the runs, in order, that fit into what is left; a dear one is passed over.

        epochs: expected of each; None: from where it rests to where it is to rest.
        """
        taken = []
        for one in runs:
            more = epochs if epochs is not None else (one.job.until or 0) - one.epochs
            cost = self._expected(one.work, one.tasks, more)
            if cost <= left:
                left -= cost
                taken.append(one)
        return taken

    def _expected(self, work: float, tasks: tuple[str, ...] | None, epochs: int) -> float:
        suite = self.suite if tasks is None else self.suite.only(tasks)
        return work * epochs * rows_of_epoch(suite, self.config)

    def _work_of(self, recipe: str, tasks: tuple[str, ...] | None) -> float:
        if (recipe, tasks) not in self._work:
            job = Job(self.plan.suite, tasks, recipe, self.config, self.plan.out)
            self._work[recipe, tasks] = work_of_row(job)
        return self._work[recipe, tasks]

    def _by_risk(self) -> list[str]:
        """Return the tasks, those that the others help least first."""
        affinity = affinity_of(self.shared[0].job.folder, WATCH)
        values_TT = affinity.values_TT.clone()
        values_TT.fill_diagonal_(math.nan)
        helped_T = values_TT.nanmean(0).nan_to_num(-math.inf).tolist()
        help_of = dict(zip(affinity.tasks, helped_T, strict=True))
        return sorted(self.tasks.names, key=lambda task: help_of[task])

    def _racing(self) -> list[str]:
        """Return the tasks that train alone and are not settled."""
        return [task for task, one in self.alone.items() if not one.done and self._lead(task) >= 0]

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
        points = one.record().points[:epochs]
        return self._better(task, (point.val[task][metric] for point in points))

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

    def _settled(self, task: str) -> str:
        """Return how far a task's race has come, in words."""
        one = self.alone.get(task)
        if one is None:
            return "not alone"
        if one.done:
            return "to its end"
        return "behind" if self._lead(task) < 0 else "unfinished"

    def _best(self, runs: Sequence[Tried]) -> Tried:
        """Return the model of all tasks with the best mean gain over the first one's scores."""
        whole = [one for one in runs if one.tasks is None]
        return max(whole, key=self._score)

    def _score(self, one: Tried) -> float:
        score = delta_m(self.tasks, self._primary(one.record()), self.reference)
        return -math.inf if math.isnan(score) else score

    def _whole(self, one: Tried) -> bool:
        return one.job.recipe == FIRST

    def _setting(self) -> Setting:
        config = self._best([one for one in self.shared if self._whole(one)]).job.config
        return config.lr, config.weight_decay

    def _settings_of(self, runs: Sequence[Tried]) -> set[Setting]:
        return {(one.job.config.lr, one.job.config.weight_decay) for one in runs}

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
        if len(who) > 80:  # of many tasks; the number tells them apart
            who = f"{recipe}--{len(tasks or ())}-tasks-{sum(s.how == 'group' for s in self.shared)}"
        name = f"{how.replace(' ', '-')}--{file_name(who)}--lr{lr:.3g}-wd{weight_decay:g}"
        several = tasks is None or len(tasks) > 1
        size = len(tasks or self.tasks.names)
        config = replace(self.config, lr=lr, weight_decay=weight_decay)
        if start is not None:
            config = replace(config, patience=FROM_PATIENCE)
        reference = None
        if several and self.shared:
            reference = {task: self.reference[task] for task in tasks or self.tasks.names}
        job = Job(
            suite=self.plan.suite,
            tasks=tasks,
            recipe=recipe,
            config=replace(config, per_task_best=several and self._keeps(size)),
            folder=self.plan.out / "runs" / name,
            reference=reference,
            label=SINGLE if how == "alone" else how,
            watches=watches,
            start=None if start is None else start.job.folder,
        )
        return Tried(name, how, job, self._work_of(recipe, tasks))

    def _keeps(self, tasks: int) -> bool:
        """Return whether every task's own best weights have room; all models are about as large."""
        encoder = self.suite.encoder()
        return 4 * sum(p.numel() for p in encoder.parameters()) * tasks <= SNAPSHOTS

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

    # The choice.

    def _result(self) -> dict[str, Any]:
        runs = self.everything
        self._call(LOOKS, "look", runs)
        default = self._best(self.shared)
        choices = choose_all(
            self.tasks,
            Candidate.all_of(default.name, default.job),
            [found for one in runs for found in Candidate.all_of(one.name, one.job)],
            {one.name for one in runs if one.how == "alone"},
        )
        served = Served.of({task: choice.taken.part for task, choice in choices.items()})
        test = validated(served, self.suite.test, Meters(self.tasks), self.config)
        alone_seconds = self._alone_seconds()
        seconds = sum(one.record().cost.seconds for one in runs)
        return {
            "kind": AUTO,
            "suite": self.suite.name,
            "title": self.suite.about.title,
            "seed": self.config.seed,
            "command": self.plan.command,
            "budget": self.budget,
            "work": self._spent / self.alone_work,
            "seconds": seconds,
            "alone_seconds": alone_seconds,
            "models": served.models,
            "parameters": served.parameter_count,
            "peak_memory": max((one.record().cost.peak_memory or 0) for one in runs) or None,
            "steps": sum(one.record().cost.steps for one in runs),
            "tasks": [self._of_task(task.name, choices[task.name], test) for task in self.tasks],
            "tried": [self._of_run(one, default) for one in runs],
            "failed": self.failed,
            "versions": default.record().versions,
        }

    def _alone_seconds(self) -> float:
        """Return how long one run of every task alone takes: known, or by what is known of it."""
        known = {task: one.record().cost.seconds for task, one in self.alone.items()}
        first = self.shared[0]
        pace = first.record().cost.seconds / first.spent
        if known:
            pace = sum(known.values()) / sum(self.alone[task].spent for task in known)
        total = 0.0
        for task in self.tasks.names:
            one = self.alone.get(task)
            if one is not None:
                more = 1.0 if one.done else self.epochs / one.epochs
                total += known[task] * max(1.0, more)
            else:
                work = self._work_of(FIRST, (task,))
                total += pace * self._expected(work, (task,), self.epochs)
        return total

    def _of_task(
        self, name: str, choice: Choice, test: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        task, taken = self.tasks.named(name), choice.taken
        by = next(one for one in self.everything if one.name == taken.run)
        return {
            "name": name,
            "kind": task.kind.name,
            "metric": task.primary.name,
            "direction": task.primary.direction,
            "unit": task.primary.unit,
            "run": taken.run,
            "how": by.how,
            "own_weights": taken.part.own is not None,
            "part": taken.part.to_json(self.plan.out),
            "validation": taken.value,
            "shared": {"validation": choice.default.value},
            "over_shared": {"gain": choice.gain, "error": choice.error},
            "alone": self._of_alone(task, taken),
            "test": test[name],
        }

    def _of_alone(self, task: Task, taken: Candidate) -> dict[str, Any]:
        """Return how far the task trained alone, and what it reached against what serves it."""
        found: dict[str, Any] = {"race": self._settled(task.name)}
        runs = [one for one in self.everything if one.how == "alone" and one.tasks == (task.name,)]
        ends = [one for run in runs for one in Candidate.all_of(run.name, run.job)]
        if not ends:
            return found
        best = ends[0]
        for one in ends[1:]:
            best = one if task.primary.better(one.value, best.value) else best
        gain, error = compared(task, best, taken)
        return {
            **found,
            "epochs": max(run.epochs for run in runs),
            "validation": best.value,
            "over_served": {"gain": gain, "error": error},
        }

    def _of_run(self, one: Tried, default: Tried) -> dict[str, Any]:
        record, config = one.record(), one.job.config
        return {
            "name": one.name,
            "how": one.how,
            "recipe": one.job.recipe,
            "tasks": list(one.tasks or self.tasks.names),
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "epochs": len(record.points),
            "stopped": record.stopped or "dropped",
            "seconds": record.cost.seconds,
            "work": one.spent / self.alone_work,
            "delta_m": self._score(one) if one.tasks is None else None,
            "default": one is default,
        }


def rows_of_epoch(suite: Suite, config: FitConfig) -> float:
    """Return the rows that an epoch's updates take, see `FitConfig.epochs`."""
    sizes = {stream.name: len(stream) for stream in suite.train}
    steps = steps_per_epoch(sizes, config.batch_size)
    return sum(sizes.values()) / steps * max(steps, config.min_epoch_steps)


def load_auto(folder: Path) -> Served:
    """Return the models that the search in `folder` chose, as one; see `Served`.

    Raises RunError where the folder holds no finished search.
    """
    found = read_json(folder / FOUND)
    try:
        parts = {
            task["name"]: Part.from_json(task["part"], folder) for task in found["tasks"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / FOUND} is not the result of a search ({type(error).__name__}: {error}); "
            "give the `polytask auto` command again."
        ) from error
    return Served.of(parts)
