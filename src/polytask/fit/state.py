"""What changes while a run trains, apart from tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from polytask.records import Point, Probe


@dataclass
class State:
    """What changes while a run trains; the JSON part of a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    waited: float = 0.0
    peak_memory: int = 0
    stale: int = 0
    best: int | None = None
    points: list[Point] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    best_per_task: dict[str, tuple[int, float]] = field(default_factory=dict)
    stopped: str = ""
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> State:
        """Return the state that `records.to_json` wrote; null numbers are NaN."""
        parsed: dict[str, Any] = {
            "points": [Point.from_json(point) for point in raw["points"]],
            "probes": [Probe.from_json(probe) for probe in raw["probes"]],
            "best_per_task": {
                task: (int(step), math.nan if value is None else float(value))
                for task, (step, value) in raw["best_per_task"].items()
            },
        }
        return cls(**{**raw, **parsed})
