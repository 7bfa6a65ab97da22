"""What a person sees of `polytask auto` in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from polytask.cli.show import MOST_TASKS, duration, output
from polytask.report.searches import alone_in_words, hows_in_words, worse_than_alone


def searched_tables(result: Mapping[str, Any], page: Path) -> None:
    """Print what serves each task and why, and what the search cost."""
    out, tasks = output(), result["tasks"]
    shown = sorted(tasks, key=lambda task: -abs(task["over_shared"]["gain"] or 0.0))[:MOST_TASKS]
    rest = len(tasks) - len(shown)
    out.print(_tasks([task for task in tasks if task in shown]))
    if rest:
        out.print(f"[dim]{rest} more tasks in the report.[/]")
    runs, models = len(result["tried"]), result["models"]
    out.print(
        f"{len(tasks)} tasks served by {models} model{'s' if models > 1 else ''}: "
        f"{escape(hows_in_words(tasks))}."
    )
    ended = sum(task["alone"]["race"] == "to its end" for task in tasks)
    worse = worse_than_alone(tasks)
    out.print(
        f"Also trained alone to the end: {ended} of them; "
        + (
            f"[red]worse than alone beyond the 95 % interval on validation: "
            f"{escape(', '.join(worse))}[/]."
            if worse
            else "none is worse than alone beyond its 95 % interval on validation."
        )
    )
    share = result["seconds"] / result["alone_seconds"] if result["alone_seconds"] else 0.0
    out.print(
        f"{runs} runs, {duration(result['seconds'])} of training: {share:.2f} of what every task "
        f"alone takes by time, {result['work']:.2f} by arithmetic (budget {result['budget']:g})."
    )
    for name, reason in result["failed"].items():
        out.print(f"[red]{escape(name)} failed[/]: {escape(reason)}")
    out.print(escape(f"Report: {page}"), soft_wrap=True)


def _tasks(tasks: list[Mapping[str, Any]]) -> Table:
    table = Table(
        caption="over shared: gain on validation over the best model of all tasks, ± its standard "
        "error; alone: how far the task trained alone",
        caption_justify="left",
    )
    table.add_column("task", overflow="fold")
    table.add_column("served by", overflow="fold")
    table.add_column("over shared", justify="right", no_wrap=True)
    table.add_column("alone", overflow="fold")
    table.add_column("test", justify="right", no_wrap=True)
    for task in tasks:
        gain, error = task["over_shared"]["gain"], task["over_shared"]["error"]
        moved = "" if task["how"] == "shared" and not gain else _percent(gain, error)
        test = task["test"][task["metric"]]
        table.add_row(
            escape(task["name"]),
            escape(hows_in_words([task])),
            moved,
            escape(alone_in_words(task)),
            f"{escape(task['metric'])} {'–' if test is None else f'{test:.4g}'}",
        )
    return table


def _percent(gain: float | None, error: float | None) -> str:
    if gain is None:
        return "–"
    return f"{gain:+.1f} %" + (f" ± {error:.1f}" if error is not None else "")
