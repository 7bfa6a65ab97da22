"""Few-shot transfer: what was adapted to eleven text tasks meets a twelfth with 32 rows.

    python experiments/adapt/transfer.py    # goes on where it was killed

Plan and claims: README.md beside this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from minilm import BOTTLENECK, CONFIG, LORA, MHR, POLY, PROBE

from polytask.adapt import (
    AdapterFusion,
    ScaLearn,
    adapt,
    arrow_of,
    freeze_skills,
    route_evenly,
)
from polytask.evaluate import Claim
from polytask.fit import Meters, fit
from polytask.parsing import parse
from polytask.recipes.adapted import AdaptedModel, naming_tasks
from polytask.recipes.train import (
    Job,
    build,
    load_run,
    load_suite,
    score_for,
    suite_of,
    train,
    validated,
)
from polytask.share import HardSharing, SharedModel
from polytask.suites import Stream, Suite
from polytask.tasks import Task

TARGETS = ("cr", "entailment", "intent")
ROWS = 32
FEW = replace(CONFIG, epochs=3, min_epoch_steps=20, lr=3e-3)
SEEDS = (0, 1)
RUNS = KEPT.runs / "transfer"


def source(recipe: str, seed: int) -> AdaptedModel:
    """Return the model that a recipe gives on the sources, trained once per seed."""
    names = load_suite("minilm").tasks.names
    job = Job(
        suite="minilm",
        tasks=tuple(name for name in names if name not in TARGETS),
        recipe=recipe,
        config=replace(CONFIG, seed=seed, lr=1e-3),
        folder=RUNS / f"{recipe.replace(':', '-').replace('=', '-')}--s{seed}",
    )
    train(job)
    model = load_run(job, suite_of(job))
    assert isinstance(model, AdaptedModel)
    return model


def fresh(recipe: str, target: Task, seed: int) -> SharedModel:
    model, _, _ = build(load_suite("minilm").only((target.name,)), parse(recipe), seed)
    return model


def more(recipe: str, target: Task, seed: int) -> AdaptedModel:
    """Return the sources' model with one task more."""
    model = source(recipe, seed)
    torch.manual_seed(seed)
    model.add_task(target)
    return model


def routing(target: Task, seed: int) -> SharedModel:
    model = more(MHR, target, seed)
    freeze_skills(model.adapted)
    return model


def evenly(target: Task, seed: int) -> SharedModel:
    model = more(MHR, target, seed)
    route_evenly(model.adapted)
    return model


def routed(target: Task, seed: int) -> SharedModel:
    made = arrow_of(source(LORA, seed).adapted, tasks=(target.name,))
    made.parts.requires_grad_(False)
    return _headed(made, target, seed)


def reading(method: Callable[..., Any], target: Task, seed: int) -> SharedModel:
    sources = source(BOTTLENECK, seed).adapted
    base = sources.detach()
    return _headed(adapt(base, method(sources), (target.name,), seed=seed), target, seed)


def _headed(adapted: Any, target: Task, seed: int) -> AdaptedModel:
    torch.manual_seed(seed)
    head = {target.name: target.kind.head(load_suite("minilm").width)}
    return AdaptedModel(adapted, head, {target.name: target.kind.reads})


Make = Callable[[Task, int], SharedModel]

METHODS: dict[str, tuple[Make, float]] = {
    "probe of the base": (partial(fresh, PROBE), 3e-3),
    "all weights": (partial(fresh, "equal"), 2e-4),
    "LoRA of the target": (partial(fresh, LORA), 3e-3),
    "Polytropon": (partial(more, POLY), 3e-3),
    "MHR": (partial(more, MHR), 3e-3),
    "MHR-z": (routing, 3e-2),
    "MHR-mu": (evenly, 3e-3),
    "Arrow, its head alone": (routed, 3e-3),
    "ScaLearn": (partial(reading, ScaLearn), 3e-3),
    "AdapterFusion": (partial(reading, AdapterFusion), 3e-3),
}
"""Who makes the model that meets the target, and the learning rate."""

BETTER = (
    ("polytropon", "Polytropon", "LoRA of the target"),
    ("mhr", "MHR", "LoRA of the target"),
    ("scalearn", "ScaLearn", "LoRA of the target"),
    ("adapter-fusion", "AdapterFusion", "LoRA of the target"),
    ("mhr", "MHR", "Polytropon"),
    ("arrow", "Arrow, its head alone", "probe of the base"),
)
AS_GOOD = (("mhr", "MHR-z", "MHR"), ("mhr", "MHR-mu", "MHR"))


def few(suite: Suite, seed: int) -> Suite:
    """Return the suite with a few rows to train on, drawn with the seed: sources may be sorted."""

    def drawn(stream: Stream) -> Stream:
        generator = torch.Generator().manual_seed(seed)
        return stream.take(torch.randperm(len(stream), generator=generator)[:ROWS])

    return replace(suite, train=tuple(drawn(stream) for stream in suite.train))


def attempt(name: str, target: str, seed: int) -> dict[str, Any]:
    """Return the accuracy on the target's test rows, in %, and what was trained."""
    make, lr = METHODS[name]
    suite = few(load_suite("minilm").only((target,)), seed)
    model = make(suite.tasks[0], seed)
    if not isinstance(model, HardSharing):
        suite = naming_tasks(suite, model.tasks)
    recipe, config = parse("equal"), replace(FEW, lr=lr, seed=seed)
    record = fit(
        suite, model, recipe.build_balance(seed), recipe.build_mix(seed), config,
        score_for(suite.tasks, None), method=name,
    )  # fmt: skip
    values = validated(model, suite.test, Meters(suite.tasks), config)
    return {"accuracy": 100 * values[target]["accuracy"], "trained": record.cost.trained}


def accuracies(table: Table, name: str) -> list[float]:
    return [run["accuracy"] for runs in table["methods"][name].values() for run in runs]


def claims(table: Table) -> list[Claim]:
    made = []
    for expected, margin, planned, words in (
        ("greater", 0.0, BETTER, "does better than"),
        ("no worse", 2.0, AS_GOOD, "is no worse than"),
    ):
        for system, ours, rival in planned:
            made.append(
                claim(
                    table, system, f"few rows: {ours} {words} {rival}",
                    f"minilm, {ROWS} rows of each of {', '.join(TARGETS)}",
                    minus(accuracies(table, ours), accuracies(table, rival)),
                    expected, margin, f"points of accuracy over {rival}",
                )
            )  # fmt: skip
    return made


def section(table: Table) -> str:
    rows = []
    for name, targets in table["methods"].items():
        runs = [run for of in targets.values() for run in of]
        each = [spread([run["accuracy"] for run in of]) for of in targets.values()]
        mean = sum(run["accuracy"] for run in runs) / len(runs)
        rows.append([name, f"{mean:.1f}", *each, f"{max(r['trained'] for r in runs):,}"])
    head = ["method", "mean", *table["targets"], "trained"]
    return grid(table, "Few rows of a task that was held out", head, rows)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    methods = {
        name: {
            target: [
                KEPT.run(f"transfer/{name}--{target}--s{s}", partial(attempt, name, target, s))
                for s in SEEDS
            ]
            for target in TARGETS
        }
        for name in METHODS
    }
    KEPT.write("transfer", {"seeds": SEEDS, "targets": TARGETS, "rows": ROWS, "methods": methods})


if __name__ == "__main__":
    main()
