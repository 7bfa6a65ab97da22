"""Reduce the records of a run to lines and matrices that fit a page.

A run of 139 tasks leaves millions of numbers; a page that people send each other has room for some
hundred thousand. So the lines are means over seeds, thinned to a common budget, with four digits;
the cosines are the first seed's, two digits each, one byte per pair of tasks.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from polytask.records import Point, Probe, Record

Column = list[float | None]
Item = TypeVar("Item")

POINTS = 200
"""Most points a line keeps; more cannot be told apart on a screen."""

NUMBERS = 200_000
"""Most numbers all lines of one run keep together: about 1.3 MB of JSON."""

CELLS = 600_000
"""Most cosines all heat maps of one run keep together: about 0.8 MB of base64."""

PROBES = 40
"""Most steps a heat map's slider has."""

ABSENT = -128
"""The byte of a cosine that is undefined."""


@dataclass(frozen=True)
class Lines:
    """Means over seeds at each of `steps`. train, val, weights: a column per task; None where no
    seed has a value."""

    steps: tuple[int, ...]
    train: dict[str, Column]
    val: dict[str, Column]
    weights: dict[str, Column]


def seed_mean(records: Sequence[Record], metrics: Mapping[str, str]) -> Lines:
    """Return the mean lines of one training repeated with several seeds.

    metrics: the metric shown, per task. Seeds may stop at different steps: each step's mean is over
    the seeds that got there.
    """
    by_step: dict[int, list[Point]] = {}
    for record in records:
        for point in record.points:
            by_step.setdefault(point.step, []).append(point)
    steps = tuple(sorted(by_step))

    def column(read: Callable[[Point], float | None]) -> Column:
        return [mean(read(point) for point in by_step[step]) for step in steps]

    return Lines(
        steps=steps,
        train={task: column(lambda p, t=task: p.train.get(t)) for task in metrics},  # type: ignore[misc]
        val={
            task: column(lambda p, t=task, m=metric: p.val.get(t, {}).get(m))  # type: ignore[misc]
            for task, metric in metrics.items()
        },
        weights={task: column(lambda p, t=task: p.weights.get(t)) for task in metrics},  # type: ignore[misc]
    )


def points_per_line(lines: int) -> int:
    """Return how many points each of `lines` lines may keep within the page's budget."""
    return max(20, min(POINTS, NUMBERS // max(lines, 1)))


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` (>= 2) of the items, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def pack_lines(lines: Lines, most: int) -> dict[str, Any]:
    """Return the lines as JSON types, thinned to `most` points; tasks in the order of `lines`."""
    keep = thin(range(len(lines.steps)), most)

    def columns(of: dict[str, Column]) -> list[Column]:
        return [[digits(column[k]) for k in keep] for column in of.values()]

    return {
        "steps": [lines.steps[k] for k in keep],
        "train": columns(lines.train),
        "val": columns(lines.val),
        "weights": columns(lines.weights),
    }


def probes_per_method(methods: int, tasks: int) -> int:
    """Return how many heat maps each of `methods` methods may keep within the page's budget."""
    pairs = tasks * (tasks - 1) // 2
    return max(2, min(PROBES, CELLS // max(methods * pairs, 1)))


def pack_probes(record: Record, order: Sequence[str], most: int) -> dict[str, Any] | None:
    """Return the record's cosines for the page, tasks in `order`; None where it has none.

    steps, mean, conflict: over all probes (thinned): mean cosine of the pairs, and the share of
    pairs below 0. shown: the steps of `cells` and `norms`. cells: per shown step the pairs above
    the diagonal, row by row, as base64 of signed bytes: 100 x the cosine, -128 where undefined.
    worst: the pair of tasks with the lowest mean cosine over the probes.
    """
    if len(record.tasks) < 2 or not record.probes:
        return None
    place = [record.tasks.index(task) for task in order]
    pairs = [(a, b) for k, a in enumerate(place) for b in place[k + 1 :]]
    along = thin(record.probes, POINTS)
    shown = thin(record.probes, most)
    known = [_known(probe, pairs) for probe in along]
    return {
        "steps": [probe.step for probe in along],
        "mean": [digits(mean(cosines)) for cosines in known],
        "conflict": [digits(mean(float(c < 0) for c in cosines)) for cosines in known],
        "shown": [probe.step for probe in shown],
        "cells": [_cells(probe, pairs) for probe in shown],
        "norms": [[digits(probe.norms[k]) for probe in shown] for k in place],
        "worst": _worst(record, along, pairs),
    }


def _known(probe: Probe, pairs: Iterable[tuple[int, int]]) -> list[float]:
    cosines = (probe.cosines[a][b] for a, b in pairs)
    return [cosine for cosine in cosines if cosine is not None and math.isfinite(cosine)]


def _cells(probe: Probe, pairs: Iterable[tuple[int, int]]) -> str:
    return pack_shares(probe.cosines[a][b] for a, b in pairs)


def pack_shares(values: Iterable[float | None]) -> str:
    """Return numbers in [-1, 1] as base64 of signed bytes: 100 x each, ABSENT where undefined."""
    signed = (
        ABSENT if c is None or not math.isfinite(c) else max(-100, min(100, round(100 * c)))
        for c in values
    )
    return base64.b64encode(bytes(byte % 256 for byte in signed)).decode()


def _worst(
    record: Record, probes: Sequence[Probe], pairs: Sequence[tuple[int, int]]
) -> dict[str, Any] | None:
    means = ((mean(probe.cosines[a][b] for probe in probes), a, b) for a, b in pairs)
    found = [(value, a, b) for value, a, b in means if value is not None]
    if not found:
        return None
    value, a, b = min(found)
    return {"tasks": [record.tasks[a], record.tasks[b]], "cosine": digits(value)}


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the finite values, None where there are none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def spread(values: Iterable[float | None]) -> float | None:
    """Return the standard deviation (n - 1) of the finite values, None for fewer than two."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(finite) < 2:
        return None
    centre = math.fsum(finite) / len(finite)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in finite) / (len(finite) - 1))


def digits(value: float | None) -> float | None:
    """Return the value with four significant digits; whole numbers as int, which is shorter."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short
