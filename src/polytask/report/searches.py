"""What a search came to, as the page and the terminal show it: what `polytask auto` found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.report import words
from polytask.report.curves import digits
from polytask.report.found import Found

SEARCHED = "auto.json"


class Searched(Found):
    """A folder that `polytask auto` left behind."""


def read_searched(folder: Path) -> Searched:
    """Return what lies in `folder`; a RunError says what is wrong with its file."""
    return Searched.read(folder / SEARCHED, searched_block, "what a search found", "auto")


def searched_block(made: Searched, label: str) -> dict[str, Any]:
    """Return all that the page shows of it, as JSON types."""
    raw = made.found
    tasks = list(raw["tasks"])
    if not tasks:
        raise ValueError("no task")
    share = raw["seconds"] / raw["alone_seconds"] if raw["alone_seconds"] else None
    return {
        "kind": "auto",
        "label": label,
        "title": f"{raw['title']}: what serves each task",
        "suite": raw["suite"],
        "verdict": _verdict(raw, share),
        "best": None,
        "created": raw["created"],
        "command": raw["command"],
        "versions": dict(raw["versions"]),
        "seeds": [int(raw["seed"])],
        "tasks": [
            {key: task[key] for key in ("name", "kind", "metric", "direction", "unit")}
            for task in tasks
        ],
        "methods": [],
        "served": [_task(task) for task in tasks],
        "tried": [_run(run) for run in raw["tried"]],
        "failed_runs": {str(name): str(why) for name, why in raw["failed"].items()},
    }


def worse_than_alone(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tasks whose model alone is better on validation than what serves them, beyond
    the 95 % interval of the difference."""
    return [task["name"] for task in tasks if task["alone"].get("better")]


def hows_in_words(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return how tasks are served, "a model of all tasks", with counts where there are several."""
    counts = Counter(str(task["by"]) for task in tasks)
    if len(tasks) == 1:
        return next(iter(counts))
    return words.listing([f"{n} by {how}" for how, n in counts.most_common()])


def alone_in_words(task: Mapping[str, Any]) -> str:
    """Return how far a task trained alone, and how that compares."""
    alone = task["alone"]
    race, epochs = alone["race"], alone.get("epochs")
    if race == "not alone":
        return "not from the start"
    if race == "behind":
        return f"behind the shared models after {_counted(epochs, 'epoch')}"
    over = alone["over_served"]
    gain = over["gain"]
    said = "the same" if not gain else f"{gain:+.1f} %"
    if gain and over["error"] is not None:
        said += f" ± {over['error']:.1f}"
    until = "to its end" if race == "to its end" else f"{_counted(epochs, 'epoch')} alone"
    return f"{until}: {said}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verdict(raw: Mapping[str, Any], share: float | None) -> list[str]:
    tasks, models = raw["tasks"], int(raw["models"])
    ended = sum(task["alone"]["race"] == "to its end" for task in tasks)
    worse = worse_than_alone(tasks)
    first = f"{len(tasks)} tasks are served by {_counted(models, 'model')}: {hows_in_words(tasks)}."
    second = (
        f"{words.listing(worse)}: worse than alone beyond the 95 % interval on validation."
        if worse
        else f"Also trained alone to the end: {_counted(ended, 'task')}; none is worse than alone "
        "beyond its 95 % interval on validation."
    )
    cost = "" if share is None else f"{share:.2f} of what every task alone takes by time, "
    third = (
        f"{len(raw['tried'])} runs cost {cost}{raw['work']:.2f} by arithmetic "
        f"(budget {raw['budget']:g})."
    )
    return [first, second, third]


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    over = task["over_shared"]
    return {
        "name": task["name"],
        "metric": task["metric"],
        "how": task["by"],
        "run": task["run"],
        "validation": digits(task["validation"]),
        "shared": digits(task["shared"]["validation"]),
        "gain": digits(over["gain"]),
        "error": digits(over["error"]),
        "alone": alone_in_words(task),
        "test": digits(task["test"][task["metric"]]),
    }


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    names = list(run["tasks"])
    return {
        "name": run["name"],
        "how": run["how"],
        "recipe": run["recipe"],
        "tasks": names,
        "setting": f"lr {run['lr']:.3g}, decay {run['weight_decay']:g}",
        "epochs": int(run["epochs"]),
        "stopped": str(run["stopped"]),
        "work": digits(run["work"]),
        "seconds": digits(run["seconds"]),
        "delta_m": digits(run["delta_m"]),
        "default": bool(run["default"]),
    }
