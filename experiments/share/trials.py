"""Trials: trainings of recipes on the suites an experiment makes, with a setting picked alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from found import KEPT

from polytask.evaluate import delta_m
from polytask.fit import FitConfig, fit, primary
from polytask.parsing import parse
from polytask.recipes import build
from polytask.records import Record
from polytask.share import SharedModel
from polytask.suites import Suite
from polytask.tasks import TaskSet

Setting = tuple[float, float]
"""Learning rate and weight decay."""
Scored = Callable[[Mapping[str, float]], float]
"""Primary metrics per task on validation -> one number, up is better."""


def tuned(
    name: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    make: Callable[[Setting, int], dict[str, Any]],
) -> dict[str, Any]:
    """Return the setting whose first seed has the best "score", and its run of every seed."""

    def one(setting: Setting, seed: int) -> dict[str, Any]:
        file = f"{name}--lr{setting[0]:g}-wd{setting[1]:g}--s{seed}"
        return KEPT.run(file, lambda: make(setting, seed))

    picked = max(settings, key=lambda setting: one(setting, seeds[0])["score"])
    return {"picked": picked, "runs": [one(picked, seed) for seed in seeds]}


def trained(
    suite: Suite,
    recipe: str,
    setting: Setting,
    seed: int,
    score: Scored,
    model: SharedModel | None = None,
) -> tuple[SharedModel, Record]:
    """Return the model with its best weights, and the record.

    model: one that no recipe makes; its first weights are its maker's.
    """
    lr, decay = setting
    config = FitConfig(
        epochs=suite.epochs,
        batch_size=suite.batch_size,
        lr=lr,
        weight_decay=decay,
        patience=0,
        probes=0,
        seed=seed,
    )
    made, balance, mix = build(suite, parse(recipe), seed)
    model = made if model is None else model
    record = fit(suite, model, balance, mix, config, lambda now, _: score(now), method=recipe)
    return model, record


def mean_of(values: Mapping[str, float]) -> float:
    """Return the mean over tasks, of metrics of one sort."""
    return fmean(values.values())


def against(tasks: TaskSet, reference: Mapping[str, float]) -> Scored:
    """Return delta-m in % against `reference`, for metrics of several sorts."""
    return lambda values: delta_m(tasks, values, reference)


def reference(name: str, suite: Suite, setting: Setting, seed: int) -> Mapping[str, float]:
    """Return hard sharing's validation values after all epochs, for `against`."""
    epochs = iter(range(suite.epochs))

    def make() -> dict[str, Any]:
        _, record = trained(suite, "hard", setting, seed, lambda _: float(next(epochs)))
        return dict(primary(record.best.val, suite.tasks))

    return KEPT.run(f"{name}/reference", make)


def shorter(suite: Suite, rows: int, epochs: int, batch_size: int) -> Suite:
    """Return the suite with the first training rows of every stream alone, and these epochs."""
    train = tuple(stream.take(torch.arange(min(rows, len(stream)))) for stream in suite.train)
    return replace(suite, train=train, epochs=epochs, batch_size=batch_size)


def relative(
    tasks: TaskSet, found: Mapping[str, Any], rival: str = "hard"
) -> dict[str, list[float]]:
    """Return of each model and seed the delta-m of "test" against the rival's mean, in %."""
    means = {t: fmean(run["test"][t] for run in found[rival]["runs"]) for t in tasks.names}
    return {
        name: [delta_m(tasks, run["test"], means) for run in of["runs"]]
        for name, of in found.items()
    }
