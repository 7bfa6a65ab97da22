"""Learning to Branch on digits2: the tree that was found, trained from new weights.

    python experiments/share/branched_digits2.py

Plan: README.md beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid

from polytask.balance import Equal
from polytask.evaluate import Claim
from polytask.fit import FitConfig, Meters, Silent, fit, validate
from polytask.mix import Proportional
from polytask.parsing import parse
from polytask.recipes import build, load_suite
from polytask.recipes.plan import GRID
from polytask.recipes.train import score_for
from polytask.records import Point, Record
from polytask.share import Branched, LearningToBranch, SharedModel, TrunkModel

SUITE = "digits2"
COMPARED = KEPT.folder.parent / "compare" / "digits2-sharing.json"
"""The comparison of architectures: its single-task models, and the settings it picked."""
SEARCH = "learning-to-branch"

Setting = Mapping[str, float]
SETTINGS: list[Setting] = [{"lr": lr, "weight_decay": decay} for lr, decay in GRID[:3]]


class LastTree(Silent):
    """The tree after the last epoch; the weights that are kept are of the best one."""

    def __init__(self, model: SharedModel) -> None:
        self._model = model
        self.paths: dict[str, tuple[str, ...]] = {}

    def point(self, point: Point) -> None:
        trunk = getattr(self._model, "trunk", None)
        if isinstance(trunk, LearningToBranch):
            self.paths = trunk.paths()


def searched(setting: Setting, seed: int) -> dict[str, Any]:
    """Train the search; return the model's test values, and the tree."""
    model, _, _ = build(load_suite(SUITE), parse(SEARCH), seed)
    last = LastTree(model)
    return scored(model, SEARCH, setting, seed, last) | {"tree": last.paths}


def branched(paths: Mapping[str, list[str]], setting: Setting, seed: int) -> dict[str, Any]:
    """Train the tree from new weights, with the encoder and heads that the search began with."""
    suite = load_suite(SUITE)
    model, _, _ = build(suite, parse(SEARCH), seed)
    assert isinstance(model, TrunkModel)
    widths = (model.trunk.width,) * len(next(iter(paths.values())))
    torch.manual_seed(seed)
    trunk = Branched({task: tuple(path) for task, path in paths.items()}, suite.width, widths)
    plain = TrunkModel.build(model.encoder, trunk, suite.tasks)
    return scored(plain, "branched", setting, seed)


def scored(
    model: SharedModel, name: str, setting: Setting, seed: int, progress: Silent | None = None
) -> dict[str, Any]:
    """Train as a comparison does; return the best validation score and the test values."""
    suite = load_suite(SUITE)
    config = FitConfig(
        epochs=suite.epochs, batch_size=suite.batch_size, patience=0, probes=0, seed=seed, **setting
    )
    record: Record = fit(
        suite, model, Equal(), Proportional(), config, score_for(suite.tasks, None),
        method=name, progress=progress,
    )  # fmt: skip
    values = validate(model, suite.test, Meters(suite.tasks), 256, "cpu", "float32")
    test = {task.name: values[task.name][task.primary.name] for task in suite.tasks}
    return {"val": record.best.score, "test": test}


def main() -> None:
    torch.set_num_threads(1)
    compared = json.loads(COMPARED.read_text())
    seeds, picked = compared["seeds"], compared["tuning"]["picked"]
    runs: dict[str, list[dict[str, Any]]] = {}
    setting = picked[SEARCH]["*"]
    runs[SEARCH] = [
        KEPT.run(f"branched_digits2/{SEARCH}--s{s}", partial(searched, setting, s)) for s in seeds
    ]
    trees = [found["tree"] for found in runs[SEARCH]]

    def of_tree(at: int, seed: int) -> dict[str, Any]:
        run = partial(branched, trees[seeds.index(seed)], SETTINGS[at], seed)
        return KEPT.run(f"branched_digits2/branched-{at}--s{seed}", run)

    best = max(range(len(SETTINGS)), key=lambda at: of_tree(at, seeds[0])["val"])
    runs["branched"] = [of_tree(best, seed) for seed in seeds]
    models = {
        name: {"test": [found["test"] for found in of], "delta_m": delta_m(compared, of)}
        for name, of in runs.items()
    }
    models["hard"] = of_comparison(compared, "hard")
    settings = {name: picked[name]["*"] for name in (SEARCH, "hard")} | {"branched": SETTINGS[best]}
    table = {"seeds": seeds, "settings": settings, "trees": trees, "models": models}
    KEPT.write("branched_digits2", table)


def delta_m(compared: Table, runs: list[dict[str, Any]]) -> list[float]:
    """Return each seed's mean gain over the comparison's single-task models of the seed, in %."""
    single = compared["methods"]["single"]["tasks"]
    found = []
    for at, run in enumerate(runs):
        gains = [
            task.primary.gain(run["test"][task.name], single[task.name]["values"][at])
            for task in load_suite(SUITE).tasks
        ]
        found.append(fmean(gains))
    return found


def of_comparison(compared: Table, name: str) -> dict[str, Any]:
    """Return a model of the comparison: each seed's test values and mean gain."""
    tasks = compared["methods"][name]["tasks"]
    seeds = range(len(compared["seeds"]))
    return {
        "test": [{task: tasks[task]["values"][at] for task in tasks} for at in seeds],
        "delta_m": [fmean(tasks[task]["gains"][at] for task in tasks) for at in seeds],
    }


def claims(table: Table) -> Iterator[Claim]:
    """The tree trained anew against the model of the search and against hard sharing."""
    found = {name: model["delta_m"] for name, model in table["models"].items()}
    setting = "digits2, the tree after the search's last epoch, 15 epochs from new weights"
    yield claim(
        table, SEARCH, "its tree trained anew beats the model of the search (digits2)", setting,
        minus(found["branched"], found[SEARCH]), "greater", 0.5,
        "points of delta-m over the model of the search",
    )  # fmt: skip
    yield claim(
        table, SEARCH, "its tree trained anew is no worse than hard sharing (digits2)", setting,
        minus(found["branched"], found["hard"]), "no worse", 1.0, "points of delta-m over hard",
    )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for name, model in table["models"].items():
        tasks = list(model["test"][0])
        values = [spread([seed[task] for seed in model["test"]]) for task in tasks]
        rows.append([name, said(table["settings"][name]), *values, spread(model["delta_m"])])
    trees = "; ".join(
        ", ".join(f"{task} {'/'.join(path)}" for task, path in tree.items())
        for tree in table["trees"]
    )
    head = ["model", "setting", *tasks, "delta-m"]
    words = f"Trees found, a task's nodes from the first layer on, seed by seed: {trees}."
    return grid(table, "Learning to Branch: the tree trained anew on digits2", head, rows, words)


if __name__ == "__main__":
    main()
