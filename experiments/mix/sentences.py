"""Runs of mixes on some of the sets of `sentences`, cut to sizes; the weights of the last epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from found import KEPT, Table, said, section, spread

from polytask import suites
from polytask.fit import FitConfig, Meters, fit, primary, validate
from polytask.parsing import parse
from polytask.recipes import build
from polytask.suites import Suite

BATCH = 64

Score = Callable[[Mapping[str, float]], float]
"""Accuracies of a run by task -> one number, up is better."""


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


def compared(
    name: str,
    mixes: Mapping[str, Sequence[str]],
    score: Callable[[str], Score],
    *,
    rows: Mapping[str, int],
    epochs: int,
    lrs: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return of each mix the recipe and learning rate best on validation with the first seed, and
    test accuracies of all seeds.

    mixes: recipes to pick from. score: mix -> what its accuracies are worth.
    """

    def one(recipe: str, lr: float, seed: int) -> dict[str, Any]:
        file = f"{name}/{recipe.replace('/', '-')}--lr{lr:g}--s{seed}"
        return KEPT.run(file, lambda: trained(rows, recipe, seed, epochs, lr))

    found = {}
    for mix, recipes in mixes.items():
        tried, worth = [(recipe, lr) for recipe in recipes for lr in lrs], score(mix)
        recipe, lr = max(tried, key=lambda pair: worth(one(*pair, seeds[0])["val"]))
        runs = [one(recipe, lr, seed)["test"] for seed in seeds]
        found[mix] = {"picked": {"recipe": recipe, "lr": lr}, "test": runs}
    return found


def accuracies(table: Table, title: str, columns: Mapping[str, str]) -> str:
    """Return the part of the page: what was picked, and test accuracies. columns: task -> head."""
    rows = []
    for name, found in table["methods"].items():
        scores = [spread([run[task] for run in found["test"]]) for task in columns]
        rows.append([name, said(found["picked"]), *scores])
    head = ["mix", "picked", *columns.values()]
    return section(table, f"{title}: test accuracy in %", head, rows)
