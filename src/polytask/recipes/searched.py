"""What a search came to: which run serves each task, what was tried, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from polytask.fit import Meters
from polytask.recipes.plan import AUTO
from polytask.recipes.search import FIRST, Search, Tried
from polytask.recipes.served import HOWS, Candidate, Choice, Served, ahead, choose, compared, sure
from polytask.recipes.train import Job, validated
from polytask.records import Cost
from polytask.tasks import Task


def searched(search: Search) -> dict[str, Any]:
    """Return the result of a search that has run, as `auto` returns it; reads the test split."""
    runs = search.everything
    default = _default(search)
    candidates = [found for one in runs for found in one.candidates()]
    choices = choose(search.tasks, default.candidates(), candidates)
    served = Served.of({task: choice.taken.job for task, choice in choices.items()})
    test = validated(served, search.suite.test, Meters(search.tasks), search.config)
    cost = _cost(search, served)
    return {
        "kind": AUTO,
        "suite": search.suite.name,
        "title": search.suite.about.title,
        "seed": search.config.seed,
        "command": search.plan.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(search.config),
        "budget": search.budget,
        "work": search.spent / search.alone_work,
        "seconds": cost.seconds,
        "alone_seconds": _alone_seconds(search),
        "models": served.models,
        "cost": cost,
        "tasks": [_of_task(search, task.name, choices[task.name], test) for task in search.tasks],
        "tried": [_of_run(search, one, default) for one in runs],
        "failed": search.failed,
        "versions": default.record().versions,
    }


def _cost(search: Search, served: Served) -> Cost:
    """Return what all that was tried cost; parameters are those of what serves the tasks."""
    costs = [one.record().cost for one in search.everything]
    memories = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
    return Cost(
        seconds=sum(cost.seconds for cost in costs),
        validation_seconds=sum(cost.validation_seconds for cost in costs),
        steps=sum(cost.steps for cost in costs),
        parameters=served.parameter_count,
        shared_parameters=sum(p.numel() for p in served.shared_parameters()),
        peak_memory=max(memories) if len(memories) == len(costs) else None,
        waiting=sum(cost.waiting * cost.seconds for cost in costs)
        / (sum(cost.seconds for cost in costs) or 1.0),
    )


def _alone_seconds(search: Search) -> float:
    """Return how long one run of every task alone takes: known, or by what is known of it."""
    known = {task: one.record().cost.seconds for task, one in search.alone.items()}
    first = search.shared[0]
    pace = first.record().cost.seconds / first.spent
    if known:
        pace = sum(known.values()) / sum(search.alone[task].spent for task in known)
    total = 0.0
    for task in search.tasks.names:
        one = search.alone.get(task)
        if one is not None:
            more = 1.0 if one.done else search.epochs / one.epochs
            total += known[task] * max(1.0, more)
        else:
            total += pace * search.work_of(FIRST, (task,)) * search.epochs
    return total


def _of_task(
    search: Search, name: str, choice: Choice, test: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    task, taken = search.tasks.named(name), choice.taken
    by = next(one for one in search.everything if one.name == taken.run)
    return {
        "name": name,
        "kind": task.kind.name,
        "metric": task.primary.name,
        "direction": task.primary.direction,
        "unit": task.primary.unit,
        "run": taken.run,
        "how": by.how,
        "by": HOWS[by.how],
        "job": _inside(search, taken.job),
        "validation": taken.value,
        "shared": {"validation": choice.default.value},
        "over_shared": {"gain": choice.gain, "error": choice.error},
        "alone": _of_alone(search, task, taken),
        "test": test[name],
    }


def _inside(search: Search, job: Job) -> dict[str, Any]:
    """Return the job as `load_auto` reads it, its folder inside the search's, which may move."""
    folder = job.folder.relative_to(search.plan.out)
    return replace(job, folder=folder, start=None).to_json()


def _default(search: Search) -> Tried:
    """Return what serves tasks unless something stands out: the first model of all, or one
    that is better by more than the error of the mean over tasks."""
    first = search.shared[0]
    leads = {
        one.name: ahead(search.tasks, one.candidates(), first.candidates())
        for one in search.shared[1:]
        if one.tasks is None
    }
    likely = [first, *(one for one in search.shared if leads.get(one.name, 0.0) > 1)]
    return search.best(likely)


def _of_alone(search: Search, task: Task, taken: Candidate) -> dict[str, Any]:
    """Return how far the task trained alone, and what it reached against what serves it."""
    found: dict[str, Any] = {"race": search.settled(task.name)}
    runs = [one for one in search.everything if one.how == "alone" and one.tasks == (task.name,)]
    ends = [one for run in runs for one in run.candidates()]
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
        "better": sure(task, best, taken),
    }


def _of_run(search: Search, one: Tried, default: Tried) -> dict[str, Any]:
    record, config = one.record(), one.job.config
    return {
        "name": one.name,
        "how": one.how,
        "recipe": one.job.recipe,
        "tasks": list(one.tasks or search.tasks.names),
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "epochs": len(record.points),
        "stopped": record.stopped or "dropped",
        "seconds": record.cost.seconds,
        "work": one.spent / search.alone_work,
        "delta_m": search.score(one) if one.tasks is None else None,
        "default": one is default,
    }
