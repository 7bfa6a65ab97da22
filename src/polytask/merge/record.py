"""What merges of one family came to, as a record that a page is made of: scores, what was learned,
and how the task vectors lie to each other.

    record = merge_record(family, {"average": mean, "adamerging": searched}, score)
    record.save("runs/merged")     # then: polytask report runs/merged

Shapes: T = tasks, N = tensors, K = parts of a tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polytask.errors import RunError, UsageError
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.maps import Maps, maps
from polytask.records import Values, read_json, to_json, versions, write_json

FILE = "merge.json"
"""The record's name in its folder."""

ENDS = ("individual", "joint", "base")
"""What merges stand between; no merge may have such a name."""

Score = Callable[[str, nn.Module], float]
"""A task and a model of it, in evaluation mode -> the task's primary metric on test data."""


@dataclass(frozen=True)
class Learned:
    """Coefficients that a search found. rows: names of tensors; none where a coefficient is for
    all tensors at once. values: per row one for each task; with parts > 1, the mean over the parts.
    """

    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    parts: int = 1

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Learned:
        """Return what `to_json` wrote; null numbers are NaN."""
        values = tuple(tuple(map(_number, row)) for row in raw["values"])
        return cls(tuple(raw["rows"]), values, int(raw["parts"]))


@dataclass(frozen=True)
class MergeResult:
    """One merge. scores: per task. losses: the search's objective, round by round. notes: as in
    `Merged`."""

    scores: Values
    coefficients: Learned | None = None
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> MergeResult:
        """Return what `to_json` wrote; null numbers are NaN."""
        learned = raw["coefficients"]
        return cls(
            scores=_values(raw["scores"]),
            coefficients=None if learned is None else Learned.from_json(learned),
            losses=tuple(map(_number, raw["losses"])),
            notes=tuple(raw["notes"]),
        )


@dataclass(frozen=True)
class Measure:
    """A task's primary metric. direction: "max" or "min"."""

    name: str
    direction: str
    unit: str


@dataclass(frozen=True)
class MergeRecord:
    """Merges of one family, against the models they were made of.

    measures: per task, in order; empty where nothing was scored. individual: score of each task's
    own model. base: of the unmerged base with each task's own heads; joint: of a model trained on
    all tasks; empty where not known. merges: by the name the page shows. maps: of the task vectors;
    None for a single task.
    """

    title: str
    measures: dict[str, Measure]
    individual: Values
    merges: dict[str, MergeResult]
    maps: Maps | None
    base: Values = field(default_factory=dict)
    joint: Values = field(default_factory=dict)
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the record into a folder, whole or not at all; return its file.

        Raises RunError where it cannot be written.
        """
        path = Path(folder) / FILE
        write_json(path, to_json(self))
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> MergeRecord:
        """Return the record that `save` wrote; numbers that were NaN or infinite are NaN.

        Raises RunError where the file is missing, broken, or something else.
        """
        path = Path(folder) / FILE
        raw = read_json(path)
        try:
            found = cls(
                title=_text(raw["title"]),
                measures={
                    task: Measure(**{key: _text(value) for key, value in measure.items()})
                    for task, measure in raw["measures"].items()
                },
                merges={n: MergeResult.from_json(one) for n, one in raw["merges"].items()},
                maps=None if raw["maps"] is None else Maps.from_json(raw["maps"]),
                created=_text(raw["created"]),
                versions={key: _text(value) for key, value in raw["versions"].items()},
                **{name: _values(raw[name]) for name in ENDS},
            )
            found.check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{path} is not a record of merges ({type(error).__name__}: {error}); "
                "make it again."
            ) from error
        return found

    def check(self) -> None:
        """Raise ValueError where parts of the record do not fit together."""
        tasks = list(self.measures)
        every = {"individual": self.individual} | {n: one.scores for n, one in self.merges.items()}
        every |= {name: ends for name in ENDS if (ends := getattr(self, name))}
        for name, scores in every.items():
            if list(scores) != tasks:
                raise ValueError(f"{name!r} has scores of {list(scores)}, not of {tasks}")
        for measure in self.measures.values():
            if measure.direction not in ("max", "min"):
                raise ValueError(f"direction {measure.direction!r} is neither max nor min")
        for one in self.merges.values():
            if (learned := one.coefficients) is not None:
                if len(learned.values) != max(1, len(learned.rows)):
                    raise ValueError(f"{len(learned.values)} rows, {len(learned.rows)} names")
                if any(len(row) != len(tasks) for row in learned.values):
                    raise ValueError(f"coefficients are not of {len(tasks)} tasks")
        if self.maps is not None:
            models = len(self.maps.labels)
            pairs = models * (models - 1) // 2
            for meeting in (self.maps.whole, *self.maps.layers):
                sizes = tuple(map(len, (meeting.norms, meeting.cosines, meeting.conflicts)))
                if sizes != (models, pairs, pairs):
                    raise ValueError(f"the maps of {meeting.name!r} are not of {models} models")


def merge_record(
    family: Family,
    merges: Mapping[str, Merged | Tensors],
    score: Score,
    *,
    joint: Mapping[str, float] | None = None,
    title: str = "Merged models",
) -> MergeRecord:
    """Return the record of merges of a family; `save` it for `polytask report`.

    merges: by the name to show; what a method with data returned, or the shared tensors alone, such
        as `merge(family.base, [...], TIES())` returns.
    score: called with a task's name and its model; returns the task's primary metric on test data.
        It is called for each task with its own model, the base with the task's heads, and every
        merge.
    joint: scores of a model trained on all tasks, where there is one.

    Raises UsageError for no merge, a name that is taken, or a joint score that is missing.
    """
    names = family.tasks.names
    taken = [name for name in merges if name in ENDS]
    if taken or not merges:
        raise UsageError(
            f"merge_record: merges is {list(merges)}; give at least one, and none by the name of "
            f"an end ({', '.join(ENDS)})."
        )
    if joint is not None and set(joint) != set(names):
        raise UsageError(f"merge_record: joint has {list(joint)}; give a score for {list(names)}.")
    found = {
        name: one if isinstance(one, Merged) else Merged(dict(one)) for name, one in merges.items()
    }

    def scores(merged: Merged) -> Values:
        return {task: float(score(task, family.build(task, merged))) for task in names}

    primary = {task.name: task.primary for task in family.tasks}
    made = MergeRecord(
        title=title,
        measures={task: Measure(m.name, m.direction, m.unit) for task, m in primary.items()},
        individual={task: float(score(task, family.hooked(task))) for task in names},
        merges={
            name: MergeResult(scores(one), _learned(family, one), one.losses, one.notes)
            for name, one in found.items()
        },
        maps=_maps(family),
        base=scores(Merged(family.base)),
        joint={} if joint is None else {task: float(joint[task]) for task in names},
        created=now(),
        versions=versions(),
    )
    made.check()
    return made


def now() -> str:
    """Return the time, as records keep it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _maps(family: Family) -> Maps | None:
    names = family.tasks.names
    if len(names) < 2:
        return None
    return maps(family.base, [family.shared(task) for task in names], labels=names)


def _learned(family: Family, merged: Merged) -> Learned | None:
    found: Tensor | None = merged.learned.get("coefficients")
    if found is None:
        return None
    parts = found.shape[2] if found.dim() > 2 else 1
    values = found.detach().double()
    rows_NT = values.mean(2) if parts > 1 else values.reshape(-1, values.shape[-1])
    rows = family.names if found.dim() > 1 else ()
    return Learned(rows, tuple(map(tuple, rows_NT.tolist())), parts)


def _values(raw: Mapping[str, Any]) -> Values:
    return {_text(task): _number(value) for task, value in raw.items()}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value
