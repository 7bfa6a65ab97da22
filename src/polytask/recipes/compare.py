"""The main job: every task alone, one model for all tasks by each method, and what each gained.

Fair or worthless: every method and every single-task model tries the same grid of settings on the
validation split with the first seed, stops by the same rule, and is scored once on the test split
with the setting it picked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from polytask.errors import Diverged, PolytaskError, RunError, UsageError
from polytask.fit import RECORD
from polytask.lock import alone
from polytask.recipes.adapting import grid_for
from polytask.recipes.auto import auto
from polytask.recipes.plan import AUTO, GRID, SINGLE, AutoPlan, Model, Plan, Setting
from polytask.recipes.result import Finals, result
from polytask.recipes.runs import DIVERGED, Show, identity_of
from polytask.recipes.train import TEST, Job, load_suite
from polytask.recipes.workers import Call, Died, Pool
from polytask.records import Record, Values, claim, file_name, read_json, write_json
from polytask.suites import Suite

PHASES = ("single-task models: tuning", "methods: tuning", "other seeds", "test split")
"""What a comparison does, in this order where something has to wait."""

TUNE_SINGLE, TUNE_JOINT, SEEDS, TESTS = range(len(PHASES))

RESULT = "result.json"


def compare(plan: Plan, show: Show) -> dict[str, Any]:
    """Train, judge, and return the result, which is also `result.json` in the plan's folder.

    A folder of the same comparison is taken up: finished runs are not trained again, and methods
    or seeds can be added. Another comparison's folder raises RunError, and so does one that another
    command is working in.

    A method that stops with an error (a loss it is not defined for, divergence under every setting)
    is left out; its reason is the result's `failed[method]`, and the other methods go on. An error
    of a single-task model ends all, since every gain is against those.
    """
    suite = load_suite(plan.suite)
    with alone(plan.out):
        claim(
            plan.out / "compare.json",
            {**identity_of(suite, plan.config), "tune": plan.tune},
            "comparison",
        )
        runs = _Runs(plan, suite, show)
        found = result(runs.finals(), runs.searches)
        write_json(plan.out / RESULT, found)
    return found


class _Runs:
    """The runs of one comparison: which there are, what waits for what, what each model picked."""

    def __init__(self, plan: Plan, suite: Suite, show: Show) -> None:
        self.plan, self.suite, self.show = plan, suite, show
        self.tasks = suite.tasks
        self.seeds = tuple(range(plan.seeds))
        self.singles: list[Model] = [(SINGLE, name) for name in self.tasks.names]
        self.joint: list[Model] = [(name, None) for name in plan.methods if name != AUTO]
        self.grids = {who: self._grid(who) for who in [*self.singles, *self.joint]}
        self.untuned = dict.fromkeys(self.grids, plan.tune)
        self.picked: dict[Model, Setting] = {}
        self.stopped: dict[Model, dict[Setting, str]] = {}
        self.failed: dict[Model, str] = {}
        self.reference: dict[str, float] | None = None
        self.searches: list[dict[str, Any]] = []
        """What `auto` found, by seed; none where it is not asked for, or failed."""

    def finals(self) -> Finals:
        """Train and test whatever the folder lacks; return the final runs."""
        models, others = len(self.untuned), len(self.seeds) - 1
        tuning = [len(self.singles) * self.plan.tune, len(self.joint) * self.plan.tune]
        counts = [*tuning, models * others, models * len(self.seeds)]
        self.show.begin(counts)
        with Pool(self.plan.processes, self.plan.threads) as pool:
            calls = list(self._tune(self.singles, TUNE_SINGLE))
            pool.run(calls, self._step, self._after, self._failed)
        if AUTO in self.plan.methods:
            self._search(counts)
        everyone = [who for who in [*self.singles, *self.joint] if who not in self.failed]
        return Finals(
            plan=self.plan,
            suite=self.suite,
            grid=tuple(dict.fromkeys(setting for of in self.grids.values() for setting in of)),
            seeds=self.seeds,
            jobs={
                (who, seed): self._job(who, seed, self.picked[who])
                for who in everyone
                for seed in self.seeds
            },
            picked={who: self.picked[who] for who in everyone},
            stopped=[
                texts[setting]
                for who, texts in sorted(self.stopped.items(), key=lambda item: str(item[0]))
                for setting in self.grids[who]
                if setting in texts
            ],
            failed={
                name: self.failed[name, None]
                for name in self.plan.methods
                if (name, None) in self.failed
            },
        )

    def _search(self, counts: list[int]) -> None:
        """Let `auto` search with every seed, by the settings that all others try."""
        plan, within = self.plan, _Within(self.show, counts)
        for seed in self.seeds:
            search = AutoPlan(
                suite=plan.suite,
                tune=plan.tune,
                config=replace(plan.config, seed=seed),
                out=plan.out / AUTO / f"s{seed}",
                processes=plan.processes,
                threads=plan.threads,
            )
            try:
                self.searches.append(auto(search, within))
            except Died:
                raise
            except PolytaskError as error:
                self.failed[AUTO, None] = str(error)
                self.searches.clear()
                return
            within.next()

    def _tune(self, models: Sequence[Model], phase: int) -> Iterator[Call]:
        for turn in range(self.plan.tune):
            for who in models:
                yield from self._unless_done(
                    Call("train", self._job(who, self.seeds[0], self.grids[who][turn]), phase)
                )

    def _unless_done(self, call: Call) -> Iterator[Call]:
        """Yield the call, or, where its end is known already, what comes after it."""
        folder = call.job.folder
        if (folder / (RECORD if call.verb == "train" else TEST)).exists():
            yield from self._after(call, fresh=False)
        elif call.verb == "train" and (folder / DIVERGED).exists():
            yield from self._stopped(call, str(read_json(folder / DIVERGED)["text"]), fresh=False)
        else:
            yield call

    def _step(self, call: Call, step: int, steps: int, losses: Values) -> None:
        self.show.step(call.phase, call.job, step, steps, losses)

    def _after(self, call: Call, fresh: bool = True) -> Iterator[Call]:
        """Yield what can be done now that `call` is: nothing waits for more than it needs."""
        self.show.done(call.phase, call.job, fresh)
        if call.phase == SEEDS:
            yield from self._unless_done(Call("test", call.job, TESTS))
        if call.phase not in (TUNE_SINGLE, TUNE_JOINT):
            return
        who = _model(call.job)
        self.untuned[who] -= 1
        if self.untuned[who]:
            return
        if len(self.stopped.get(who, ())) == self.plan.tune:
            self._lose(call.job, self._none_left(who), [0, 0, len(self.seeds) - 1, len(self.seeds)])
            return
        self._pick(who)
        for seed in self.seeds:
            job = self._job(who, seed, self.picked[who])
            tuned = seed == self.seeds[0]  # trained while tuning
            yield from self._unless_done(
                Call("test", job, TESTS) if tuned else Call("train", job, SEEDS)
            )
        if call.phase == TUNE_SINGLE and not any(self.untuned[single] for single in self.singles):
            self.reference = {
                task.name: self._record((SINGLE, task.name), self.seeds[0]).best.val[task.name][
                    task.primary.name
                ]
                for task in self.tasks
            }
            yield from self._tune(self.joint, TUNE_JOINT)

    def _failed(self, call: Call, error: PolytaskError) -> Iterator[Call]:
        """Go on without what a method could not do; what nothing can go on without is raised."""
        # A process that was killed says nothing about the method: the same command takes it up.
        if isinstance(error, Died):
            raise error
        diverged = isinstance(error, Diverged)
        if _model(call.job)[0] == SINGLE and not (diverged and call.phase == TUNE_SINGLE):
            raise error
        if diverged:
            write_json(call.job.folder / DIVERGED, {"text": str(error)})
        yield from self._stopped(call, str(error))

    def _stopped(self, call: Call, reason: str, fresh: bool = True) -> Iterator[Call]:
        """Count a setting that stops as tried and never picked; a final run loses the method."""
        if call.phase in (TUNE_SINGLE, TUNE_JOINT):
            job = call.job
            setting = job.config.lr, job.config.weight_decay
            self.stopped.setdefault(_model(job), {})[setting] = reason
            self.show.failed(job, reason, [0] * len(PHASES))
            yield from self._after(call, fresh)
            return
        dropped = [0] * len(PHASES)
        dropped[call.phase] += 1
        if call.phase == SEEDS:
            dropped[TESTS] += 1
        self._lose(call.job, reason, dropped)

    def _lose(self, job: Job, reason: str, dropped: Sequence[int]) -> None:
        """Leave the model out of the result; a single-task model is the others' reference."""
        who = _model(job)
        if who[0] == SINGLE:
            raise RunError(reason)
        self.failed.setdefault(who, reason)
        self.show.failed(job, reason, dropped)

    def _none_left(self, who: Model) -> str:
        first = self.stopped[who][self.grids[who][0]]
        return f"Every setting tried stops with an error, so none can be picked. The first: {first}"

    def _job(self, who: Model, seed: int, setting: Setting) -> Job:
        method, task = who
        lr, weight_decay = setting
        name = f"{method}--{task}" if task is not None else method
        folder = f"{file_name(name)}--lr{lr:g}-wd{weight_decay:g}--s{seed}"
        return Job(
            suite=self.plan.suite,
            tasks=None if task is None else (task,),
            recipe="equal" if task is not None else method,
            config=replace(self.plan.config, lr=lr, weight_decay=weight_decay, seed=seed),
            folder=self.plan.out / "runs" / folder,
            reference=None if task is not None else self.reference,
            label=method,
        )

    def _grid(self, who: Model) -> tuple[Setting, ...]:
        """Return the settings that a model tries, the likeliest first."""
        method, task = who
        grid, tune = grid_for(self.suite, "equal" if task is not None else method), self.plan.tune
        grid = GRID if grid is None else grid
        if tune > len(grid):
            raise UsageError(
                f"tune is {tune}; suite {self.suite.name!r} has {len(grid)} settings to try."
            )
        return grid[:tune]

    def _pick(self, who: Model) -> None:
        """Choose the setting of the best validation score, with the first seed."""
        ranked: dict[Setting, float] = {}
        for setting in self.grids[who]:
            if setting in self.stopped.get(who, ()):
                continue
            score = Record.load(self._job(who, self.seeds[0], setting).folder / RECORD).best.score
            # A score that is not a number wins over nothing but a run that stopped.
            ranked[setting] = -math.inf if math.isnan(score) else score
        # Among equals the first in the grid, the likeliest, is taken.
        self.picked[who] = max(ranked, key=lambda setting: ranked[setting])

    def _record(self, who: Model, seed: int) -> Record:
        return Record.load(self._job(who, seed, self.picked[who]).folder / RECORD)


class _Within:
    """Tells of the runs of a search as of those of one more method that is tuned."""

    def __init__(self, show: Show, counts: Sequence[int]) -> None:
        self._show, self._counts = show, [*counts]
        self._now = 0

    def begin(self, runs: Sequence[int]) -> None:
        self._now = sum(runs)
        counts = [*self._counts]
        counts[TUNE_JOINT] += self._now
        self._show.begin(counts)

    def next(self) -> None:
        """Count from here on: another search begins."""
        self._counts[TUNE_JOINT] += self._now
        self._now = 0

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Values) -> None:
        self._show.step(TUNE_JOINT, job, step, steps, losses)

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        self._show.done(TUNE_JOINT, job, fresh)

    def failed(self, job: Job, reason: str, dropped: Sequence[int]) -> None:
        self._show.failed(job, reason, dropped)


def _model(job: Job) -> Model:
    return job.label, None if job.tasks is None else job.tasks[0]
