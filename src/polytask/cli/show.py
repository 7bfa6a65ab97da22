"""What a person sees in a terminal: tables and progress. Results go to standard output, progress
to standard error."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from polytask.catalog import Method
from polytask.recipes import PHASES, SINGLE, TESTS, Job
from polytask.records import Record, Values
from polytask.suites import SuiteRow

if TYPE_CHECKING:
    from polytask.evaluate import Claim

VERDICTS = {
    "gained": ("green", "▲ gained"),
    "lost": ("red", "▼ lost"),
    "undecided": ("default", "· undecided"),
    "reference": ("default", ""),
}

MOST_TASKS = 12
"""More tasks than this are not listed one by one in the terminal; the report has them all."""

MOST_METHODS = 8
"""With more methods than this, tasks are listed for the best one alone."""

MOST_REASONS = 8
"""As many of them are explained."""


def suites_table(rows: Sequence[tuple[SuiteRow, Sequence[str]]]) -> None:
    """Print the suites and what each lacks."""
    table = Table(box=None, pad_edge=False)
    for title in ("suite", "tasks", "data", "about"):
        table.add_column(title, justify="right" if title == "tasks" else "left")
    for row, missing in rows:
        data = "[green]here[/]" if not missing else f"[yellow]absent: {escape(missing[0])}[/]"
        table.add_row(row.name, str(len(row.tasks)), data, escape(row.summary))
    output().print(table)


def methods_table(rows: Sequence[Method]) -> None:
    """Print the methods and their sources."""
    table = Table(box=None, pad_edge=False)
    for title in ("method", "room", "what it does", "source"):
        table.add_column(title)
    for row in rows:
        table.add_row(row.name, row.room, escape(row.summary), escape(row.source))
    output().print(table)


class Pace:
    """How much of a comparison's training is done, and how long the rest takes at this pace.

    Single-task models and models of all tasks are timed apart: one of 139 tasks takes a hundred
    times as long as one of one. A run in progress counts by its updates; one that stops early
    makes the rest shorter than it was said to be. Reading the test split takes next to nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begun = clock, clock()
        self._runs = self._done = 0
        self._left = {True: 0.0, False: 0.0}  # by whether a model has one task alone
        self._ended = {True: 0, False: 0}
        self._took: dict[bool, list[float]] = {True: [], False: []}
        self._parts: dict[Path, tuple[bool, float, float]] = {}

    def begin(self, runs: Sequence[int]) -> None:
        single, joint, others, _ = runs
        self._runs = single + joint + others
        share = single / (single + joint) if single + joint else 0.0
        self._left = {
            True: single + others * share - self._ended[True],
            False: joint + others * (1 - share) - self._ended[False],
        }

    def step(self, job: Job, step: int, steps: int) -> None:
        _, begun, _ = self._parts.get(job.folder, (False, self._clock(), 0.0))
        self._parts[job.folder] = (_alone(job), begun, step / steps)

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        part = self._parts.pop(job.folder, None)
        if phase == TESTS:
            return
        self._done += 1
        self._ended[_alone(job)] += 1
        self._left[_alone(job)] -= 1
        if fresh:
            self._took[_alone(job)].append(self._clock() - part[1] if part else 0.0)

    def drop(self, job: Job, dropped: Sequence[int]) -> None:
        """Count runs that will not take place, `job` perhaps among them."""
        self._parts.pop(job.folder, None)
        count = sum(dropped[:TESTS])
        self._runs -= count
        self._left[_alone(job)] -= count

    def seconds(self) -> float:
        """Return the seconds since the comparison was called."""
        return self._clock() - self._begun

    def text(self) -> str:
        """Return "12 of 45 runs, about 0:01:30 left"; "over" where not all kinds were timed."""
        said = f"{self._done} of {self._runs} runs"
        now = self._clock()
        worked = sum(map(sum, self._took.values())) + sum(now - p[1] for p in self._parts.values())
        if not worked or not self.seconds() or self._done == self._runs:
            return said
        left, word = 0.0, "about"
        for kind, count in self._left.items():
            going = [(now - begun, part) for k, begun, part in self._parts.values() if k == kind]
            # What a run in progress will take, once it has shown enough of it to tell.
            whole = [*self._took[kind], *(took / part for took, part in going if part > 0.05)]
            if whole:
                mean = sum(whole) / len(whole)
                left += max(0.0, count * mean - sum(took for took, _ in going))
            elif count > 0:
                word = "over"
        at_once = max(1.0, worked / self.seconds())
        return f"{said}, {word} {duration(left / at_once)} left"


def _alone(job: Job) -> bool:
    return job.label == SINGLE


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


class Bars:
    """Progress in a terminal: a bar for each phase, and a line for each run in progress."""

    def __init__(self, title: str, phases: Sequence[str] = PHASES) -> None:
        self._names = phases
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=Console(stderr=True),
        )
        self._title = escape(title)
        self._pace = Pace()
        self._phases: list[TaskID] = []
        self._counts: list[int] = []
        self._runs: dict[Path, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self._runs.values():
            self._bars.remove_task(bar)
        self._bars.stop()

    def begin(self, runs: Sequence[int]) -> None:
        self._pace.begin(runs)
        self._counts = [*runs]
        for bar, count in zip(self._phases, runs, strict=False):  # more are wanted than were told
            self._bars.update(bar, total=count, visible=count > 0)
        for phase, count in [] if self._phases else zip(self._names, runs, strict=True):
            text = f"[bold]{self._title}[/] {phase}"
            bar = self._bars.add_task(text, total=count, note="", visible=count > 0)
            self._phases.append(bar)

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Values) -> None:
        if job.folder not in self._runs:
            name = f"  {escape(job.folder.name)}"
            self._runs[job.folder] = self._bars.add_task(name, total=steps, note="")
        text = " ".join(f"{task} {value:.3g}" for task, value in losses.items())
        self._bars.update(self._runs[job.folder], completed=step, note=escape(text))
        self._pace.step(job, step, steps)
        self._bars.update(self._phases[0], note=self._pace.text())

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        self._remove(job)
        self._bars.advance(self._phases[phase])
        self._pace.done(phase, job, fresh)
        self._bars.update(self._phases[0], note=self._pace.text())

    def failed(self, job: Job, reason: str, dropped: Sequence[int]) -> None:
        if not any(dropped):
            return  # one setting of several, counted as tried; the report names it
        self._bars.console.print(f"{escape(job.label)} failed: {escape(reason)}", style="red")
        self._remove(job)
        for phase, count in enumerate(dropped):
            self._counts[phase] -= count
            self._bars.update(self._phases[phase], total=self._counts[phase])
        self._pace.drop(job, dropped)

    def _remove(self, job: Job) -> None:
        bar = self._runs.pop(job.folder, None)
        if bar is not None:
            self._bars.remove_task(bar)


class Lines:
    """Progress where no terminal is: a line per finished phase, and one a minute between them."""

    every = 60.0
    """Seconds."""

    def __init__(self, title: str, phases: Sequence[str] = PHASES) -> None:
        self._title, self._names = title, phases
        self._pace = Pace()
        self._said = 0.0
        self._left: list[int] = []
        self._runs: list[int] = []
        self._kept: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    def begin(self, runs: Sequence[int]) -> None:
        done = [n - left for n, left in zip(self._runs, self._left, strict=True)] or [0] * len(runs)
        self._left = [n - ended for n, ended in zip(runs, done, strict=True)]
        self._runs, self._kept = [*runs], self._kept or [0 for _ in runs]
        self._pace.begin(runs)

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Values) -> None:
        self._pace.step(job, step, steps)
        if self._pace.seconds() - self._said >= self.every:
            self._say(self._pace.text())

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        self._pace.done(phase, job, fresh)
        self._left[phase] -= 1
        self._kept[phase] += not fresh
        self._end(phase)

    def failed(self, job: Job, reason: str, dropped: Sequence[int]) -> None:
        if not any(dropped):
            return  # one setting of several, counted as tried; the report names it
        self._say(f"{job.label} failed: {reason}")
        self._pace.drop(job, dropped)
        for phase, count in enumerate(dropped):
            if count:
                self._runs[phase] -= count
                self._left[phase] -= count
                self._end(phase)

    def _end(self, phase: int) -> None:
        if self._left[phase] == 0:
            kept = f" ({self._kept[phase]} of them before)" if self._kept[phase] else ""
            self._say(f"{self._names[phase]}: {self._runs[phase]} done{kept}")

    def _say(self, text: str) -> None:
        self._said = self._pace.seconds()
        click.echo(f"{self._title}: {text}, {duration(self._said)} so far", err=True)


def live(title: str, phases: Sequence[str] = PHASES) -> Bars | Lines:
    """Return what shows progress on standard error: bars in a terminal, else lines."""
    return (Bars if sys.stderr.isatty() else Lines)(title, phases)


def result_tables(result: Mapping[str, Any], page: Path) -> None:
    """Print a comparison: a line per method, what every task gained or lost, and why."""
    out = output()
    out.print(_methods(result))
    for method, reason in result["failed"].items():
        out.print(f"[red]{escape(method)} failed[/]: {escape(reason)}")
    best = _best(result)
    if best is not None:
        _print_tasks(out, result, best)
    about = result["about"]
    # Paths are to be copied, and a reference may be long: neither is folded into a table's width.
    out.print(escape(f"Data: {about['citation']}. Licence: {about['licence']}."), soft_wrap=True)
    out.print(escape(f"Report: {page}"), soft_wrap=True)


def _print_tasks(out: Console, result: Mapping[str, Any], best: str) -> None:
    """Print what the tasks gained or lost: all of them, or those that tell most, and why."""
    tasks = [task["name"] for task in result["tasks"]]
    methods = list(result["methods"])
    if len(methods) > MOST_METHODS:
        methods = [SINGLE, best]
        out.print(f"Task by task for [bold]{escape(best)}[/] (best delta-m); all in the report:")
    if len(tasks) <= MOST_TASKS:
        out.print(_tasks(result, tasks, methods))
    else:
        found = result["methods"][best]["tasks"]
        order = sorted(found, key=lambda name: found[name]["gain"] or 0.0)
        out.print(
            f"The 5 tasks that lost most and the 5 that gained most by [bold]{escape(best)}[/], "
            f"of {len(tasks)}:"
        )
        out.print(_tasks(result, [*order[:5], *order[-5:]], [SINGLE, best]))
    out.print(f"Why, for [bold]{escape(best)}[/] (best delta-m):")
    out.print(_why(result["methods"][best]["tasks"]))


def _methods(result: Mapping[str, Any]) -> Table:
    seeds = len(result["seeds"])
    table = Table(
        title=f"{result['title']}: {len(result['tasks'])} tasks, {seeds} "
        f"seed{'s' if seeds > 1 else ''}",
        title_justify="left",
        caption="delta-m: mean gain over tasks against their single-task models; ▲ ▼ ·: tasks "
        "gained, lost, undecided; time and parameters: against all single-task models together",
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    for title in ("delta-m", "95 % interval", "▲", "▼", "·"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("worst task", overflow="fold")
    for title in ("time", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, method in result["methods"].items():
        cost, worst = method["cost"], method["worst"]
        counts = method["counts"]
        single = name == SINGLE
        table.add_row(
            escape(name),
            "reference" if single else _percent(method["delta_m"]),
            _interval(method["delta_m_interval"]),
            *(["", "", ""] if single else [str(counts[v]) for v in list(VERDICTS)[:3]]),
            "" if worst is None else f"{escape(worst['task'])} {_percent(worst['gain'])}",
            f"{cost['seconds']:.1f} s" if single else _times(cost["seconds_ratio"]),
            f"{cost['parameters']:,.0f}" if single else _times(cost["parameters_ratio"]),
        )
    return table


def _tasks(result: Mapping[str, Any], names: Sequence[str], methods: Sequence[str]) -> Table:
    table = Table()
    # Names are folded where there is no room, numbers never.
    table.add_column("task", overflow="fold")
    table.add_column("method", overflow="fold")
    for title in ("test score", "gain", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    about = {task["name"]: task for task in result["tasks"]}
    for name in names:
        head = [escape(name), *(f"[dim]{line}[/]" for line in _measure(about[name]))]
        # One line beside each method; what is left stands beside the last one.
        head = [*head[: len(methods) - 1], "\n".join(head[len(methods) - 1 :])]
        for i, method in enumerate(methods):
            found = result["methods"][method]["tasks"][name]
            colour, verdict = VERDICTS[found["verdict"]]
            table.add_row(
                head[i] if i < len(head) else "",
                escape(method),
                _score(found["values"]),
                "" if method == SINGLE else _percent(found["gain"]),
                _interval(found["interval"]),
                f"[{colour}]{verdict}[/]",
                end_section=method == methods[-1],
            )
    return table


def _measure(task: Mapping[str, str]) -> list[str]:
    """Return the metric with its direction, and its unit, where it has one."""
    arrow = "↑" if task["direction"] == "max" else "↓"
    unit = [escape(f"({task['unit']})")] if task["unit"] else []
    return [escape(f"{task['metric']} {arrow}"), *unit]


def _why(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the reasons of the tasks that changed; where none surely did, of the most changed."""
    order = sorted(tasks, key=lambda name: -abs(tasks[name]["gain"] or 0.0))
    changed = [name for name in order if tasks[name]["verdict"] in ("gained", "lost")]
    table = Table.grid(padding=(0, 2))
    for name in (changed or order[:3])[:MOST_REASONS]:
        found = tasks[name]
        colour, verdict = VERDICTS[found["verdict"]]
        table.add_row(
            f"  [{colour}]{verdict[0]}[/]",
            escape(name),
            _percent(found["gain"]),
            escape(found["why"] or "Nothing was recorded."),
        )
    if len(changed) > MOST_REASONS:
        table.add_row("", "...", "", f"{len(changed) - MOST_REASONS} more tasks in the report")
    return table


def _best(result: Mapping[str, Any]) -> str | None:
    """Return the method with the highest delta-m; None where every method failed."""
    methods = {n: m for n, m in result["methods"].items() if n != SINGLE}
    return max(
        methods,
        key=lambda n: methods[n]["delta_m"] if methods[n]["delta_m"] is not None else -1e300,
        default=None,
    )


def _score(values: Sequence[float | None]) -> str:
    """Return the mean over seeds, and their standard deviation where there are several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"undefined ({len(values) - len(known)} of {len(values)})"
    mean = statistics.fmean(known)
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    if not spread:
        return f"{mean:.4g}"
    # Two digits of the spread, and the mean as far as they reach.
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}" if decimals < 8 else f"{mean:.4g}"


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f} %"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"\\[{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x {ratio:.2f}"


def fit_summary(
    record: Record, scores: Mapping[str, Mapping[str, float | None]], folder: Path
) -> None:
    """Print one run's test scores and where it is kept."""
    out = output()
    table = Table(
        title=f"{record.suite} by {record.method}, seed {record.seed}: best at update "
        f"{record.best.step} of {record.cost.steps}, {record.cost.seconds:.1f} s",
        title_justify="left",
    )
    table.add_column("task")
    table.add_column("test scores")
    for task, metrics in list(scores.items())[: 2 * MOST_TASKS]:
        text = ", ".join(
            f"{name} {'undefined' if value is None else f'{value:.4g}'}"
            for name, value in metrics.items()
        )
        table.add_row(escape(task), escape(text))
    out.print(table)
    if len(scores) > 2 * MOST_TASKS:
        out.print(f"... and {len(scores) - 2 * MOST_TASKS} tasks more in {folder / 'test.json'}")
    out.print(f"Run: {folder}")


def claims_table(ledger: Sequence[Claim]) -> None:
    """Print the claims and their outcomes."""
    table = Table(show_lines=True)
    for title in ("system", "claim", "setting here", "outcome", "effect"):
        table.add_column(title)
    colours = {"seen": "green", "not seen": "red"}
    for claim in ledger:
        effect = "" if claim.effect is None else f"{claim.effect.value:+.3g} {claim.effect.unit}"
        if claim.interval is not None:
            effect += f" [{claim.interval[0]:+.3g}, {claim.interval[1]:+.3g}]"
        table.add_row(
            escape(claim.system),
            escape(claim.claim),
            escape(claim.setting),
            f"[{colours.get(claim.outcome, 'default')}]{claim.outcome}[/]",
            escape(effect),
        )
    output().print(table)


def output() -> Console:
    """Return where results are printed."""
    console = Console()
    # Piped output has no width of its own; the tables are made for 100 columns.
    return console if console.is_terminal else Console(width=100)
