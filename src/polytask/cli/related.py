"""What a person sees of `polytask relate` in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from polytask.cli.show import MOST_TASKS, duration, output


def related_tables(result: Mapping[str, Any], page: Path) -> None:
    """Print how tasks affect one another by each method, and the groups for every budget."""
    out, tasks = output(), result["tasks"]
    for name, found in result["methods"].items():
        out.print(f"[bold]{escape(name)}[/]: {escape(found['summary'])}")
        if len(found["affinity"]["tasks"]) <= MOST_TASKS:
            out.print(_affinity(found["affinity"]))
        else:
            out.print(_pairs(found["affinity"]))
        out.print(_groups(found["groups"]))
        out.print(_sure(found, result["budget"]))
    for name, reason in result["left_out"].items():
        out.print(f"[dim]{escape(name)}: {escape(reason)}[/]")
    runs = len(result["seeds"])
    out.print(
        f"{len(tasks)} tasks, {runs} model{'s' if runs > 1 else ''} of all tasks watched, "
        f"{duration(result['seconds'])} of training."
    )
    out.print(escape(f"Report: {page}"), soft_wrap=True)


def _affinity(affinity: Mapping[str, Any]) -> Table:
    names = affinity["tasks"]
    table = Table(
        caption="how much training the row's task helps the column's, ± its standard error",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column(escape(name), justify="right")
    for i, name in enumerate(names):
        cells = [
            "" if i == j else _with_error(affinity["values"][i][j], affinity["errors"][i][j])
            for j in range(len(names))
        ]
        table.add_row(escape(name), *cells)
    return table


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    said = f"{value:+.3f}" + (f" ± {error:.3f}" if error is not None else "")
    if error is None or abs(value) < 2 * error:
        return said
    return f"[{'green' if value > 0 else 'red'}]{said}[/]"


def _pairs(affinity: Mapping[str, Any]) -> Table:
    """Return the pairs that tell most: many tasks have no room for a table of all."""
    names = affinity["tasks"]
    pairs = [
        (affinity["values"][i][j], affinity["errors"][i][j], one, other)
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if i != j and affinity["values"][i][j] is not None
    ]
    pairs.sort(key=lambda pair: -pair[0])
    table = Table(
        title=f"The 5 pairs that help most and the 5 that hurt most, of {len(pairs)}",
        title_justify="left",
    )
    for title in ("training", "helps", "by"):
        table.add_column(title, justify="right" if title == "by" else "left", overflow="fold")
    for value, error, one, other in [*pairs[:5], *pairs[-5:]] if len(pairs) > 10 else pairs:
        table.add_row(escape(one), escape(other), _with_error(value, error))
    return table


def _groups(proposed: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("models", justify="right")
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("groups to train together", overflow="fold")
    for models, found in enumerate(proposed, 1):
        texts = [escape(_members(found, group)) for group in range(len(found["groups"]))]
        proven = "" if found["optimal"] else "  [dim](not proven to be the best)[/]"
        table.add_row(str(models), f"{found['score']:+.4g}", " [bold]|[/] ".join(texts) + proven)
    return table


def _members(found: Mapping[str, Any], group: int) -> str:
    """Return the group's tasks; in brackets those that only help, and are served elsewhere."""
    served = {t for t, at in zip(found["tasks"], found["serve"], strict=True) if at == group}
    return ", ".join(t if t in served else f"({t})" for t in found["groups"][group])


def _sure(found: Mapping[str, Any], budget: int) -> str:
    names, together = found["affinity"]["tasks"], found["together"]
    pairs = [together[i][j] for i in range(len(names)) for j in range(i)]
    settled = sum(share >= 0.9 or share <= 0.1 for share in pairs)
    return (
        f"[dim]In {found['draws']} draws of the table within its errors, {settled} of "
        f"{len(pairs)} pairs of tasks are together, or apart, in at least nine of ten (budget "
        f"{budget}).[/]"
    )
