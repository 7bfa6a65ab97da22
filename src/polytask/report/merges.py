"""Merges as the page shows them: scores against each task's own model, and maps of task vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from polytask.records import Values
from polytask.report import words
from polytask.report.curves import POINTS, digits, mean, pack_shares, thin

if TYPE_CHECKING:
    from polytask.merge import MergeRecord, MergeResult
    from polytask.merge.maps import Maps, Meeting
    from polytask.merge.record import Learned

PART = {"individual": "reference", "joint": "end", "base": "end"}
"""What the rows are that are no merge."""


def merge_block(record: MergeRecord, label: str) -> dict[str, Any]:
    """Return all that the page shows of a record of merges, as JSON types."""
    ends = {name: scores for name in PART if (scores := getattr(record, name))}
    merged = {name: one.scores for name, one in record.merges.items()}
    rows = [_row(record, name, scores) for name, scores in {**ends, **merged}.items()]
    ranked = sorted((r for r in rows if not r["part"]), key=lambda r: -(r["kept"] or -math.inf))
    best = next((row for row in ranked if row["kept"] is not None), None)
    tasks = [
        {"name": task, "kind": "", "metric": m.name, "direction": m.direction, "unit": m.unit}
        for task, m in record.measures.items()
    ]
    return {
        "kind": "merge",
        "label": label,
        "title": record.title,
        "suite": "",
        "verdict": [*_said(record, rows, best), *_said_of_maps(record.maps)],
        "best": best["name"] if best else None,
        "created": record.created,
        "command": "",
        "versions": record.versions,
        "seeds": [],
        "tasks": tasks,
        "methods": [*(row for row in rows if row["part"]), *ranked],
        "learned": {
            name: _learned(one.coefficients)
            for name, one in record.merges.items()
            if one.coefficients is not None
        },
        "losses": {name: _losses(one) for name, one in record.merges.items() if one.losses},
        "maps": None if record.maps is None else _maps(record.maps),
        "notes": {name: one.notes for name, one in record.merges.items() if one.notes},
    }


def _row(record: MergeRecord, name: str, scores: Values) -> dict[str, Any]:
    """Return a method's row. kept: mean over tasks of its score in % of the individual model's."""
    cells = [
        {"value": digits(scores[task]), "gain": digits(_gain(record, task, scores[task]))}
        for task in record.measures
    ]
    gains = [_gain(record, task, scores[task]) for task in record.measures]
    known = {t: g for t, g in zip(record.measures, gains, strict=True) if g is not None}
    worst = min(known, key=lambda task: known[task], default=None)
    return {
        "name": name,
        "part": PART.get(name, ""),
        "reference": name == "individual",
        "mean": digits(_mean(record, scores)),
        "kept": digits(100 + fmean(known.values())) if known else None,
        "left_out": [task for task in record.measures if task not in known],
        "way": digits(_way(record, scores)),
        "worst": {"task": worst, "kept": digits(100 + known[worst])} if worst else None,
        "cells": cells,
    }


def _gain(record: MergeRecord, task: str, value: float) -> float | None:
    """Return the change against the task's own model in % of it, up is better; None: undefined."""
    own = record.individual[task]
    if own == 0 or not (math.isfinite(own) and math.isfinite(value)):
        return None
    sign = 1 if record.measures[task].direction == "max" else -1
    return 100 * sign * (value - own) / abs(own)


def _mean(record: MergeRecord, scores: Values) -> float | None:
    """Return the mean score, None where tasks are measured in different things."""
    alike = len({(m.name, m.direction, m.unit) for m in record.measures.values()}) == 1
    values = list(scores.values())
    return fmean(values) if alike and all(map(math.isfinite, values)) else None


def _way(record: MergeRecord, scores: Values) -> float | None:
    """Return how far the mean score is from the base's to the individual models', in %."""
    if not record.base:
        return None
    here, low, high = (_mean(record, s) for s in (scores, record.base, record.individual))
    if here is None or low is None or high is None or high == low:
        return None
    return 100 * (here - low) / (high - low)


def _said(
    record: MergeRecord, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None
) -> list[str]:
    if not record.merges:
        return []
    if best is None:
        return ["No merge has scores that can be set against the individual models'."]
    over = f"{len(record.measures)} tasks" if len(record.measures) > 1 else "one task"
    found = [
        f"{best['name']} keeps {best['kept']:.1f}\u00a0% of the individual models' scores on "
        f"average over {over}; least on {best['worst']['task']}, "
        f"{best['worst']['kept']:.1f}\u00a0%."
    ]
    ends = {row["name"]: row["kept"] for row in rows if row["part"] == "end"}
    known = [
        f"{text} {ends[name]:.1f}\u00a0%"
        for name, text in (("base", "the base"), ("joint", "joint training"))
        if ends.get(name) is not None
    ]
    if known:
        found.append(f"For comparison: {words.listing(known)}.")
    if best["left_out"]:
        count = len(best["left_out"])
        found.append(f"Left out of its mean: {count} without a defined ratio.")
    return found


def _said_of_maps(found: Maps | None) -> list[str]:
    if found is None:
        return []
    cosine, conflict = mean(found.whole.cosines), mean(found.whole.conflicts)
    if cosine is None or conflict is None:
        return ["At least one of the models did not change, so few angles and signs are defined."]
    said = (
        f"Two task vectors have a cosine of {round(cosine, 2) + 0.0:.2f} on average, and "
        f"opposite signs in {100 * conflict:.0f}\u00a0% of what both changed"
    ).replace("-", "−")
    each = {one.name: mean(one.conflicts) for one in found.layers if one.elements > 1}
    known = {name: share for name, share in each.items() if share is not None}
    if len(known) < 2:
        return [f"{said}."]
    most = max(known, key=lambda name: known[name])
    return [f"{said}; most in {most}, {100 * known[most]:.0f}\u00a0%."]


def _learned(learned: Learned) -> dict[str, Any]:
    """Return the coefficients by tensor and, as means over tensors, by layer."""
    from polytask.merge.diff import layer_of

    layers: dict[str, list[tuple[float, ...]]] = {}
    for name, row in zip(learned.rows, learned.values, strict=False):
        layers.setdefault(layer_of(name), []).append(row)
    return {
        "tensors": list(learned.rows) or ["all tensors"],
        "values": [[digits(value) for value in row] for row in learned.values],
        "layers": list(layers) or ["all tensors"],
        "means": [
            [digits(mean(column)) for column in zip(*rows, strict=True)]
            for rows in (layers.values() or [learned.values])
        ],
        "parts": learned.parts,
    }


def _losses(one: MergeResult) -> dict[str, Any]:
    keep = thin(range(len(one.losses)), POINTS)
    return {"rounds": [k + 1 for k in keep], "values": [digits(one.losses[k]) for k in keep]}


def _maps(found: Maps) -> dict[str, Any]:
    """Return the maps: the whole models first, then the layers; pairs packed as bytes of a % each.

    split: share of changed elements on which any two models disagree.
    """
    every = (found.whole, *found.layers)

    def of(one: Meeting) -> dict[str, Any]:
        return {
            "name": one.name or "whole model",
            "elements": one.elements,
            "norms": [digits(norm) for norm in one.norms],
            "cosines": pack_shares(one.cosines),
            "conflicts": pack_shares(one.conflicts),
            "split": digits(one.split),
        }

    return {"labels": found.labels, "meetings": [of(one) for one in every]}
