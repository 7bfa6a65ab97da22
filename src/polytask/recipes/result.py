"""A comparison's result, from what its final runs left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from polytask.evaluate import LEVEL, MethodResult, cost, judge, reference, why
from polytask.fit import RECORD
from polytask.parsing import parse
from polytask.recipes.plan import AUTO, SINGLE, Model, Plan, Setting
from polytask.recipes.train import Job, test
from polytask.records import Cost, Record, to_json, together
from polytask.suites import SPLITS, Suite

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

OF_TWO_KINDS = (
    " What trains the pretrained encoder's own weights, the single-task models among them, tries "
    "other learning rates than adapters."
)


@dataclass(frozen=True)
class Finals:
    """The final runs of a comparison and how each model came to its setting.

    jobs: per model and seed. stopped: why settings that were tried could not be trained to the end.
    failed: why methods are left out.
    """

    plan: Plan
    suite: Suite
    grid: tuple[Setting, ...]
    seeds: tuple[int, ...]
    jobs: Mapping[tuple[Model, int], Job]
    picked: Mapping[Model, Setting]
    stopped: Sequence[str]
    failed: Mapping[str, str]


def result(finals: Finals, searches: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the result as plain JSON types: what `compare --json` prints.

    searches: what `auto` found, by seed, if it was asked for. Reads the records and, through
    `test`, the scores on the test split.
    """
    return to_json(_Result(finals, searches).json())  # type: ignore[no-any-return]


class _Result:
    """Records and test scores of all final runs, and what follows from them."""

    def __init__(self, finals: Finals, searches: Sequence[Mapping[str, Any]]) -> None:
        self.finals, self.searches = finals, searches
        self.tasks = finals.suite.tasks
        self.records = {who: Record.load(job.folder / RECORD) for who, job in finals.jobs.items()}
        self.tests = {who: test(job) for who, job in finals.jobs.items()}
        self.singles: list[Model] = [(SINGLE, name) for name in self.tasks.names]
        self.single = {name: self._scores((SINGLE, name), name) for name in self.tasks.names}
        self.single_cost = cost([self._costs(who) for who in self.singles])

    def json(self) -> dict[str, Any]:
        plan, suite = self.finals.plan, self.finals.suite
        return {
            "suite": suite.name,
            "title": suite.about.title,
            "about": asdict(suite.about),
            "notes": list(suite.notes),
            "seeds": list(self.finals.seeds),
            "level": LEVEL,
            "command": plan.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": together(record.versions for record in self.records.values()),
            "rows": {split: {s.name: len(s) for s in suite.split(split)} for split in SPLITS},
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind.name,
                    "metric": task.primary.name,
                    "direction": task.primary.direction,
                    "unit": task.primary.unit,
                }
                for task in self.tasks
            ],
            "tuning": self._tuning(),
            "settings": asdict(plan.config),
            "methods": {
                SINGLE: self._of_singles(),
                **{m: self._of(m) for m in plan.methods if m not in self.finals.failed},
            },
            "failed": dict(self.finals.failed),
        }

    def _tuning(self) -> dict[str, Any]:
        finals, config = self.finals, self.finals.plan.config
        picked: dict[str, dict[str, dict[str, float]]] = {}
        for (method, task), (lr, weight_decay) in finals.picked.items():
            entry = {"lr": lr, "weight_decay": weight_decay}
            picked.setdefault(method, {})[task or "*"] = entry
        return {
            "grid": [{"lr": lr, "weight_decay": wd} for lr, wd in finals.grid],
            "rule": RULE.format(count=finals.plan.tune, seed=finals.seeds[0])
            + (OF_TWO_KINDS if finals.suite.pretrained else ""),
            "stopping": STOPPING.format(
                epochs=config.epochs, steps=config.min_epoch_steps, patience=config.patience
            ),
            "picked": picked,
            "stopped": list(finals.stopped),
        }

    def _of_singles(self) -> dict[str, Any]:
        return {
            **_judged(reference(self.tasks, self.single, cost=self.single_cost)),
            "runs": {task: self._folders((SINGLE, task)) for task in self.tasks.names},
            "source": "one model per task, the reference",
            "all_metrics": {t: self._all_metrics((SINGLE, t), t) for t in self.tasks.names},
        }

    def _of(self, method: str) -> dict[str, Any]:
        return self._of_searches() if method == AUTO else self._of_method(method)

    def _of_searches(self) -> dict[str, Any]:
        """Return what `auto` came to: its cost is that of all it tried."""
        seeds = dict(zip(self.finals.seeds, self.searches, strict=True))
        of_task = {
            task.name: {
                seed: next(one for one in found["tasks"] if one["name"] == task.name)
                for seed, found in seeds.items()
            }
            for task in self.tasks
        }
        spent = [Cost(**found["cost"]) for found in self.searches]
        judged = judge(
            self.tasks,
            self.single,
            {
                task.name: {
                    seed: one["test"][task.primary.name] for seed, one in of_task[task.name].items()
                }
                for task in self.tasks
            },
            why={name: _served(by_seed) for name, by_seed in of_task.items()},
            cost=cost([spent], self.single_cost),
        )
        return {
            **_judged(judged),
            "runs": {},
            "source": "polytask auto: the cost is that of all it tried, with each seed anew",
            "engine": "",
            "notes": {},
            "all_metrics": {
                name: [one["test"] for one in by_seed.values()] for name, by_seed in of_task.items()
            },
            "searches": [_of_search(found) for found in self.searches],
        }

    def _of_method(self, method: str) -> dict[str, Any]:
        who: Model = (method, None)
        reasons = {
            task.name: why(self._records(who), self._records((SINGLE, task.name)), task)
            for task in self.tasks
        }
        judged = judge(
            self.tasks,
            self.single,
            {name: self._scores(who, name) for name in self.tasks.names},
            why=reasons,
            cost=cost([self._costs(who)], self.single_cost),
        )
        return {
            **_judged(judged),
            "runs": self._folders(who),
            "source": "; ".join(row.source for row in parse(method).named),
            "engine": self._records(who)[0].engine,
            "notes": self._notes(who),
            "all_metrics": {name: self._all_metrics(who, name) for name in self.tasks.names},
        }

    def _scores(self, who: Model, task: str) -> dict[int, float | None]:
        metric = self.tasks.named(task).primary.name
        return {seed: self.tests[who, seed][task][metric] for seed in self.finals.seeds}

    def _all_metrics(self, who: Model, task: str) -> list[dict[str, float | None]]:
        return [self.tests[who, seed][task] for seed in self.finals.seeds]

    def _records(self, who: Model) -> list[Record]:
        return [self.records[who, seed] for seed in self.finals.seeds]

    def _notes(self, who: Model) -> dict[str, int]:
        """Return what the method used in place of what its source asks: updates, over all seeds."""
        counts: Counter[str] = Counter()
        for record in self._records(who):
            counts.update(record.notes)
        return dict(counts)

    def _costs(self, who: Model) -> list[Cost]:
        return [record.cost for record in self._records(who)]

    def _folders(self, who: Model) -> dict[str, str]:
        return {
            str(seed): self.finals.jobs[who, seed]
            .folder.relative_to(self.finals.plan.out)
            .as_posix()
            for seed in self.finals.seeds
        }


def _of_search(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table needs of a search: what it cost, and how its tasks are served."""
    tasks = found["tasks"]
    return {
        **{key: found[key] for key in ("budget", "models", "work", "seconds", "alone_seconds")},
        "hows": dict(Counter(task["how"] for task in tasks)),
        "ended_alone": sum(task["alone"]["race"] == "to its end" for task in tasks),
        "worse_than_alone": [task["name"] for task in tasks if task["alone"].get("better")],
    }


def _served(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    """Return in words what served a task in each search."""
    said: dict[str, list[str]] = {}
    for seed, one in by_seed.items():
        said.setdefault(one["by"], []).append(str(seed))
    parts = [f"{how} (seed {', '.join(seeds)})" for how, seeds in said.items()]
    return f"Served by {'; '.join(parts)}."


def _judged(found: MethodResult) -> dict[str, Any]:
    made: dict[str, Any] = to_json(found)
    gain = found.tasks[found.worst].gain if found.worst is not None else None
    made["worst"] = None if found.worst is None else {"task": found.worst, "gain": gain}
    return made
