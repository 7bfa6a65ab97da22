"""The page `docs/results.md`, from the tables in this folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from statistics import fmean, geometric_mean, stdev
from textwrap import wrap
from typing import Any

from polytask.recipes import AUTO, METHODS

Table = Mapping[str, Any]

SIGNS = {"gained": "▲", "lost": "▼", "undecided": "", "reference": ""}

BELOW = {
    "tox21": (
        "a network for one assay alone has a few hundred positive molecules and a thousand bits to "
        "fit them with, and stays below logistic regression with a strong penalty (0.795 listed; "
        "0.808 on this very split). One network for all assays is above both."
    ),
    "sider": (
        "the listed 0.669 is another random split of 1,427 molecules. Over twelve splits logistic "
        "regression got 0.626 to 0.667, on this very split 0.642, which both networks exceed."
    ),
    "school": (
        "a network for one school picks its settings and its epoch on about 16 validation pupils. "
        "On this very split ridge per school gets 0.315 with its penalty picked on validation and "
        "0.320 with the best one in hindsight. One network for all schools is above all of these."
    ),
}
"""Why a score is below a linear model's, where one is."""

HEAD = """# Results

What `polytask compare` found on every suite. Each section is one command; its run folder holds the
full report. All figures are on the test split, which the final runs read once.

- **delta-m**: mean over tasks of the relative change of the primary metric against the task's own
  single-task model, in %, signed so that up is better. In brackets the 95 % interval over seeds
  (paired Student's t); with one seed there is none, and no verdict.
- **▲ ▼**: tasks that gained or lost, their interval lying above or below 0. At 95 %, a twentieth of
  the tasks that did not change get a verdict by chance.
- **time, parameters, memory**: training time and parameters against all single-task models
  together, memory of an update against the largest of them. Times were taken with two runs at once
  on two cores that had other work too, so they are rough; *step* in the first table was measured
  apart.
- Every method and every single-task model tried the same settings on the validation split (see
  `--tune`), stopped by the same rule and used the same encoder.

Four suites were compared with every balance method, the others with five, and five with
architectures. The more methods, the more of the distance between the first and the last is chance:
read intervals, not ranks.

What these figures are not blind to:

- The test split is read once by each final run, but the suites' default encoders, epochs and some
  splits were chosen with test scores of trial runs in view, so they are calibration, not a blind
  benchmark. This touches single-task and joint models alike.
- Six suites were first compared with another third setting, learning rate 3e-4 and decay 0.01. It
  became 1e-3 with decay 3 after single-task tox21 came
  out below the linear model; the trial that chose it (four tasks, one seed) showed test scores. The
  first round's delta-m of equal weights: digits2 -9.34, clintox +1.34, tox21 +4.36, sider +4.16,
  sarcos -5.56, census +0.07. School and sentences ran with the new setting alone; snips and camvid
  do not reach the third one.
- School got its second and third seed after its first had been seen.
- Sentences was first run with one seed and three settings (delta-m: equal -1.11, uncertainty -1.67,
  dwa -1.03, pcgrad -1.03, aligned-mtl -0.83). It was run again with three seeds, the first setting
  alone, at most 15 epochs and a patience of 4, all for time. Twelve methods were seen before the
  others were run, by the same version; the order had been written down before.
- The tables of five methods come from successive commits of one day, whose changes were meant for
  speed alone. Those of every method were made later, each by one version.
- Architectures on census, clicks and tox21 had been compared once with fewer of them; those tables
  were replaced whole, by runs on the CPU of another machine (see the versions), with nothing else
  changed. Camvid's comparison of architectures was first begun with 30 epochs on a GPU, and was cut
  off before anything was tested; its validation scores had been seen when 16 epochs were chosen,
  for time. Architectures of rows ran there later, on a GPU (H200) under other versions, beside
  single-task models of their own: read each of camvid's two tables by itself.

Run them all again with `python experiments/compare/run.py`; the tables behind this page are in
[`experiments/compare`](../experiments/compare).
"""


FEW = 8
"""With more methods than this a table has them as rows, in the order of their delta-m."""

MOST = 20
"""With more methods than this a comparison is one of every method; a few may have failed."""


def markdown(tables: Mapping[str, Table], cost: Mapping[str, Any]) -> str:
    """Return the page. cost: what `../balance/cost.json` holds, empty where nothing is known."""
    full = {name: table for name, table in tables.items() if is_full(table)}
    sharing = {name: table for name, table in tables.items() if is_of_sharing(table)}
    searched = {name: table for name, table in tables.items() if is_of_auto(table)}
    others = {*sharing, *searched}
    balance = {name: table for name, table in tables.items() if name not in others}
    parts = [HEAD, _searches(searched, balance), _every(full, cost), _overview(balance)]
    parts.append(_architectures(sharing))
    parts += [_linear(balance), *(_section(name, table) for name, table in tables.items())]
    return "\n".join(parts)


def is_of_sharing(table: Table) -> bool:
    """Return whether the comparison is one of architectures."""
    return "hard" in table["methods"]


def is_of_auto(table: Table) -> bool:
    """Return whether the comparison is one of a search."""
    return AUTO in table["methods"]


def is_full(table: Table) -> bool:
    """Return whether the comparison is one of every balance method."""
    return len(table["methods"]) > MOST and not is_of_sharing(table)


def is_long(table: Table) -> bool:
    """Return whether the table has methods as rows."""
    return len(table["methods"]) > FEW + 1


def _searches(searched: Mapping[str, Table], balance: Mapping[str, Table]) -> str:
    """Return the table of `auto` on every suite, and the means of it and of single methods."""
    if not searched:
        return ""
    rows, alike = [], {}
    for name, table in searched.items():
        method, suite = table["methods"][AUTO], table["suite"]
        found, counts = method["searches"], method["counts"]
        hows = sum((Counter(one["hows"]) for one in found), Counter())
        served = ", ".join(f"{n / len(found):.3g} {how}" for how, n in hows.most_common())
        fixed = balance.get(suite, {"methods": {}})
        best = max(
            (m for m in fixed["methods"] if m != "single"), key=partial(delta, fixed), default=""
        )
        rows.append(
            [
                f"[{suite}](#{name})",
                str(len(table["tasks"])),
                _delta(method),
                f"{counts['gained']}, {counts['lost']}",
                f"{counts['gained_adjusted']}, {counts['lost_adjusted']}",
                cell(table, "equal"),
                f"{best} {delta(fixed, best):+.2f}" if best else "",
                f"x {fmean(one['seconds'] / one['alone_seconds'] for one in found):.2f}",
                f"x {fmean(one['work'] for one in found):.2f} of {found[0]['budget']:g}",
                f"x {fmean(one['of_single'] for one in found):.2f}",
                f"{fmean(one['models'] for one in found):.3g}: {served}",
            ]
        )
        alike[suite] = {AUTO: delta(table, AUTO)} | {
            m: delta(fixed, m) for m in fixed["methods"] if m != "single"
        }
    head = [
        "suite", "tasks", "auto", "▲, ▼", "tested together", "equal weights",
        "best of all methods there", "time", "arithmetic", "arithmetic of the reference",
        "models: tasks served by",
    ]  # fmt: skip
    everywhere = [m for m in alike[min(alike)] if all(m in of for of in alike.values())]
    means = sorted(((fmean(of[m] for of in alike.values()), m) for m in everywhere), reverse=True)
    worse = sum(
        len(one["worse_than_alone"])
        for table in searched.values()
        for one in table["methods"][AUTO]["searches"]
    )
    text = (
        "## No task is to lose: `polytask auto`\n\nDelta-m in %, against single-task models that "
        "were each tuned. `auto` searches anew with every seed, within a budget counted in "
        "arithmetic (0.5 of one run of every task alone for 8 tasks or more, 2 for fewer; the "
        "first model of all tasks is trained whatever it costs), and its cost is that of all it "
        "tried. *tested together*: the tasks whose gain or loss stands when all tasks of the suite "
        "are tested at once (a false discovery rate of 5 %). *time* and *arithmetic* are against "
        "one run of every task alone, as each search saw it (its own runs alone, or what is known "
        "of them, else as many epochs as its first model of all tasks); *arithmetic of the "
        "reference* is against one run each of the single-task models that delta-m is against, "
        "trained with more patience. In the sections below, times are against these, trained at "
        "other hours of a busy machine. The best method of a suite was found by its test "
        "scores: of 28 on digits2, tox21, census and sentences, of 4 or 5 elsewhere. While `auto` "
        "was made, test scores of trial searches with the first seed on six of these suites were "
        "in view, so this is no blind benchmark. How it works: [auto](auto.md).\n\n"
    )
    listed = ", ".join(f"{m} {value:+.2f}" for value, m in means)
    after = (
        f"\nMean over these suites: {listed}. On validation, tasks served worse than by a model "
        f"trained alone to its end, beyond the 95 % interval: {worse}.\n"
    )
    return text + grid(head, rows) + after


def _every(full: Mapping[str, Table], cost: Mapping[str, Any]) -> str:
    """Return the table of every method on the suites that were compared with all of them."""
    if not full:
        return ""
    times = step_times(cost)
    rows = [
        [
            name,
            *[cell(table, name) for table in full.values()],
            f"{rank:.1f}",
            f"x {times[name]:.2f}" if name in times else "",
        ]
        for name, rank in ranked(full)
    ]
    head = ["method", *(f"[{name}](#{name})" for name in full), "mean rank", "step"]
    text = (
        "## Every balance method: delta-m in %\n\n"
        "Sorted by the mean of a method's ranks on these suites. *step*: time of a training step "
        "against equal weights on the same model and batches, geometric mean over suites "
        "(`python experiments/balance/cost.py`). Neighbours in such a list are rarely told apart "
        "by three seeds; what follows from it for a choice is in [balance](balance.md).\n\n"
    )
    return text + grid(head, rows)


def cell(table: Table, method: str) -> str:
    """Return the delta-m of a method with its interval, or that it failed, or nothing."""
    if method in table.get("failed", {}):
        return "failed"
    return _delta(table["methods"][method]) if method in table["methods"] else ""


def ranked(full: Mapping[str, Table]) -> list[tuple[str, float]]:
    """Return every method with the mean of its ranks, best first; one that failed is last there."""
    names = dict.fromkeys(
        m for t in full.values() for m in (*t["methods"], *t.get("failed", {})) if m != "single"
    )
    places: dict[str, list[int]] = {name: [] for name in names}
    for table in full.values():
        order = sorted(names, key=lambda name: -delta(table, name))
        for name in names:
            places[name].append(1 + order.index(name))
    return sorted(((n, fmean(p)) for n, p in places.items()), key=lambda pair: pair[1])


def delta(table: Table, method: str) -> float:
    """Return a method's delta-m, minus infinity where it has none."""
    found = table["methods"].get(method, {}).get("delta_m")
    return -inf if found is None else float(found)


def step_times(cost: Mapping[str, Any], what: str = "time") -> dict[str, float]:
    """Return each method's time of a step (or "memory") against equal weights, geometric mean
    over suites."""
    ratios: dict[str, list[float]] = {}
    for suite in cost.get("suites", {}).values():
        for method, found in suite["methods"].items():
            if what in found:
                ratios.setdefault(method, []).append(found[what])
    return {method: geometric_mean(found) for method, found in ratios.items()}


def _overview(tables: Mapping[str, Table]) -> str:
    rows = [
        [
            f"[{name}](#{name})",
            str(len(table["tasks"])),
            str(len(table["seeds"])),
            *[cell(table, m) for m in METHODS],
        ]
        for name, table in tables.items()
    ]
    head = ["suite", "tasks", "seeds", *METHODS]
    return "## Every suite: delta-m in % of five methods\n\n" + grid(head, rows)


def _architectures(sharing: Mapping[str, Table]) -> str:
    """Return the table of every architecture on the suites that were compared with them."""
    if not sharing:
        return ""
    names = dict.fromkeys(m for t in sharing.values() for m in (*t["methods"], *t["failed"]))
    rows = [[n, *[cell(t, n) for t in sharing.values()]] for n in names if n != "single"]
    names_of = Counter(t["suite"] for t in sharing.values())
    head = [
        "architecture",
        *(
            f"[{t['suite'] if names_of[t['suite']] == 1 else name}](#{name})"
            for name, t in sharing.items()
        ),
    ]
    text = (
        "## Architectures: delta-m in %\n\nEqual weights, one model for all tasks; `hard` is one "
        "encoder with a head per task. Empty: not compared there. Each has its default sizes, so "
        "that they differ in parameters and time: see the sections. `learning-to-branch` is the "
        "model of the search, trained on drawn trees; the tree it finds is to be trained after "
        "it.\n\n"
    )
    return text + grid(head, rows)


def _section(name: str, table: Table) -> str:
    about, tuning = table["about"], table["tuning"]
    lines = [
        f"## {name}\n",
        f"{about['title']}. {about['protocol']}\n",
        f"```\n{_folded(table['command'])}\n```\n",
        f"Python {table['versions']['python']}, torch {table['versions']['torch']}, "
        f"polytask {table['versions']['polytask']}; {len(tuning['grid'])} settings tried; "
        f"licence of the data: {about['licence']}.\n",
        _methods(table),
    ]
    if len(table["tasks"]) <= 27:
        lines.append(_tasks(table))
    failed = table.get("failed", {})
    lines += [f"- {name} failed: {reason}" for name, reason in failed.items()]
    lines += [f"- {name}: {note}" for name, note in _substitutes(table)]
    lines += [f"- {note}" for note in table["notes"]]
    return "\n".join(lines) + "\n"


def _folded(command: str) -> str:
    """Return the command on lines of a page's width."""
    lines = wrap(command.replace(",", ", "), 96, break_on_hyphens=False)
    ends = ["\\" if line.endswith(",") else " \\" for line in lines[:-1]]
    return "\n".join(
        line.replace(", ", ",") + end for line, end in zip(lines, [*ends, ""], strict=True)
    )


def _substitutes(table: Table) -> list[tuple[str, str]]:
    """Return what methods used in place of what their sources ask, and how often."""
    found = []
    for name, method in table["methods"].items():
        updates = round(method["cost"]["steps"] * len(table["seeds"]))
        for note, count in method.get("notes", {}).items():
            found.append((name, f"{note}, in {count:,} of {updates:,} updates"))
    return found


def _in_order(table: Table) -> list[tuple[str, Any]]:
    """Return the single-task models, then the methods; many of them by delta-m."""
    methods = list(table["methods"].items())
    if is_long(table):
        methods[1:] = sorted(methods[1:], key=lambda item: -delta(table, item[0]))
    return methods


def _methods(table: Table) -> str:
    rows = []
    for name, method in _in_order(table):
        cost, counts, worst = method["cost"], method["counts"], method["worst"]
        if name == "single":
            rows.append(
                [name, "reference", "", "", "", f"{cost['seconds']:.0f} s", _mega(cost), ""]
            )
            continue
        rows.append(
            [
                name,
                _delta(method),
                f"{counts['gained']}",
                f"{counts['lost']}",
                "" if worst is None else f"{worst['task']} {worst['gain']:+.1f} %",
                f"x {cost['seconds_ratio']:.2f}",
                f"x {cost['parameters_ratio']:.3f}",
                "" if cost["memory_ratio"] is None else f"x {cost['memory_ratio']:.2f}",
            ]
        )
    head = ["method", "delta-m", "▲", "▼", "worst task", "time", "parameters", "memory"]
    return grid(head, rows)


def _mega(cost: Mapping[str, Any]) -> str:
    return f"{cost['parameters'] / 1e6:.2f} M"


def _tasks(table: Table) -> str:
    if is_long(table):
        return _gains(table)
    rows = []
    for task in table["tasks"]:
        name = task["name"]
        arrow = "↑" if task["direction"] == "max" else "↓"
        row = [f"{name} ({task['metric']} {arrow})"]
        for method in table["methods"].values():
            found = method["tasks"][name]
            row.append(f"{_score(found['values'])} {SIGNS[found['verdict']]}".strip())
        rows.append(row)
    return grid(["task", *table["methods"]], rows)


def _gains(table: Table) -> str:
    """Return scores of the single-task models, and what every method gained over them in %."""
    rows = []
    for name, method in _in_order(table):
        found = [method["tasks"][task["name"]] for task in table["tasks"]]
        if name == "single":
            rows.append(["single: score", *[_score(f["values"]) for f in found]])
            continue
        gains = ["undefined" if f["gain"] is None else f"{f['gain']:+.1f}" for f in found]
        signs = [SIGNS[f["verdict"]] for f in found]
        rows.append([name, *[f"{g} {s}".strip() for g, s in zip(gains, signs, strict=True)]])
    heads = [
        f"{task['name']} ({task['metric']} {'↑' if task['direction'] == 'max' else '↓'})"
        for task in table["tasks"]
    ]
    return grid(["gain in %", *heads], rows)


def _score(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    text = f"{fmean(known):.4g}"
    return text if len(known) < 2 else f"{text} ± {stdev(known):.1g}"


def _delta(method: Mapping[str, Any]) -> str:
    if method["delta_m"] is None:
        return "undefined"
    text = f"{method['delta_m']:+.2f}"
    bounds = method["delta_m_interval"]
    return text if bounds is None else f"{text} [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _mean_of(table: Table, method: str, metric: str) -> dict[str, float]:
    """Return per task the mean over seeds of any metric."""
    return {
        task: fmean(scores[metric] for scores in per_seed if scores[metric] is not None)
        for task, per_seed in table["methods"][method]["scores"].items()
    }


def _linear(tables: Mapping[str, Table]) -> str:
    """Return the table that holds scores against linear models on the same data."""
    rows: list[list[str]] = []

    def add(suite: str, what: str, linear: Mapping[str, float], metric: str, up: bool) -> None:
        if suite not in tables:
            return
        table = tables[suite]
        joint = _best(table)
        single, shared = (_mean_of(table, name, metric) for name in ("single", joint))
        for task, value in linear.items():
            pick = (
                (lambda s, t=task: fmean(s.values()))
                if task == "mean"
                else (lambda s, t=task: s[t])
            )
            found = [pick(single), pick(shared)]
            if metric == "R2" and what.startswith("MSE"):
                found = [1 - v for v in found]
            marks = [_mark(v, value, up) for v in found]
            rows.append(
                [
                    suite,
                    f"{what}, {task}",
                    f"{value:.3f}",
                    f"{found[0]:.3f}{marks[0]}",
                    f"{found[1]:.3f}{marks[1]} ({joint})",
                ]
            )

    add("tox21", "AUROC", {"mean": 0.795}, "AUROC", True)
    add("sider", "AUROC", {"mean": 0.669}, "AUROC", True)
    census = {"income": 0.934, "never_married": 0.993, "degree": 0.904}
    add("census", "AUROC", census, "AUROC", True)
    joints = (0.083, 0.119, 0.101, 0.049, 0.159, 0.286, 0.064)
    sarcos = {f"joint_{i}": value for i, value in enumerate(joints, 1)}
    add("sarcos", "MSE / variance", sarcos, "R2", False)
    if "school" in tables:
        rows += _school(tables["school"])
    head = ["suite", "score", "linear", "single-task", "best joint"]
    text = (
        "## Against linear models\n\nWhat logistic and ridge regression get on the same data "
        "(random splits of the same sizes, one seed; school: 5 seeds); the best joint model is the "
        "method with the highest delta-m.\n\n"
    )
    below = [
        f"- {suite}: {reason}"
        for suite, reason in BELOW.items()
        if any(row[0] == suite and "(below)" in "".join(row) for row in rows)
    ]
    return text + grid(head, rows) + "\n" + "".join(f"{line}\n" for line in below)


def _school(table: Table) -> list[list[str]]:
    """Explained variance over the test pupils of all schools at once, as papers report it."""
    joint = _best(table)
    sizes = table["rows"]["test"]
    found = []
    for method in ("single", joint):
        errors = [
            fmean(sizes[task] * scores["RMSE"] ** 2 for scores in per_seed)
            for task, per_seed in table["methods"][method]["scores"].items()
        ]
        found.append(1 - sum(errors) / table["total_squares"])
    rows = []
    for what, value in (("ridge per school", 0.321), ("ridge pooled", 0.337)):
        marks = [_mark(v, value, True) for v in found]
        rows.append(
            [
                "school",
                f"explained variance, {what}",
                f"{value:.3f}",
                f"{found[0]:.3f}{marks[0]}",
                f"{found[1]:.3f}{marks[1]} ({joint})",
            ]
        )
    return rows


def _mark(value: float, linear: float, up: bool) -> str:
    """Say so where a score is below the linear model's, at the three digits of its listing."""
    here = round(value, 3)
    return "" if (here >= linear if up else here <= linear) else " (below)"


def _best(table: Table) -> str:
    methods = {n: m["delta_m"] for n, m in table["methods"].items() if n != "single"}
    return max(methods, key=lambda n: -1e9 if methods[n] is None else methods[n])
