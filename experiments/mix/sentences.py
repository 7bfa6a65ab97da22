"""Runs of mixes on some of the sets of `sentences`, cut to sizes; the weights of the last epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from found import KEPT

from polytask import suites
from polytask.fit import FitConfig, Meters, fit, primary, validate
from polytask.parsing import parse
from polytask.recipes import build
from polytask.suites import Suite

BATCH = 64


@functools.lru_cache(maxsize=4)
def cut(rows: tuple[tuple[str, int], ...], seed: int) -> Suite:
    """Return the suite of these sets alone, with as many training rows each, drawn by the seed."""
    suite = suites.load("sentences").only([name for name, _ in rows])
    random = torch.Generator().manual_seed(seed)
    train = tuple(
        stream.take(torch.randperm(len(stream), generator=random)[: dict(rows)[stream.name]])
        for stream in suite.train
    )
    return replace(suite, train=train)


def trained(
    rows: Mapping[str, int], recipe: str, seed: int, epochs: int, lr: float
) -> dict[str, Any]:
    """Train once; return validation and test accuracies of the last epoch, in %."""
    suite = cut(tuple(rows.items()), seed)
    model, balance, mix = build(suite, parse(recipe), seed)
    config = FitConfig(
        epochs=epochs, batch_size=BATCH, lr=lr, patience=0, probes=0, min_epoch_steps=1, seed=seed
    )
    late = iter(range(epochs))  # a score that rises: the last weights are kept
    fit(suite, model, balance, mix, config, lambda _, __: float(next(late)), method=recipe)
    found = {}
    for split in ("val", "test"):
        values = validate(model, suite.split(split), Meters(suite.tasks, primary_only=True))
        found[split] = {t: 100 * v for t, v in primary(values, suite.tasks).items()}
    return found


def picked(
    name: str,
    recipes: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    make: Callable[[str, int, float], dict[str, Any]],
    score: Callable[[Mapping[str, float]], float],
) -> dict[str, Any]:
    """Return the recipe and learning rate best on validation with the first seed, and all runs."""

    def one(recipe: str, lr: float, seed: int) -> dict[str, Any]:
        file = f"{name}/{recipe.replace('/', '-')}--lr{lr:g}--s{seed}"
        return KEPT.run(file, lambda: make(recipe, seed, lr))

    tried = [(recipe, lr) for recipe in recipes for lr in lrs]
    recipe, lr = max(tried, key=lambda pair: score(one(*pair, seeds[0])["val"]))
    runs = [one(recipe, lr, seed)["test"] for seed in seeds]
    return {"picked": {"recipe": recipe, "lr": lr}, "test": runs}
