"""What a person sees while a run trains: a bar with losses and the time left, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from polytask.records import Point, Values


class Progress(Protocol):
    """Told of every update and every validation; must be cheap."""

    def begin(self, steps: int, done: int) -> None:
        """A run of at most `steps` updates starts, `done` of them in an earlier process."""

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        """Update number `step` is done; `losses()` returns the mean losses, at some cost."""

    def point(self, point: Point) -> None:
        """A validation is done."""


class Silent:
    """Shows nothing."""

    def begin(self, steps: int, done: int) -> None:
        """Show nothing."""

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        """Show nothing."""

    def point(self, point: Point) -> None:
        """Show nothing."""


class Log:
    """Plain lines on standard error, where no terminal is: a validation each, not too many.

    every: seconds before the first line and between two; the last update is always told.
    """

    def __init__(self, title: str, every: float = 10.0) -> None:
        self._title, self._every = title, every
        self._steps, self._done, self._begun = 0, 0, time.monotonic()
        self._said = 0.0

    def begin(self, steps: int, done: int) -> None:
        """Remember how far there is to go."""
        self._steps, self._done, self._begun = steps, done, time.monotonic()

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        """Show nothing."""

    def point(self, point: Point) -> None:
        """Print where the run is, its score, and the time left if it does not stop early."""
        now = time.monotonic() - self._begun
        if now - self._said < self._every and point.step < self._steps:
            return
        self._said = now
        left = now / max(1, point.step - self._done) * (self._steps - point.step)
        print(
            f"{self._title}: update {point.step} of at most {self._steps}, epoch {point.epoch}, "
            f"score {point.score:.4g}, at most {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


class Bar:
    """A bar on standard error: updates, losses of the first tasks, score, time left.

    Use as a context manager; it redraws at most ten times a second.
    """

    shown_tasks = 4  # more do not fit beside a bar of 80 columns

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            # No markup: a task may be called "temperature [C]".
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
            TextColumn("{task.fields[score]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=None, losses="", score="")
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, steps: int, done: int) -> None:
        self._bar.update(self._task, total=steps, completed=done)

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        now = time.monotonic()
        if now - self._drawn < 0.1:
            return
        self._drawn = now
        values = losses()
        text = " ".join(f"{t} {v:.3g}" for t, v in list(values.items())[: self.shown_tasks])
        more = len(values) - self.shown_tasks
        self._bar.update(
            self._task, completed=step, losses=text + (f" +{more} tasks" if more > 0 else "")
        )

    def point(self, point: Point) -> None:
        self._bar.update(self._task, completed=point.step, score=f"score {point.score:.4g}")
