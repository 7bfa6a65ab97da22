"""Write the page: run folders -> one JSON block -> one HTML file.

The template, the style and the scripts lie in `assets/`. The page may run only them: its
content security policy names their hashes and forbids every request, so a report is safe to open
and to pass on, whatever the names inside it say.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask import __version__
from polytask.errors import RunError, UsageError
from polytask.records import Record, short_names, to_json, write_atomic
from polytask.report import words
from polytask.report.curves import (
    Lines,
    digits,
    mean,
    pack_lines,
    pack_probes,
    points_per_line,
    probes_per_method,
    seed_mean,
    spread,
)
from polytask.report.experts import pack_experts
from polytask.report.merges import merge_block
from polytask.report.relations import Related, relations_block
from polytask.report.searches import Searched, searched_block
from polytask.report.sources import (
    SINGLE,
    Blended,
    Compared,
    Fitted,
    MethodResult,
    Run,
    TaskInfo,
    read_folder,
)

if TYPE_CHECKING:
    from polytask.merge import MergeRecord

ASSETS = resources.files("polytask.report") / "assets"


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about the runs in `folders`; return `out`.

    folders: of `polytask compare` (result.json and its runs), of one training (record.json), of
    merges (merge.json), of `polytask relate` (relate.json) or of `polytask auto` (auto.json); two
    or more are set side by side.
    out: the HTML file; replaced whole or not at all.

    Raises RunError where a folder is missing, foreign or broken, or `out` cannot be written;
    UsageError without folders.
    """
    if not folders:
        raise UsageError("A report needs at least one run folder; `polytask report RUN...`.")
    runs = [read_folder(folder) for folder in folders]
    labels = short_names([run.folder for run in runs])
    blocks = [_block(run, label) for run, label in zip(runs, labels, strict=True)]
    write_atomic(out, render(blocks).encode())
    return out


def write_merge_report(record: MergeRecord, out: Path) -> Path:
    """Write the page about merges that lie in no folder; return `out`.

    It is replaced whole or not at all; RunError where it cannot be written.
    """
    write_atomic(out, render([merge_block(record, record.title)]).encode())
    return out


def _block(run: Run, label: str) -> dict[str, Any]:
    if isinstance(run, Compared):
        return compare_block(run, label)
    if isinstance(run, Related):
        return relations_block(run, label)
    if isinstance(run, Searched):
        return searched_block(run, label)
    if isinstance(run, Blended):
        return merge_block(run.record, label)
    return fit_block(run, label)


def render(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML page that shows the blocks."""
    style = _asset("page.css")
    scripts = ("plots", "overview", "experts", "merges", "relations", "searches", "page")
    script = "\n".join(_asset(f"{name}.js") for name in scripts)
    title = " · ".join(block["title"] for block in blocks)
    parts = {
        "policy": (
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "title": html.escape(f"{title} · polytask report"),
        "summary": html.escape(" ".join(blocks[0]["verdict"])),
        "style": style,
        "data": embed({"polytask": __version__, "runs": blocks}),
        "script": script,
    }
    # One pass: what is put in is never searched for further slots.
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _asset("page.html"))


def embed(value: Any) -> str:
    """Return `value` as JSON that is safe inside a <script> element, whatever texts it holds."""
    text = json.dumps(to_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def compare_block(run: Compared, label: str) -> dict[str, Any]:
    """Return all that the page shows of a comparison, as JSON types."""
    names = [task.name for task in run.tasks]
    metrics = {task.name: task.metric for task in run.tasks}
    trained = [method for method in run.methods if method.runs]
    # A joint method has three lines per task (loss, metric, weight), a single-task model two.
    most = points_per_line(len(names) * sum(2 + (m.name != SINGLE) for m in trained))
    probes = probes_per_method(sum(m.name != SINGLE for m in trained), len(names))
    curves: dict[str, Any] = {}
    conflicts: dict[str, Any] = {}
    experts: dict[str, Any] = {}
    for method in trained:
        if method.name == SINGLE:
            curves[method.name] = [
                pack_lines(lines, most) for lines in _single_lines(method, run.tasks)
            ]
            continue
        records = [_load(by_task["*"], names) for by_task in method.runs.values()]
        curves[method.name] = pack_lines(seed_mean(records, metrics), most)
        packed = pack_probes(records[0], names, probes)
        if packed:
            conflicts[method.name] = packed
        used = pack_experts(records)
        if used:
            experts[method.name] = used
    best = words.best_method(run)
    return {
        "kind": "compare",
        "label": label,
        "title": run.title,
        "suite": run.suite,
        "verdict": words.verdict(run),
        "best": best.name if best else None,
        "created": run.created,
        "command": run.command,
        "versions": run.versions,
        "seeds": run.seeds,
        "tasks": [to_json(task) for task in run.tasks],
        "methods": [_method_row(method, names) for method in _ranked(run)],
        "failed": run.failed,
        "curves": curves,
        "probes": conflicts,
        "experts": experts,
        "tuning": run.tuning,
        "about": run.about,
        "rows": run.rows,
        "level": run.level,
        "notes": run.notes,
    }


def fit_block(run: Fitted, label: str) -> dict[str, Any]:
    """Return all that the page shows of one training, as JSON types.

    A record names no primary metric; the first of each task's metrics is drawn, which is the
    primary one wherever polytask wrote the record.
    """
    record = run.record
    metrics = {task: next(iter(record.best.val.get(task, {})), "") for task in record.tasks}
    probes = pack_probes(record, record.tasks, probes_per_method(1, len(record.tasks)))
    experts = pack_experts([record])
    cost = record.cost
    stopped = {
        "patience": "stopped early, when validation no longer improved",
        "epochs": "ran through all its epochs",
    }.get(record.stopped, record.stopped)
    return {
        "kind": "fit",
        "label": label,
        "title": f"{record.suite}: {record.method}",
        "suite": record.suite,
        "verdict": [
            f"One training of {record.method} on {record.suite} with seed {record.seed}: "
            f"{cost.steps} steps in {cost.seconds:.1f} s.",
            f"It {stopped}; the weights of step {record.best.step} were kept.",
        ],
        "created": "",
        "command": "",
        "versions": record.versions,
        "seeds": [record.seed],
        "tasks": [
            {"name": task, "kind": "", "metric": metrics[task], "direction": "", "unit": ""}
            for task in record.tasks
        ],
        "methods": [{"name": record.method, "cost": to_json(cost)}],
        "substitutes": record.notes,
        "curves": {
            record.method: pack_lines(
                seed_mean([record], metrics), points_per_line(3 * len(record.tasks))
            )
        },
        "probes": {record.method: probes} if probes else {},
        "experts": {record.method: experts} if experts else {},
        "settings": record.settings,
        "engine": record.engine,
        "kept": [
            {
                "task": task,
                "metric": metrics[task],
                "value": digits(record.best.val.get(task, {}).get(metrics[task])),
                "best_step": record.best_per_task.get(task, (None, None))[0],
                "best_value": digits(record.best_per_task.get(task, (None, None))[1]),
            }
            for task in record.tasks
        ],
        "kept_step": record.best.step,
        "score": digits(record.best.score),
    }


def _method_row(method: MethodResult, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": method.name,
        "reference": method.name == SINGLE,
        "delta_m": digits(method.delta_m),
        "interval": _ends(method.interval),
        "worst": {"task": method.worst[0], "gain": digits(method.worst[1])}
        if method.worst
        else None,
        "counts": method.counts,
        "cost": {key: digits(value) for key, value in vars(method.cost).items()},
        "source": method.source,
        "engine": method.engine,
        "notes": method.notes,
        "cells": [
            {
                "mean": digits(mean(outcome.values)),
                "spread": digits(spread(outcome.values)),
                "gain": digits(outcome.gain),
                "interval": _ends(outcome.interval),
                "verdict": outcome.verdict,
                "why": outcome.why,
            }
            for outcome in (method.outcomes[name] for name in names)
        ],
    }


def _ranked(run: Compared) -> list[MethodResult]:
    """Return the methods: single-task models first, then by delta-m, undefined ones last."""
    return sorted(
        run.methods,
        key=lambda m: (m.name != SINGLE, m.delta_m is None, -(m.delta_m or 0.0)),
    )


def _single_lines(method: MethodResult, tasks: Sequence[TaskInfo]) -> list[Lines]:
    """Return one set of lines per task: every single-task model has its own steps."""
    return [
        seed_mean(
            [
                _load(by_task[task.name], [task.name])
                for by_task in method.runs.values()
                if task.name in by_task
            ],
            {task.name: task.metric},
        )
        for task in tasks
    ]


def _load(folder: Path, tasks: Sequence[str]) -> Record:
    record = Record.load(folder / "record.json")
    if set(record.tasks) != set(tasks):
        raise RunError(
            f"{folder} trained {words.listing(record.tasks)}, but the result expects "
            f"{words.listing(tasks)}; the folder belongs to another comparison."
        )
    return record


def _ends(interval: tuple[float, float] | None) -> list[float | None] | None:
    return [digits(end) for end in interval] if interval else None


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
