"""Read run folders: `result.json` of a comparison, `record.json` of one training, `merge.json` of
merges, `relate.json` of a relation of tasks, `auto.json` of a search.

This is the edge where files of unknown origin arrive: what passes here has the right shape, so the
rest of the room trusts it. A number that is null in the file is None here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.errors import RunError
from polytask.records import Record, read_json
from polytask.report.relations import FILE, Related, read_related
from polytask.report.searches import SEARCHED, Searched, read_searched

if TYPE_CHECKING:
    from polytask.merge import MergeRecord

Number = float | None
Interval = tuple[float, float] | None

SINGLE = "single"
"""The name of the single-task models among the methods of a comparison."""

VERDICTS = ("gained", "lost", "undecided", "reference")


@dataclass(frozen=True)
class TaskInfo:
    """What the page says about a task. direction: "max" or "min", of its primary metric."""

    name: str
    kind: str
    metric: str
    direction: str
    unit: str


@dataclass(frozen=True)
class Outcome:
    """One method on one task. values, gains: per seed; gain, interval: in % of the single model."""

    values: tuple[Number, ...]
    gains: tuple[Number, ...]
    gain: Number
    interval: Interval
    verdict: str
    why: str | None


@dataclass(frozen=True)
class Spent:
    """What a method cost. The ratios are against all single-task models together (memory: the
    largest of them); peak_memory in bytes."""

    seconds: Number
    steps: Number
    parameters: Number
    peak_memory: Number
    seconds_ratio: Number
    parameters_ratio: Number
    memory_ratio: Number


@dataclass(frozen=True)
class MethodResult:
    """A method's row. runs: per seed, the folders of its trainings by task; the key "*" is a
    training of all tasks. counts: tasks per verdict; gained_adjusted and lost_adjusted, where the
    file has them, are those that hold when all tasks are tested together. left_out: tasks whose
    gain is undefined, and which the mean gain therefore leaves out. engine: how the tasks'
    gradients were formed. notes: what the method used in place of what its source asks, and in how
    many updates of all seeds together."""

    name: str
    outcomes: dict[str, Outcome]
    delta_m: Number
    interval: Interval
    worst: tuple[str, Number] | None
    counts: dict[str, int]
    cost: Spent
    runs: dict[str, dict[str, Path]]
    source: str
    left_out: tuple[str, ...]
    engine: str
    notes: dict[str, int]


@dataclass(frozen=True)
class Compared:
    """A folder that `polytask compare` left behind. rows: per split and stream.
    level: of the intervals, 0.95 for 95 %; None where the file does not say. failed: methods that
    stopped with an error, and why."""

    folder: Path
    suite: str
    title: str
    about: dict[str, str]
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    command: str
    created: str
    rows: dict[str, dict[str, int]]
    level: Number
    versions: dict[str, str]
    tasks: tuple[TaskInfo, ...]
    tuning: dict[str, Any]
    methods: tuple[MethodResult, ...]
    failed: dict[str, str]

    def joint(self) -> Iterator[MethodResult]:
        """Yield the methods that train one model for all tasks."""
        return (method for method in self.methods if method.name != SINGLE)


@dataclass(frozen=True)
class Fitted:
    """A folder that one training left behind."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Blended:
    """A folder with a record of merges."""

    folder: Path
    record: MergeRecord


Run = Compared | Fitted | Blended | Related | Searched


def read_folder(folder: Path) -> Run:
    """Return what `folder` holds, or raise a RunError that says what it lacks."""
    if not folder.is_dir():
        raise RunError(
            f"{folder} is not a folder; give the folder of a run, as `compare` names it."
        )
    if (folder / "result.json").exists():
        return read_result(folder)
    if (folder / "record.json").exists():
        return Fitted(folder, Record.load(folder / "record.json"))
    if (folder / "merge.json").exists():
        from polytask.merge import MergeRecord  # brings torch, which the other pages do without

        return Blended(folder, MergeRecord.load(folder))
    if (folder / FILE).exists():
        return read_related(folder)
    if (folder / SEARCHED).exists():
        return read_searched(folder)
    raise RunError(
        f"{folder} holds none of result.json (a comparison), record.json (one training), "
        f"{SEARCHED} (a search), merge.json (merges) and {FILE} (a relation of tasks); an "
        "unfinished run has none yet: give the same command again to finish it."
    )


def read_result(folder: Path) -> Compared:
    """Return the comparison in `folder`; a RunError names the part of result.json that is wrong."""
    path = folder / "result.json"
    raw = read_json(path)
    try:
        tasks = tuple(_task(item) for item in raw["tasks"])
        if not tasks:
            raise ValueError("no task")
        return Compared(
            folder=folder,
            suite=_text(raw["suite"]),
            title=_text(raw.get("title") or raw["suite"]),
            about={key: _text(value) for key, value in (raw.get("about") or {}).items() if value},
            notes=tuple(_text(note) for note in raw.get("notes") or ()),
            seeds=tuple(int(seed) for seed in raw["seeds"]),
            command=_text(raw.get("command") or ""),
            created=_text(raw.get("created") or ""),
            rows={
                split: {stream: int(size) for stream, size in streams.items()}
                for split, streams in (raw.get("rows") or {}).items()
            },
            level=_number(raw.get("level")),
            versions={key: _text(value) for key, value in (raw.get("versions") or {}).items()},
            tasks=tasks,
            tuning=_tuning(raw.get("tuning") or {}),
            methods=tuple(
                _method(folder, name, item, [task.name for task in tasks])
                for name, item in raw["methods"].items()
            ),
            failed={name: _text(why) for name, why in (raw.get("failed") or {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is not the result of a comparison ({what}); "
            "give the `polytask compare` command again to rewrite it."
        ) from error


def _task(raw: dict[str, Any]) -> TaskInfo:
    if raw["direction"] not in ("max", "min"):
        raise ValueError(f"direction {raw['direction']!r} of a task is neither max nor min")
    return TaskInfo(
        name=_text(raw["name"]),
        kind=_text(raw["kind"]),
        metric=_text(raw["metric"]),
        direction=raw["direction"],
        unit=_text(raw.get("unit") or ""),
    )


def _tuning(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "grid": [dict(setting) for setting in raw.get("grid") or ()],
        "rule": _text(raw.get("rule") or ""),
        "stopping": _text(raw.get("stopping") or ""),
        "picked": {
            method: {task: dict(setting) for task, setting in picks.items()}
            for method, picks in (raw.get("picked") or {}).items()
        },
        "stopped": [_text(text) for text in raw.get("stopped") or ()],
    }


def _method(folder: Path, name: str, raw: dict[str, Any], tasks: list[str]) -> MethodResult:
    missing = [task for task in tasks if task not in raw["tasks"]]
    if missing:
        raise ValueError(f"method {name!r} lacks the task {missing[0]!r}")
    worst, cost = raw.get("worst"), raw["cost"]
    counts = raw.get("counts") or {}
    return MethodResult(
        name=name,
        outcomes={task: _outcome(raw["tasks"][task]) for task in tasks},
        delta_m=_number(raw.get("delta_m")),
        interval=_interval(raw.get("delta_m_interval")),
        worst=(_text(worst["task"]), _number(worst["gain"])) if worst else None,
        counts={
            **dict.fromkeys(VERDICTS[:3], 0),
            **{key: int(number) for key, number in counts.items()},
        },
        cost=Spent(**{key: _number(cost.get(key)) for key in Spent.__dataclass_fields__}),
        runs=_runs(folder, raw.get("runs") or {}, per_task=name == SINGLE),
        source=_text(raw.get("source") or ""),
        left_out=tuple(_text(task) for task in raw.get("left_out") or ()),
        engine=_text(raw.get("engine") or ""),
        notes={_text(note): int(count) for note, count in (raw.get("notes") or {}).items()},
    )


def _outcome(raw: dict[str, Any]) -> Outcome:
    if raw["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {raw['verdict']!r} is none of {', '.join(VERDICTS)}")
    return Outcome(
        values=tuple(_number(value) for value in raw["values"]),
        gains=tuple(_number(value) for value in raw.get("gains") or ()),
        gain=_number(raw.get("gain")),
        interval=_interval(raw.get("interval")),
        verdict=raw["verdict"],
        why=_text(raw["why"]) if raw.get("why") else None,
    )


def _runs(folder: Path, raw: dict[str, Any], *, per_task: bool) -> dict[str, dict[str, Path]]:
    by_task = raw if per_task else {"*": raw}
    runs: dict[str, dict[str, Path]] = {}
    for task, by_seed in by_task.items():
        for seed, name in by_seed.items():
            run = folder / name
            if not run.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"the run {name!r} lies outside the folder")
            runs.setdefault(str(seed), {})[task] = run
    return runs


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _number(value: Any) -> Number:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value) if math.isfinite(value) else None


def _interval(value: Any) -> Interval:
    if value is None:
        return None
    low, high = (_number(end) for end in value)
    return None if low is None or high is None else (low, high)
