"""MAS: all tasks as one first, then split by what was seen; what that saves and costs.

    python experiments/relate/joint_split.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from trained import job, passes, tested

from polytask.evaluate import Claim, delta_m
from polytask.fit import affinity_of
from polytask.recipes import load_suite
from polytask.recipes.relating import for_grouping
from polytask.recipes.train import Job, train
from polytask.relate import mas

SEEDS = (0, 1, 2)
SUITES = {"sarcos": 14, "tox21": 4}
"""Epochs in all; the first half is joint."""

WATCHES = {"tag": "tag:every=2", "gradient-cosine": "gradient-cosine:every=5"}
SPLITS = (2, 3)

Groups = Sequence[Sequence[str]]


def run(suite: str, tasks: Sequence[str], seed: int, first: Job | None = None) -> Job:
    """Return the run of a group over all epochs, or over the second half from the joint weights."""
    epochs = SUITES[suite]
    whole = load_suite(suite).tasks.names
    name = "+".join(str(whole.index(task) + 1) for task in tasks)
    how = "all" if first is None else "on"
    return job(
        f"joint_split/{suite}/{how}-{name}--s{seed}", suite, tasks,
        epochs if first is None else epochs // 2, seed,
        start=None if first is None else first.folder,
    )  # fmt: skip


def scored(suite: str, runs: Sequence[Job], before: int, alone: dict[str, float]) -> dict[str, Any]:
    """Return delta-m over being alone on the test split, and the rows the encoders saw."""
    values: dict[str, float] = {}
    for one in runs:
        values |= tested(one)
    return {
        "delta_m": delta_m(load_suite(suite).tasks, values, alone),
        "passes": before + sum(map(passes, runs)),
        "groups": [list(one.tasks or ()) for one in runs],
    }


def random_like(groups: Groups, tasks: Sequence[str], generator: torch.Generator) -> Groups:
    """Return random groups of the same sizes, their tasks in order."""
    order = iter(torch.randperm(len(tasks), generator=generator).tolist())
    drawn = [sorted(next(order) for _ in group) for group in groups]
    return [[tasks[t] for t in group] for group in drawn]


def attempt(suite: str, seed: int) -> dict[str, Any]:
    """Return what each way to train comes to."""
    tasks = load_suite(suite).tasks.names
    singles = [run(suite, [task], seed) for task in tasks]
    alone: dict[str, float] = {}
    for one in singles:
        alone |= tested(one)
    first = job(
        f"joint_split/{suite}/first--s{seed}", suite, tasks, SUITES[suite] // 2, seed,
        watches=tuple(WATCHES.values()),
    )  # fmt: skip
    train(first)
    score = partial(scored, suite, alone=alone)

    def on(groups: Groups) -> dict[str, Any]:
        return score([run(suite, group, seed, first) for group in groups], passes(first))

    found = {
        "alone": score(singles, 0),
        "all together": score([run(suite, tasks, seed)], 0),
        # what the second half with a new optimiser is worth, without any split
        "all together, on": on([tasks]),
    }
    generator = torch.Generator().manual_seed(seed)
    for splits in SPLITS:
        for name, watch in WATCHES.items():
            groups = mas(for_grouping(affinity_of(first.folder, watch)), splits).groups
            found[f"{name}, {splits}, on"] = on(groups)
            if name == "tag":
                scratch = score([run(suite, group, seed) for group in groups], 0)
                found[f"{name}, {splits}, from scratch"] = scratch
                drawn = random_like(groups, tasks, generator)
                found[f"random, {splits}, on"] = on(drawn)
    return found


def main() -> None:
    torch.set_num_threads(1)
    suites = {}
    for suite in SUITES:
        runs = [
            KEPT.run(f"joint_split/{suite}--s{seed}", partial(attempt, suite, seed))
            for seed in SEEDS
        ]
        suites[suite] = {
            "epochs": SUITES[suite],
            "tasks": list(load_suite(suite).tasks.names),
            "ways": {
                way: {
                    "delta_m": [found[way]["delta_m"] for found in runs],
                    # against one model of all tasks over all epochs
                    "compute": [
                        found[way]["passes"] / found["all together"]["passes"] for found in runs
                    ],
                    "groups": [found[way]["groups"] for found in runs]
                    if way.endswith("on") and way[:3] != "all"
                    else [],
                }
                for way in runs[0]
            },
        }
    KEPT.write("joint_split", {"seeds": list(SEEDS), "suites": suites})


def claims(table: Table) -> Iterator[Claim]:
    for suite, one in table["suites"].items():
        ways = one["ways"]
        for splits in SPLITS:
            mine = ways[f"tag, {splits}, on"]
            cost = fmean(mine["compute"])
            setting = (
                f"{suite}, {len(one['tasks'])} tasks, {one['epochs']} epochs, hard sharing, one "
                f"setting; {splits} groups by TAG of the first half"
            )
            for rival, words, expected, named in (
                (f"tag, {splits}, from scratch",
                 "going on from joint weights is no worse than the same groups from scratch",
                 "no worse", "over the groups from scratch"),
                ("alone", "the split is no worse than every task alone", "no worse", "over alone"),
                ("all together", "the split is ahead of all tasks together", "greater",
                 "over all together"),
                (f"random, {splits}, on", "the split is ahead of a random one of the same sizes",
                 "greater", "over a random split"),
            ):  # fmt: skip
                other = ways[rival]
                yield claim(
                    table, "mas", f"{words} ({suite}, {splits} groups)", setting,
                    minus(mine["delta_m"], other["delta_m"]), expected, 0.5,  # type: ignore[arg-type]
                    f"points of delta-m {named}",
                    reason=f"with {100 * cost / fmean(other['compute']):.0f} % of its row passes",
                )  # fmt: skip


def section(table: Table) -> str:
    rows = [
        [suite, way, spread(of["delta_m"]), f"{fmean(of['compute']):.2f}"]
        for suite, one in table["suites"].items()
        for way, of in one["ways"].items()
    ]
    return grid(
        table, "MAS: all tasks first, then split by what was seen", ["suite", "way", "delta-m, %",
        "row passes"], rows,
        "Delta-m on the test split over every task alone with the same epochs. Row passes: rows "
        "that encoders saw in training, 1 for one model of all tasks over all epochs. `on`: from "
        "the weights of one model of all tasks, trained for the first half.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
