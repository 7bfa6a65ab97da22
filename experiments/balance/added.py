"""What is added to a method: flat regions (F-MTL), or weights of IGB under a gradient method.

    python experiments/balance/added.py                                 # everything
    python experiments/balance/added.py --suites digits2 --add flat     # a part, without the table

The methods alone are compared first, in `runs/balance/alone/SUITE`, as `polytask compare` does. A
copy of the folder that `experiments/compare/run.py` left in `runs/SUITE` saves most of those runs.
Plan: README.md beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import store
import torch

from polytask.fit import FitConfig
from polytask.recipes import Job, Plan, compare, load_suite, test, train
from polytask.records import read_json

SUITES = ("digits2", "tox21")
FLAT = {name: f"{name}+flat-regions" for name in ("equal", "pcgrad", "cagrad", "imtl-g")}
IGB = {name: f"igb-v1+{name}" for name in ("pcgrad", "cagrad", "imtl-g")}
ADDED = {"flat": FLAT, "igb": IGB}
SEEDS = {"flat": 3, "igb": 5}
"""How many: fewer where a run takes more than a minute."""
ALONE = tuple(FLAT)


class Quiet:
    """Shows nothing of a comparison."""

    def begin(self, runs: Sequence[int]) -> None: ...

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Any) -> None: ...

    def done(self, phase: int, job: Job, fresh: bool) -> None: ...


def alone(suite_name: str) -> dict[str, Any]:
    """Return the comparison of the methods alone."""
    suite = load_suite(suite_name)
    config = FitConfig(epochs=suite.epochs, batch_size=suite.batch_size)
    plan = Plan(
        suite_name,
        ALONE,
        max(SEEDS.values()),
        tune=3,
        config=config,
        out=folder_of(suite_name),
    )
    return compare(plan, Quiet())


def folder_of(suite_name: str) -> Path:
    """Return where the comparison of the methods alone is."""
    return store.KEPT.runs / "alone" / suite_name


def with_addition(found: dict[str, Any], base: str, recipe: str, seed: int) -> list[float | None]:
    """Train the base with the addition; return each task's gain over its own single-task model."""
    folder = folder_of(found["suite"])
    of_base = read_json(folder / found["methods"][base]["runs"][str(seed)] / "run.json")
    # All but what is added is the base's: settings, data order, first weights, chosen epoch.
    config = FitConfig(**of_base["settings"])
    job = Job(
        suite=found["suite"],
        tasks=None,
        recipe=recipe,
        config=config,
        folder=store.KEPT.runs / "added" / f"{found['suite']}--{recipe}--s{seed}",
        reference=reference(found, folder),
    )
    train(job)
    scores = test(job)
    at = found["seeds"].index(seed)
    gains = []
    for task in load_suite(found["suite"]).tasks:
        score = scores[task.name][task.primary.name]
        single = found["methods"]["single"]["tasks"][task.name]["values"][at]
        gains.append(None if score is None else task.primary.gain(score, single))
    return gains


def reference(found: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the single-task models' validation values, which choose the best epoch."""
    values = {}
    for task in found["tasks"]:
        run = found["methods"]["single"]["runs"][task["name"]][str(found["seeds"][0])]
        best = read_json(folder / run / "record.json")["best"]
        values[task["name"]] = best["val"][task["name"]][task["metric"]]
    return values


def compared(
    suites: Sequence[str],
    bases: Sequence[str],
    added: Mapping[str, Mapping[str, str]],
    seeds: Mapping[str, int],
) -> dict[str, Any]:
    """Return of each suite the test delta-m of the bases alone, and with what is added, per seed.

    added: by what is added, base -> recipe. seeds: by what is added, how many.
    """
    table: dict[str, Any] = {}
    for name in suites:
        found = alone(name)
        tasks = found["methods"]["equal"]["tasks"]
        of_suite = table[name] = {"seeds": found["seeds"], "picked": {}, "delta_m": {}}
        for base in bases:
            of_tasks = [found["methods"][base]["tasks"][task]["gains"] for task in tasks]
            of_suite["picked"][base] = found["tuning"]["picked"][base]["*"]
            of_suite["delta_m"][base] = [_mean(gains) for gains in zip(*of_tasks, strict=True)]
            for add, recipes in added.items():
                if base not in recipes:
                    continue
                taken = found["seeds"][: seeds[add]]
                gains = [with_addition(found, base, recipes[base], seed) for seed in taken]
                of_suite["delta_m"][recipes[base]] = [_mean(of_seed) for of_seed in gains]
                print(name, recipes[base], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--add", nargs="+", choices=ADDED, default=list(ADDED))
    parser.add_argument("--bases", nargs="+", choices=ALONE, default=list(ALONE))
    options = parser.parse_args()
    torch.set_num_threads(1)
    added = {name: ADDED[name] for name in options.add}
    table = compared(options.suites, options.bases, added, SEEDS)
    everything = (list(SUITES), list(ADDED), list(ALONE))
    if (options.suites, options.add, options.bases) == everything:
        store.write("added", {"added": ADDED, "suites": table})


def _mean(gains: Sequence[float | None]) -> float:
    return fmean(gain for gain in gains if gain is not None)


if __name__ == "__main__":
    main()
