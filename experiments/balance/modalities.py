"""FULLER's calibration on a model with two modality branches.

    python experiments/balance/modalities.py

Plan: README.md beside this file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import store
import torch
from two_branches import two_modalities

from polytask.evaluate import delta_m
from polytask.fit import FitConfig, Meters, fit, primary, validate
from polytask.parsing import parse
from polytask.recipes import build
from polytask.suites import Suite

SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3)
DECAY = 1e-2
WRAPPED = "imtl-g"
METHODS = ("equal", WRAPPED, f"{WRAPPED}+feature-level", f"{WRAPPED}+fuller")


@functools.cache
def suite() -> Suite:
    return two_modalities()


def run(recipe: str, lr: float, seed: int, against: Mapping[str, float]) -> dict[str, Any]:
    """Train once; return the best validation score and the test values of those weights.

    against: validation values that the score is relative to; empty: the last epoch is the best.
    """
    data = suite()
    config = FitConfig(
        epochs=data.epochs,
        batch_size=data.batch_size,
        lr=lr,
        weight_decay=DECAY,
        patience=0,
        probes=0,
        seed=seed,
    )
    epochs = iter(range(data.epochs))

    def score(val: Mapping[str, float], first: Mapping[str, float]) -> float:
        return delta_m(data.tasks, val, against) if against else float(next(epochs))

    model, balance, mix = build(data, parse(recipe), seed)
    record = fit(data, model, balance, mix, config, score, method=recipe)
    test = validate(model, data.test, Meters(data.tasks, primary_only=True))
    return {
        "score": record.best.score,
        "val": primary(record.best.val, data.tasks),
        "test": primary(test, data.tasks),
        "engine": record.engine,
        "seconds": record.cost.seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    first = store.kept("modalities/reference", lambda: run("equal", RATES[0], SEEDS[0], {}))
    found: dict[str, Any] = {}
    for recipe in METHODS:

        def one(lr: float, seed: int, recipe: str = recipe) -> dict[str, Any]:
            file = f"modalities/{recipe}--lr{lr:g}--s{seed}"
            return store.kept(file, lambda: run(recipe, lr, seed, first["val"]))

        picked = max(RATES, key=lambda lr: one(lr, SEEDS[0])["score"])
        runs = [one(picked, seed) for seed in SEEDS]
        found[recipe] = {
            "lr": picked,
            "test": [each["test"] for each in runs],
            "engine": runs[0]["engine"],
        }
    tasks = suite().tasks
    reference = {t: fmean(test[t] for test in found["equal"]["test"]) for t in tasks.names}
    for of_method in found.values():
        of_method["delta_m"] = [delta_m(tasks, test, reference) for test in of_method["test"]]
    settings = {"epochs": suite().epochs, "batch_size": suite().batch_size, "rates": RATES}
    table = {
        "seeds": SEEDS,
        "settings": settings,
        "metrics": {task.name: task.primary.name for task in tasks},
        "wrapped": WRAPPED,
        "methods": found,
    }
    store.write("modalities", table)


if __name__ == "__main__":
    main()
