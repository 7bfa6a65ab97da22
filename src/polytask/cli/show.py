"""What a person sees in a terminal: tables and progress. Results go to standard output, progress
to standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polytask.catalog import Method
from polytask.evaluate import Claim
from polytask.recipes import SINGLE, Job
from polytask.records import Record
from polytask.suites import SuiteRow

VERDICTS = {
    "gained": ("green", "▲ gained"),
    "lost": ("red", "▼ lost"),
    "undecided": ("default", "· undecided"),
    "reference": ("default", ""),
}

MOST_TASKS = 12
"""More tasks than this are not listed one by one in the terminal; the report has them all."""


def suites_table(rows: Sequence[tuple[SuiteRow, Sequence[str]]]) -> None:
    """Print the suites and what each lacks."""
    table = Table(box=None, pad_edge=False)
    for title in ("suite", "tasks", "data", "about"):
        table.add_column(title, justify="right" if title == "tasks" else "left")
    for row, missing in rows:
        data = "[green]here[/]" if not missing else f"[yellow]absent: {escape(missing[0])}[/]"
        table.add_row(row.name, str(len(row.tasks)), data, escape(row.summary))
    _out().print(table)


def methods_table(rows: Sequence[Method]) -> None:
    """Print the methods and their sources."""
    table = Table(box=None, pad_edge=False)
    for title in ("method", "room", "what it does", "source"):
        table.add_column(title)
    for row in rows:
        table.add_row(row.name, row.room, escape(row.summary), escape(row.source))
    _out().print(table)


class Live:
    """Bars on standard error: one for the phase, one line for each run in progress."""

    def __init__(self, title: str) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", style="dim"),
            console=Console(stderr=True),
        )
        self._title = title
        self._phase: Any = None
        self._runs: dict[Path, Any] = {}

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

    def phase(self, name: str, runs: int) -> None:
        text = f"[bold]{escape(self._title)}[/] {name}"
        self._phase = self._bars.add_task(text, total=runs, completed=0, losses="")

    def step(self, job: Job, step: int, steps: int, losses: Mapping[str, float]) -> None:
        if job.folder not in self._runs:
            self._runs[job.folder] = self._bars.add_task(
                f"  {escape(job.folder.name)}", total=steps, losses=""
            )
        text = " ".join(f"{task} {value:.3g}" for task, value in losses.items())
        self._bars.update(self._runs[job.folder], completed=step, losses=escape(text))

    def done(self, job: Job) -> None:
        bar = self._runs.pop(job.folder, None)
        if bar is not None:
            self._bars.remove_task(bar)
        self._bars.advance(self._phase)


def result_tables(result: Mapping[str, Any], page: Path) -> None:
    """Print a comparison: a line per method, then what every task gained or lost."""
    out = _out()
    out.print(_methods(result))
    tasks = result["tasks"]
    if len(tasks) <= MOST_TASKS:
        out.print(_tasks(result, [task["name"] for task in tasks], list(result["methods"])))
    else:
        best = _best(result)
        found = result["methods"][best]["tasks"]
        order = sorted(found, key=lambda name: found[name]["gain"] or 0.0)
        out.print(
            f"The 5 tasks that lost most and the 5 that gained most by [bold]{escape(best)}[/], "
            f"of {len(tasks)}:"
        )
        out.print(_tasks(result, [*order[:5], *order[-5:]], [SINGLE, best]))
    out.print(f"Report: {page}")


def _methods(result: Mapping[str, Any]) -> Table:
    seeds = len(result["seeds"])
    table = Table(
        title=f"{result['title']}: {len(result['tasks'])} tasks, {seeds} "
        f"seed{'s' if seeds > 1 else ''}",
        title_justify="left",
        caption="delta-m: mean gain over tasks against their single-task models; [ ]: 95 % "
        "interval over seeds; ▲ ▼ ·: tasks gained, lost, undecided; time and parameters: against "
        "all single-task models together",
        caption_justify="left",
    )
    table.add_column("method")
    for title in ("delta-m", "95 % interval", "▲", "▼", "·"):
        table.add_column(title, justify="right")
    table.add_column("worst task")
    for title in ("time", "parameters"):
        table.add_column(title, justify="right")
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
    table = Table(show_lines=False, row_styles=None)
    for title in ("task", "method", "test score", "gain", "95 % interval", "verdict", "why"):
        right = title in ("test score", "gain", "95 % interval")
        table.add_column(title, justify="right" if right else "left")
    about = {task["name"]: task for task in result["tasks"]}
    for name in names:
        task = about[name]
        arrow = "↑" if task["direction"] == "max" else "↓"
        for i, method in enumerate(methods):
            found = result["methods"][method]["tasks"][name]
            colour, verdict = VERDICTS[found["verdict"]]
            head = f"{escape(name)}\n[dim]{escape(task['metric'])} {arrow}[/]" if i == 0 else ""
            table.add_row(
                head,
                escape(method),
                _score(found["values"], task["unit"]),
                "" if method == SINGLE else _percent(found["gain"]),
                _interval(found["interval"]),
                f"[{colour}]{verdict}[/]",
                escape(found["why"] or ""),
                end_section=method == methods[-1],
            )
    return table


def _best(result: Mapping[str, Any]) -> str:
    methods = {n: m for n, m in result["methods"].items() if n != SINGLE}
    return max(  # type: ignore[no-any-return]  # names of a JSON object are strings
        methods,
        key=lambda n: methods[n]["delta_m"] if methods[n]["delta_m"] is not None else -1e300,
    )


def _score(values: Sequence[float | None], unit: str) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "undefined"
    return f"{sum(known) / len(known):.4g}{' ' + escape(unit) if unit else ''}"


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
    out = _out()
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
    _out().print(table)


def _out() -> Console:
    console = Console()
    # Piped output has no width of its own; 80 columns would fold every row.
    return console if console.is_terminal else Console(width=140)
