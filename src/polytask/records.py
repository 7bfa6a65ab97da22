"""The frozen record of a run, and the only way files are written: whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask import __version__
from polytask.errors import RunError

Values = dict[str, float]
"""A number per task, or per metric."""


@dataclass(frozen=True)
class Point:
    """One validation: what was known of a run at one step.

    train: mean training loss per task since the last point (tasks not seen are left out).
    val: per task, each metric's value. weights: mean weight per task since the last point.
    score: what the best checkpoint is chosen by (up is better), in % where it is a delta-m.
    """

    step: int
    epoch: int
    seconds: float
    train: Values
    val: dict[str, Values]
    weights: Values
    score: float

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Point:
        """Return the point that `to_json` wrote; null numbers are NaN."""
        numbers: dict[str, Any] = {
            "train": _values(raw["train"]),
            "val": {task: _values(metrics) for task, metrics in raw["val"].items()},
            "weights": _values(raw["weights"]),
            "score": _number(raw["score"]),
        }
        return cls(**{**raw, **numbers})


@dataclass(frozen=True)
class Probe:
    """Gradients of the tasks in the shared parameters at one step, on one training batch.

    cosines: T x T in the order of the record's tasks; None where a task was absent or its
        gradient is 0. norms: one per task.
    """

    step: int
    cosines: tuple[tuple[float | None, ...], ...]
    norms: tuple[float | None, ...]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Probe:
        """Return the probe that `to_json` wrote."""
        return cls(raw["step"], tuple(map(tuple, raw["cosines"])), tuple(raw["norms"]))


@dataclass(frozen=True)
class GateUse:
    """What one reader took from the experts of one level.

    level: from 0. reader: a task, or None for the shared part of the level. experts: their
    names; owners: of each, the task whose own it is, or None. mean: weight of each, averaged over
    rows. entropy: of a row's weights, averaged over rows, in nats: 0 takes one expert per row,
    log(E) all alike. rows: how many were averaged.
    """

    level: int
    reader: str | None
    experts: tuple[str, ...]
    owners: tuple[str | None, ...]
    mean: tuple[float, ...]
    entropy: float
    rows: int

    @property
    def own(self) -> float | None:
        """The weight of the reader's own experts together; None where it has none."""
        if self.reader is None:
            return None
        mine = [w for w, owner in zip(self.mean, self.owners, strict=True) if owner == self.reader]
        return sum(mine) if mine else None

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> GateUse:
        """Return the use that `to_json` wrote; null numbers are NaN."""
        lists = {name: tuple(raw[name]) for name in ("experts", "owners")}
        mean = tuple(map(_number, raw["mean"]))
        return cls(**{**raw, **lists, "mean": mean, "entropy": _number(raw["entropy"])})


@dataclass(frozen=True)
class Cost:
    """What a run cost. seconds: training alone, validation apart. peak_memory: bytes an update
    needs (see `fit.cost.Memory`), None where not known. waiting: share of the training time spent
    waiting for data."""

    seconds: float
    validation_seconds: float
    steps: int
    parameters: int
    shared_parameters: int
    peak_memory: int | None
    waiting: float
    trained: int | None = None


@dataclass(frozen=True)
class Record:
    """What one training with one seed left behind.

    best: the point whose weights were kept. best_per_task: per task, the step of its own best
    point and that value of its primary metric on the validation split.
    stopped: "epochs" (ran out of them) or "patience"; "" of a run that rests, see `fit`.
    notes: what the balance method used in place of what its source asks, and in how many updates.
    experts: what each task took from the model's experts on validation rows, with the best weights;
    empty for models without any. warnings: what deserves a look there, in plain words.
    """

    suite: str
    method: str
    tasks: tuple[str, ...]
    seed: int
    settings: dict[str, Any]
    points: tuple[Point, ...]
    probes: tuple[Probe, ...]
    best: Point
    best_per_task: dict[str, tuple[int, float]]
    stopped: str
    cost: Cost
    engine: str
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    experts: tuple[GateUse, ...] = ()
    warnings: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write the record as JSON, atomically. Raises RunError where it cannot be written."""
        write_json(path, to_json(self))

    @classmethod
    def load(cls, path: Path) -> Record:
        """Return the record that `save` wrote: numbers that were NaN or infinite are NaN.

        Raises RunError where the file is missing, broken, or something else.
        """
        raw = read_json(path)
        try:
            points = tuple(Point.from_json(p) for p in raw.pop("points"))
            probes = tuple(Probe.from_json(p) for p in raw.pop("probes"))
            best = Point.from_json(raw.pop("best"))
            per_task = {k: (int(s), _number(v)) for k, (s, v) in raw.pop("best_per_task").items()}
            cost = Cost(**raw.pop("cost"))
            experts = tuple(map(GateUse.from_json, raw.pop("experts", ())))
            return cls(
                points=points,
                probes=probes,
                best=best,
                best_per_task=per_task,
                cost=cost,
                tasks=tuple(raw.pop("tasks")),
                experts=experts,
                warnings=tuple(raw.pop("warnings", ())),
                **raw,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{path} is not a record of a run ({type(error).__name__}: {error}); "
                "delete it and run again."
            ) from error


def versions() -> dict[str, str]:
    """Return what a result depends on: versions of Python, polytask, torch and numpy."""
    import numpy as np
    import torch

    return {
        "python": platform.python_version(),
        "polytask": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def together(every: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the versions that several runs were made with, such as "2.11.0, 2.13.0" for torch."""
    found: dict[str, set[str]] = {}
    for versions in every:
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(each)) for name, each in found.items()}


def to_json(value: Any) -> Any:
    """Return `value` as plain JSON types. NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _values(raw: dict[str, Any]) -> Values:
    return {name: _number(value) for name, value in raw.items()}


def file_name(name: str) -> str:
    """Return `name` as a file's name for any system: letters, digits, dot, - and _ stay as they
    are, anything else is written as %XX."""
    return "".join(
        c
        if c.isascii() and (c.isalnum() or c in "-_.")
        else "".join(f"%{b:02X}" for b in c.encode())
        for c in name
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name per path: its last part, the whole path where that is not unique."""
    names = [path.resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON on one line, atomically: indented, 139 tasks take ten times as long."""
    text = json.dumps(to_json(value), allow_nan=False) + "\n"
    write_atomic(path, text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file, or raise a RunError that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} is missing; is {path.parent} the folder of a run?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}.") from error


def claim(path: Path, identity: dict[str, Any], what: str) -> None:
    """Mark the folder of `path` as that of `identity`; raise RunError where it is another's.

    identity: plain JSON types; the error names the first entry that differs, also inside a dict.
    what: "run" or "comparison", for the error.
    """
    if not path.exists():
        write_json(path, identity)
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunError(
            f"{path} does not describe a {what}; give another folder, or delete that file."
        )
    expected, came = _flat(identity), _flat(found)
    for key in expected | came:
        mine, other = expected.get(key), came.get(key)
        if other != mine:
            raise RunError(
                f"{path.parent} holds another {what}: its {key} is {_short(other)}, this one's is "
                f"{_short(mine)}. Give another folder, or delete that one."
            )


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the same with each entry of an inner dict named on its own."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` under `path`: the file is the old one or the new one, never half of it.

    Of several writers at once the last one wins. Raises RunError where it cannot be written.
    """
    # A name of its own for every writer: threads share a process id, and machines that share
    # a disk may too.
    part = path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:  # Ctrl-C too must leave nothing behind
        with contextlib.suppress(OSError):  # there may be no such folder; the first error counts
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or choose another folder with --out."
        ) from error
