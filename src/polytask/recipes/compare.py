"""The main job: every task alone, one model for all tasks by each method, and what each gained.

Fair or worthless: every method and every single-task model tries the same grid of settings on the
validation split with the first seed, stops by the same rule, and is scored once on the test split
with the setting it picked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from polytask.catalog import parse
from polytask.errors import Diverged, PolytaskError, RunError, UsageError
from polytask.evaluate import MethodResult, Scores, cost, judge, reference, why
from polytask.fit import RECORD, FitConfig
from polytask.recipes.train import TEST, Job, load_suite, test
from polytask.recipes.workers import Call, Pool
from polytask.records import Record, Values, file_name, read_json, to_json, versions, write_json
from polytask.suites import SPLITS, Suite

SINGLE = "single"
"""The name under which the single-task models stand beside the methods."""

RESULT = "result.json"

DIVERGED = "diverged.json"
"""In the folder of a tuning run whose loss left the finite numbers: where and why."""

METHODS = ("equal", "uncertainty", "dwa", "pcgrad", "aligned-mtl")
"""What is compared unless methods are named."""

GRID: tuple[tuple[float, float], ...] = (
    (1e-3, 1e-2),
    (3e-3, 1e-2),
    (1e-3, 3.0),
    (3e-3, 3.0),
    (3e-4, 1e-2),
    (1e-2, 1e-2),
    (3e-4, 3.0),
    (3e-3, 0.3),
)
"""Learning rate and weight decay of AdamW, the likeliest first; `tune` takes that many of them.
Decay is decoupled: an update shrinks weights by learning rate times decay, so that 0.01 hardly
acts in a short run, and 3 is what a task with few rows needs."""

STOPPING = (
    "Each run trains at most {epochs} epochs (an epoch is one pass, at least {steps} updates) and "
    "stops after {patience} epochs without a better validation score; the best weights are kept. "
    "A single task is scored by its primary metric, a model of all tasks by delta-m against the "
    "single-task models' validation scores."
)

RULE = (
    "Every method and every single-task model tries the same settings ({count}) with seed {seed} "
    "on the validation split and keeps the best one for all seeds. The test split is read once, by "
    "the final runs."
)


@dataclass(frozen=True)
class Plan:
    """What `compare` is asked for.

    suite: a name, or the path of a file that declares one. methods: recipes, see
    `catalog.parse`. seeds: how many, from 0. tune: how many settings of `GRID` each model tries.
    config: everything that is not tuned; lr, weight_decay and seed in it are not used.
    processes: runs at a time. threads: of each run; more than one makes a long run faster, and the
    last digits of a result depend on it, so it does not follow from `processes`.
    """

    suite: str
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    tune: int = 3
    config: FitConfig = field(default_factory=FitConfig)
    out: Path = Path("runs")
    processes: int = 1
    threads: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(
                f"seeds is {self.seeds}; give at least 1 (2 for intervals, 3 for useful ones)."
            )
        if not 1 <= self.tune <= len(GRID):
            raise UsageError(f"tune is {self.tune}; give 1 to {len(GRID)} settings.")
        if self.processes < 1:
            raise UsageError(f"The number of processes is {self.processes}; give at least 1.")
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}; give at least 1.")
        if not self.methods:
            raise UsageError("No method was named; give at least one. See `polytask methods`.")
        for name in self.methods:
            if name == SINGLE:
                raise UsageError("'single' is always trained; name only the methods beside it.")
            parse(name)
        if len(set(self.methods)) != len(self.methods):
            raise UsageError(f"A method is named twice in {', '.join(self.methods)}; name it once.")


PHASES = ("single-task models: tuning", "methods: tuning", "other seeds", "test split")
"""What a comparison does, in this order where something has to wait."""

TUNE_SINGLE, TUNE_JOINT, SEEDS, TESTS = range(len(PHASES))

Model = tuple[str, str | None]
"""Who is trained: (SINGLE, task) for a single-task model, (method, None) for one of all tasks."""


class Show(Protocol):
    """What a person sees meanwhile. phase: an index of `PHASES`; phases overlap."""

    def begin(self, runs: Sequence[int]) -> None:
        """The comparison has this many runs in each phase."""

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Values) -> None:
        """A run made progress: update `step` of at most `steps`."""

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        """A run is done; not fresh: it was so before this comparison was called."""


def compare(plan: Plan, show: Show) -> dict[str, Any]:
    """Train, judge, and return the result, which is also `result.json` in the plan's folder.

    A folder of the same comparison is taken up: finished runs are not trained again, and methods
    or seeds can be added. Another comparison's folder raises RunError.
    """
    suite = load_suite(plan.suite)
    _claim(plan, suite)
    runs = _Runs(plan, suite, show)
    runs.train()
    return runs.result()


class _Runs:
    """The runs of one comparison: which there are, what waits for what, what each model picked."""

    def __init__(self, plan: Plan, suite: Suite, show: Show) -> None:
        self.plan, self.suite, self.show = plan, suite, show
        self.tasks = suite.tasks
        self.grid = GRID[: plan.tune]
        self.seeds = tuple(range(plan.seeds))
        self.singles: list[Model] = [(SINGLE, name) for name in self.tasks.names]
        self.joint: list[Model] = [(name, None) for name in plan.methods]
        self.untuned = {who: len(self.grid) for who in [*self.singles, *self.joint]}
        self.picked: dict[Model, tuple[float, float]] = {}
        self.diverged: dict[Model, list[tuple[tuple[float, float], str]]] = {}
        self.reference: dict[str, float] | None = None

    def train(self) -> None:
        """Train and test whatever the folder lacks."""
        models, others = len(self.untuned), len(self.seeds) - 1
        tuning = [len(self.singles) * len(self.grid), len(self.joint) * len(self.grid)]
        self.show.begin([*tuning, models * others, models * len(self.seeds)])
        with Pool(self.plan.processes, self.plan.threads) as pool:
            calls = list(self._tune(self.singles, TUNE_SINGLE))
            pool.run(calls, self._step, self._after, self._failed)
        self.finals = {
            (who, seed): self._job(who, seed, self.picked[who])
            for who in [*self.singles, *self.joint]
            for seed in self.seeds
        }

    def _tune(self, models: Sequence[Model], phase: int) -> Iterator[Call]:
        for setting in self.grid:
            for who in models:
                yield from self._unless_done(
                    Call("train", self._job(who, self.seeds[0], setting), phase)
                )

    def _unless_done(self, call: Call) -> Iterator[Call]:
        """Yield the call, or, where its result is there already, what comes after it."""
        results = (RECORD, DIVERGED) if call.verb == "train" else (TEST,)
        if any((call.job.folder / result).exists() for result in results):
            yield from self._after(call, fresh=False)
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
        """Count a setting that diverges as tried, and never picked; any other error ends all."""
        if not isinstance(error, Diverged) or call.phase not in (TUNE_SINGLE, TUNE_JOINT):
            raise error
        write_json(call.job.folder / DIVERGED, {"text": str(error)})
        yield from self._after(call)

    def _job(self, who: Model, seed: int, setting: tuple[float, float]) -> Job:
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

    def _pick(self, who: Model) -> None:
        """Choose the setting of the best validation score, with the first seed."""
        ranked: dict[tuple[float, float], float] = {}
        for setting in self.grid:
            folder = self._job(who, self.seeds[0], setting).folder
            if (folder / DIVERGED).exists():
                text = str(read_json(folder / DIVERGED)["text"])
                self.diverged.setdefault(who, []).append((setting, text))
                continue
            score = Record.load(folder / RECORD).best.score
            # A score that is not a number wins over nothing but divergence.
            ranked[setting] = -math.inf if math.isnan(score) else score
        if not ranked:
            _, text = self.diverged[who][0]
            raise RunError(
                f"Every setting tried diverges, so no model can be picked. The first: {text}"
            )
        # Among equals the first in the grid, the likeliest, is taken.
        self.picked[who] = max(ranked, key=lambda setting: ranked[setting])

    def _record(self, who: Model, seed: int) -> Record:
        return Record.load(self._job(who, seed, self.picked[who]).folder / RECORD)

    def result(self) -> dict[str, Any]:
        plan, suite, tasks = self.plan, self.suite, self.tasks
        records = {key: Record.load(job.folder / RECORD) for key, job in self.finals.items()}
        tests = {key: test(job) for key, job in self.finals.items()}

        def score(who: Model, task: str, seed: int) -> float | None:
            return tests[who, seed][task][tasks.named(task).primary.name]

        single: Scores = {
            name: {seed: score((SINGLE, name), name, seed) for seed in self.seeds}
            for name in tasks.names
        }
        single_cost = cost(
            [[records[who, seed].cost for seed in self.seeds] for who in self.singles]
        )
        methods: dict[str, Any] = {}
        methods[SINGLE] = {
            **_method_json(reference(tasks, single, cost=single_cost)),
            "runs": {
                name: {str(s): self._relative((SINGLE, name), s) for s in self.seeds}
                for name in tasks.names
            },
            "source": "one model per task, the reference",
            "all_metrics": {
                name: [tests[(SINGLE, name), s][name] for s in self.seeds] for name in tasks.names
            },
        }
        for who in self.joint:
            method = who[0]
            of_method = {
                name: {seed: score(who, name, seed) for seed in self.seeds} for name in tasks.names
            }
            reasons = {
                task.name: why(
                    [records[who, s] for s in self.seeds],
                    [records[(SINGLE, task.name), s] for s in self.seeds],
                    task,
                )
                for task in tasks
            }
            costs = cost([[records[who, s].cost for s in self.seeds]], single_cost)
            judged = judge(tasks, single, of_method, why=reasons, cost=costs)
            recipe = parse(method)
            methods[method] = {
                **_method_json(judged),
                "runs": {str(s): self._relative(who, s) for s in self.seeds},
                "source": "; ".join(row.source for row in recipe.named),
                "engine": records[who, self.seeds[0]].engine,
                "all_metrics": {
                    name: [tests[who, s][name] for s in self.seeds] for name in tasks.names
                },
            }
        config = plan.config
        result = {
            "suite": suite.name,
            "title": suite.about.title,
            "about": asdict(suite.about),
            "notes": list(suite.notes),
            "seeds": list(self.seeds),
            "command": plan.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "rows": {split: {s.name: len(s) for s in suite.split(split)} for split in SPLITS},
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind.name,
                    "metric": task.primary.name,
                    "direction": task.primary.direction,
                    "unit": task.primary.unit,
                }
                for task in tasks
            ],
            "tuning": {
                "grid": [{"lr": lr, "weight_decay": wd} for lr, wd in self.grid],
                "rule": RULE.format(count=len(self.grid), seed=self.seeds[0]),
                "stopping": STOPPING.format(
                    epochs=config.epochs, steps=config.min_epoch_steps, patience=config.patience
                ),
                "picked": self._picked_json(),
                "diverged": [
                    text
                    for who in [*self.singles, *self.joint]
                    for _, text in self.diverged.get(who, ())
                ],
            },
            "settings": asdict(config),
            "methods": methods,
        }
        write_json(plan.out / RESULT, result)
        answer: dict[str, Any] = read_json(plan.out / RESULT)
        return answer

    def _relative(self, who: Model, seed: int) -> str:
        return self.finals[who, seed].folder.relative_to(self.plan.out).as_posix()

    def _picked_json(self) -> dict[str, dict[str, dict[str, float]]]:
        picked: dict[str, dict[str, dict[str, float]]] = {}
        for (method, task), (lr, weight_decay) in self.picked.items():
            entry = {"lr": lr, "weight_decay": weight_decay}
            picked.setdefault(method, {})[task or "*"] = entry
        return picked


def _model(job: Job) -> Model:
    return job.label, None if job.tasks is None else job.tasks[0]


def _method_json(judged: MethodResult) -> dict[str, Any]:
    made: dict[str, Any] = to_json(judged)
    gain = judged.tasks[judged.worst].gain if judged.worst is not None else None
    made["worst"] = None if judged.worst is None else {"task": judged.worst, "gain": gain}
    return made


def _claim(plan: Plan, suite: Suite) -> None:
    """Mark the folder as this comparison's, or raise RunError where it is another's."""
    config = asdict(plan.config)
    for free in ("lr", "weight_decay", "seed", "checkpoint_seconds"):
        del config[free]
    mine = to_json(
        {
            "suite": suite.name,
            "tasks": list(suite.tasks.names),
            "data": _fingerprint(suite),
            "tune": plan.tune,
            "config": config,
        }
    )
    path = plan.out / "compare.json"
    if not path.exists():
        write_json(path, mine)
        return
    found = read_json(path)
    for key, value in mine.items():
        other = found.get(key) if isinstance(found, dict) else None
        if other == value:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            key, other, value = next(
                (f"{key}.{k}", other.get(k), v) for k, v in value.items() if other.get(k) != v
            )
        raise RunError(
            f"{plan.out} holds another comparison: its {key} is {_short(other)}, this one's is "
            f"{_short(value)}. Give another folder with --out, or delete that one."
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fingerprint(suite: Suite) -> str:
    """Return a checksum of the training data, so that changed data is never mixed with old runs."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for stream in suite.split(split):
            inputs = (
                stream.inputs if isinstance(stream.inputs, Mapping) else {"inputs": stream.inputs}
            )
            for name, value in [*inputs.items(), *stream.targets.items()]:
                digest.update(f"{split}/{stream.name}/{name}/{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
