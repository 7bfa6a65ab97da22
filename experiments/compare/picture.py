"""The picture of `docs/balance.md`: every method's delta-m by suite, and against its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from statistics import median
from typing import Any

import page

from polytask.parsing import parse

Table = Mapping[str, Any]

FAMILIES = {
    "losses": ("#0067a5", "needs the losses alone"),
    "gramian": ("#cb4f00", "needs the products of the tasks' gradients"),
    "rows": ("#00825f", "needs the gradients themselves"),
}
"""By what a method must see: the colour and the words. They stay apart for colour-blind readers."""

NAMES, PANEL, GAP, ROW, HEAD, SCATTER = 118, 250, 22, 17, 74, 230
LEAST = 640  # the legend's width
INK, SOFT, GRID = "#1a1c1f", "#5a6068", "#e2e2df"


@dataclass(frozen=True)
class Scale:
    """A straight line from numbers to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inside = min(self.high, max(self.low, value))
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return some round numbers inside."""
        step = next(
            s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if (self.high - self.low) / s <= 6
        )
        first = int(self.low // step)
        return [k * step for k in range(first, first + 9) if self.low <= k * step <= self.high]


def family(name: str) -> str:
    """Return what a recipe's balance method must see."""
    needs: str = parse(name).balance.method.load().needs
    return needs


def gains(tables: Mapping[str, Table], cost: Mapping[str, Any]) -> str:
    """Return the picture as SVG."""
    full = {name: table for name, table in tables.items() if page.is_full(table)}
    order = [name for name, _ in page.ranked(full)]
    bottom = HEAD + ROW * len(order)
    timed = [name for name in full if name in cost.get("suites", {})]
    height = bottom + 40 + (SCATTER + 40 if timed else 0)
    width = max(LEAST, NAMES + len(full) * (PANEL + GAP))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    at = 10.0
    for colour, words in FAMILIES.values():
        parts += [_dot(at + 5, 14, colour), _text(at + 14, 18, words)]
        at += 14 + 6.2 * len(words) + 18
    parts.append(
        _text(
            10,
            36,
            "Band: interval of equal weights. Line: single-task models. Triangle: beyond the plot.",
        )
    )
    for i, name in enumerate(order):
        parts.append(_text(NAMES - 8, HEAD + ROW * (i + 0.5) + 4, name, "end"))
    for k, (name, table) in enumerate(full.items()):
        left = NAMES + k * (PANEL + GAP)
        parts += _panel(name, table, order, left, bottom)
        if name in timed:
            parts += _scatter(table, cost["suites"][name]["methods"], order, left, bottom + 56)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(suite: str, table: Table, order: Sequence[str], left: float, bottom: float) -> list[str]:
    methods = table["methods"]
    x = _range(table, order, left + 6, left + PANEL - 6)
    seeds = len(table["seeds"])
    parts = [
        _text(
            left + PANEL / 2,
            HEAD - 20,
            f"{suite}: delta-m in %, {seeds} seeds",
            "middle",
            bold=True,
        )
    ]
    band = methods["equal"]["delta_m_interval"] if "equal" in methods else None
    if band:
        parts.append(
            f'<rect x="{x(band[0]):.1f}" y="{HEAD}" width="{x(band[1]) - x(band[0]):.1f}" '
            f'height="{bottom - HEAD}" fill="#0067a5" opacity="0.12"/>'
        )
    for tick in x.ticks():
        parts += [
            _line(x(tick), HEAD, x(tick), bottom, INK if tick == 0 else GRID),
            _text(x(tick), HEAD - 5, f"{tick:+g}" if tick else "0", "middle", SOFT),
        ]
    for i, name in enumerate(order):
        y = HEAD + ROW * (i + 0.5)
        if name in table.get("failed", {}):
            parts.append(_text(left + PANEL / 2, y + 4, "failed", "middle", SOFT))
        found = methods.get(name)
        if found is None or found["delta_m"] is None:
            continue
        value, colour = found["delta_m"], FAMILIES[family(name)][0]
        if not x.low <= value <= x.high:
            inward = 1 if value < x.low else -1
            tip = x(value)
            parts += [
                f'<path d="M{tip:.1f},{y}l{inward * 8},-4v8Z" fill="{colour}"/>',
                _text(tip + inward * 12, y + 4, f"{value:+.1f}", "start" if inward > 0 else "end"),
            ]
            continue
        if found["delta_m_interval"]:
            low, high = found["delta_m_interval"]
            parts.append(_line(x(low), y, x(high), y, colour, 1.6))
        parts.append(_dot(x(value), y, colour))
    return parts


def _scatter(
    table: Table, costs: Mapping[str, Any], order: Sequence[str], left: float, top: float
) -> list[str]:
    """Draw delta-m (up) against the time of a step (right, logarithmic)."""
    known = [
        (name, log10(costs[name]["time"]), table["methods"][name]["delta_m"])
        for name in order
        if "time" in costs.get(name, {}) and page.delta(table, name) > float("-inf")
    ]
    if not known:
        return []
    bottom = top + SCATTER
    x = Scale(min(0.0, *(p[1] for p in known)) - 0.04, max(p[1] for p in known) + 0.08,
              left + 26, left + PANEL - 4)  # fmt: skip
    y = _range(table, order, bottom, top)
    parts = [
        _text(left + PANEL / 2, top - 12, "delta-m against the time of a step", "middle", bold=True)
    ]
    for tick in y.ticks():
        parts += [
            _line(left + 26, y(tick), left + PANEL - 4, y(tick), INK if tick == 0 else GRID),
            _text(left + 22, y(tick) + 4, f"{tick:+g}" if tick else "0", "end", SOFT),
        ]
    for ratio in (1, 1.5, 2, 3, 5, 8, 12, 20):
        if x.low <= log10(ratio) <= x.high:
            parts += [
                _line(x(log10(ratio)), top, x(log10(ratio)), bottom, GRID),
                _text(x(log10(ratio)), bottom + 15, f"x {ratio:g}", "middle", SOFT),
            ]
    taken = [(x(time) - 5, y(value) - 5, x(time) + 5, y(value) + 5) for _, time, value in known]
    for name, time, value in known:
        px, py = x(time), y(value)
        parts.append(_dot(px, py, FAMILIES[family(name)][0]))
        for dx, dy, anchor in (
            (7, 4, "start"),
            (-7, 4, "end"),
            (0, -8, "middle"),
            (0, 15, "middle"),
        ):
            long = 5.9 * len(name)
            start = px + dx - {"start": 0.0, "end": long, "middle": long / 2}[anchor]
            box = (start, py + dy - 9, start + long, py + dy + 2)
            if (
                start < left + 26
                or box[2] > left + PANEL + 12
                or any(
                    box[0] < b[2] and box[2] > b[0] and box[1] < b[3] and box[3] > b[1]
                    for b in taken
                )
            ):
                continue
            taken.append(box)
            parts.append(_text(px + dx, py + dy, name, anchor))
            break
    return parts


def _range(table: Table, order: Sequence[str], start: float, end: float) -> Scale:
    """Return the scale of a suite's delta-m: a few far off do not press the others together."""
    found = sorted(v for v in (page.delta(table, name) for name in order) if v > float("-inf"))
    low, high = found[len(found) // 4], found[3 * len(found) // 4]
    room = 4 * max(high - low, 0.25)
    inner = [v for v in found if low - room <= v <= high + room]
    edge = 0.12 * max(inner[-1] - inner[0], 1.0)
    # The intervals of the middle of the list are seen whole; wider ones end at the edge.
    ends = [
        bounds
        for name in order
        if low <= page.delta(table, name) <= high
        and (bounds := table["methods"][name]["delta_m_interval"])
    ]
    least = median([e[0] for e in ends]) if ends else 0.0
    most = median([e[1] for e in ends]) if ends else 0.0
    return Scale(
        min(inner[0] - edge, least - edge / 2, 0.0), max(inner[-1] + edge, most + edge / 2, 0.0),
        start, end,
    )  # fmt: skip


def _text(
    x: float, y: float, words: str, anchor: str = "start", colour: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{escape(words)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    return (
        f'<path d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}" fill="none"/>'
    )


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
