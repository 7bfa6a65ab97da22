"""A small suite of a person's own table, and one comparison on it that the tests share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polytask.fit import FitConfig
from polytask.recipes import Job, Plan, compare

DECLARED = """
tables:
- file: people.csv
  split: {val: 0.25, test: 0.25}
  inputs: {x: numeric, y: numeric, town: category}
  targets:
    sick: binary
    colour: multiclass
    dose: {kind: regression, unit: mg}
encoder: {width: 8, depth: 1, dropout: 0.0}
batch_size: 32
"""

CONFIG = FitConfig(epochs=2, batch_size=32, min_epoch_steps=4, probes=2)


def write_suite(folder: Path, last_dose: float = 1.5) -> Path:
    """Write 160 people and their declaration; return the declaration's path."""
    random = np.random.RandomState(0)
    x_N, y_N = random.randn(2, 160)
    lines = ["x,y,town,sick,colour,dose"]
    for x, y in zip(x_N, y_N, strict=True):
        town = "north" if y > 0 else "south"
        colour = "red" if x > 0.5 else "blue" if y > 0 else "green"
        lines.append(f"{x:.4f},{y:.4f},{town},{int(x + y > 0)},{colour},{3 * x - y:.4f}")
    lines.append(f"0.1,0.2,north,1,blue,{last_dose}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    path = folder / "people.yaml"
    path.write_text(DECLARED)
    return path


@dataclass
class Seen:
    """A Show that keeps what it is told."""

    runs: list[int] = field(default_factory=list)
    fresh: list[tuple[int, str]] = field(default_factory=list)
    kept: list[tuple[int, str]] = field(default_factory=list)
    dropped: list[tuple[str, list[int]]] = field(default_factory=list)
    on_step: Callable[[], None] | None = None

    def begin(self, runs: Any) -> None:
        self.runs = list(runs)

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Any) -> None:
        assert 0 < step <= steps
        assert set(losses) <= {"sick", "colour", "dose"}
        if self.on_step:
            self.on_step()

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        (self.fresh if fresh else self.kept).append((phase, job.folder.name))

    def failed(self, job: Job, reason: str, dropped: Any) -> None:
        assert reason
        self.dropped.append((job.label, list(dropped)))


@dataclass(frozen=True)
class Compared:
    plan: Plan
    result: dict[str, Any]
    seen: Seen


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="session")
def compared(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A comparison of two methods, two seeds and two settings. Read it; do not write there."""
    plan = Plan(
        suite=str(people),
        methods=("equal", "pcgrad"),
        seeds=2,
        tune=2,
        config=CONFIG,
        out=tmp_path_factory.mktemp("compared"),
        processes=2,
        command="polytask compare people.yaml",
    )
    seen = Seen()
    return Compared(plan, compare(plan, seen), seen)
