"""Every method of the experiment: what it makes of the ends, in one table of jobs.

A job returns rows: name -> accuracy per task on the test split, and what was chosen or learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import training
from ends import POISONED, Ends, attack
from images import TASKS
from torch import nn

from polytask.merge.adamerging import AdaMerging
from polytask.merge.atlas import ATLAS
from polytask.merge.atm import atm
from polytask.merge.average import Average
from polytask.merge.base import Merge
from polytask.merge.breadcrumbs import Breadcrumbs
from polytask.merge.concrete import Concrete
from polytask.merge.concrete_adamerging import ConcreteAdaMerging
from polytask.merge.consensus import Consensus
from polytask.merge.dam import DAM
from polytask.merge.dare import DARE
from polytask.merge.dare_ties import DareTies
from polytask.merge.family import Family, Merged, Tensors
from polytask.merge.fisher import Fisher
from polytask.merge.grafting import Grafting
from polytask.merge.iso_c import IsoC
from polytask.merge.iso_cts import IsoCTS
from polytask.merge.merging import merge
from polytask.merge.model_stock import ModelStock
from polytask.merge.pcb import PCB
from polytask.merge.regmean import RegMean
from polytask.merge.self_positioning import SelfPositioning
from polytask.merge.surgery import Surgery
from polytask.merge.tall_masks import TallMasks
from polytask.merge.task_arithmetic import TaskArithmetic
from polytask.merge.ties import TIES
from polytask.merge.tinting import Tinting
from polytask.merge.tsv_m import TSVM

SCALES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Factors on the merged task vector; the best on validation labels is taken."""
LOOK = 200
"""Validation rows per task that choose it."""

ROUNDS, RATE = 200, 3e-3
"""Of the searches; see README.md for what the sources have."""

Rows = dict[str, dict[str, Any]]
Job = Callable[[Ends, int], Rows]


def scored(ends: Ends, family: Family, merged: Merged, **more: Any) -> dict[str, Any]:
    """Return one row."""
    nets = family.models(merged)
    found = training.accuracies(nets.__getitem__, ends.sets, "test", ends.scoring)
    return {"accuracy": found, "notes": list(merged.notes)} | more


def data_free(family: Family, method: Merge) -> Tensors:
    return merge(family.base, [family.shared(t) for t in TASKS.names], method)


def scaled(ends: Ends, family: Family, method: Merge) -> tuple[Merged, float]:
    """Return the merge, its task vector times the factor that is best on validation labels."""
    whole = data_free(family, replace(method, scale=1.0))  # type: ignore[call-arg]
    val = {
        t: s["val"].rows(torch.arange(min(LOOK, len(s["val"].labels))))
        for t, s in ends.sets.items()
    }
    best: tuple[float, float] = (-1.0, 0.0)
    for scale in SCALES:
        nets = family.models(Merged(_times(family, whole, scale)))
        found = [training.accuracy(nets[t], t, val[t], ends.scoring) for t in TASKS.names]
        best = max(best, (sum(found), scale), key=lambda pair: pair[0])
    return Merged(_times(family, whole, best[1])), best[1]


def _times(family: Family, whole: Tensors, scale: float) -> Tensors:
    return {n: base + scale * (whole[n].to(base.device) - base) for n, base in family.base.items()}


def alone(method: Merge) -> Job:
    """A data-free method without a scale."""

    def job(ends: Ends, seed: int) -> Rows:
        family = ends.family()
        merged = Merged(data_free(family, method))
        return {"": scored(ends, family, merged)}

    return job


def unmerged(ends: Ends, seed: int) -> Rows:
    """The base under the tuned heads: what merging must beat."""
    family = ends.family()
    return {"": scored(ends, family, Merged(family.base))}


def tall_masks(ends: Ends, seed: int) -> Rows:
    """Every task served with its own mask, at the default threshold and scale."""
    family = ends.family()
    found = {}
    for index, task in enumerate(TASKS.names):
        merged = Merged(data_free(family, TallMasks(task=index)))
        net = family.build(task, merged)
        found[task] = training.accuracy(net, task, ends.sets[task]["test"], ends.scoring)
    return {"": {"accuracy": found}}


def tuned(method: Merge, *, on_top: bool = False) -> Job:
    """A data-free method whose scale is chosen; on_top: also with Surgery and with tinted heads."""

    def job(ends: Ends, seed: int) -> Rows:
        family = ends.family()
        seeded = replace(method, seed=seed) if hasattr(method, "seed") else method
        merged, scale = scaled(ends, family, seeded)
        rows = {"": scored(ends, family, merged, scale=scale)}
        return rows | (added(ends, family, merged, seed) if on_top else {})

    return job


def added(ends: Ends, family: Family, merged: Merged, seed: int) -> Rows:
    """Return the rows of Surgery and of tinted heads on top of a merge."""
    data = ends.unlabelled()
    surgery = Surgery(seed=seed)(family, data, merged)
    tinted = Tinting(rounds=ROUNDS, seed=seed)(family, data, merged)
    return {
        "+surgery": scored(ends, family, surgery),
        "+tinted-heads": scored(ends, family, tinted),
    }


def searched(
    method: Any, *, labels: bool = False, on_top: bool = False, started: bool = False
) -> Job:
    """A method with data; started: coefficients begin at task arithmetic's factor."""

    def job(ends: Ends, seed: int) -> Rows:
        family = ends.family()
        data = ends.labelled() if labels else ends.unlabelled()
        seeded = replace(method, seed=seed)
        if started:
            seeded = replace(seeded, start=scaled(ends, family, TaskArithmetic())[1])
        merged = seeded(family, data)
        rows = {"": scored(ends, family, merged, **_told(merged))}
        return rows | (added(ends, family, merged, seed) if on_top else {})

    return job


def concrete(ends: Ends, seed: int) -> Rows:
    """Concrete task arithmetic at the scale that task arithmetic chose."""
    family = ends.family()
    _, scale = scaled(ends, family, TaskArithmetic())
    method = Concrete(scale=scale, learning_rate=2e-2, rounds=ROUNDS, seed=seed)
    merged = method(family, ends.unlabelled())
    return {"": scored(ends, family, merged, scale=scale, **_told(merged))}


def alternated(ends: Ends, seed: int) -> Rows:
    """ATM with as many epochs in all as tuning apart has; its last round counts."""
    rounds = int(training.TUNE["epochs"])
    train = {t.name: training.rows_of(t, ends.sets[t.name]["train"], ends.scoring) for t in TASKS}
    start = {
        t.name: training.probed(
            training.model(ends.base.encoder, TASKS.only([t.name]), seed).to(ends.scoring),
            {t.name: train[t.name]},
            TASKS,
            seed,
        )
        for t in TASKS
    }
    done = [0]

    def tune(net: nn.Module, task: str) -> nn.Module:
        once = training.TUNE | {"epochs": 1}
        return training.train(net, {task: train[task]}, TASKS, seed + 1_000 * done[0], **once)

    def after(round: int, models: Mapping[str, nn.Module]) -> None:
        done[0] = round

    nets = atm(start, TASKS, tune, rounds=rounds, after=after)
    found = training.accuracies(nets.__getitem__, ends.sets, "test", ends.scoring)
    return {"": {"accuracy": found}}


def poisoned(method: Any) -> Job:
    """A method on the family whose one model has a backdoor."""

    def job(ends: Ends, seed: int) -> Rows:
        family = ends.family(poisoned=True)
        if isinstance(method, Merge):
            merged, _ = scaled(ends, family, method)
        else:
            start = scaled(ends, family, TaskArithmetic())[1]
            merged = replace(method, seed=seed, start=start)(family, ends.unlabelled())
        found = attack(family.build(POISONED, merged), ends.sets, ends.scoring)
        return {"": scored(ends, family, merged, attack=found)}

    return job


def _told(merged: Merged) -> dict[str, Any]:
    told: dict[str, Any] = {"losses": [*merged.losses[:1], *merged.losses[-1:]]}
    lam = merged.learned.get("coefficients")
    if lam is not None:
        told["coefficients"] = (
            [round(float(x), 3) for x in lam.reshape(-1, len(TASKS)).mean(0)]
            if lam.ndim < 3
            else []
        )
    return told


ADA = AdaMerging(rounds=ROUNDS, learning_rate=RATE)
CONCRETE_ADA = ConcreteAdaMerging(
    rounds=ROUNDS // 2, coefficient_rounds=ROUNDS, learning_rate=2e-2, coefficient_rate=RATE
)
DAM_ = DAM(
    rounds=ROUNDS // 2, coefficient_rounds=ROUNDS, learning_rate=2e-2, coefficient_rate=RATE,
    shift_rate=2e-3,
)  # fmt: skip

JOBS: dict[str, Job] = {
    "base": unmerged,
    "average": alone(Average()),
    "model-stock": alone(ModelStock()),
    "task-arithmetic": tuned(TaskArithmetic(), on_top=True),
    "ties": tuned(TIES(), on_top=True),
    "dare": tuned(DARE()),
    "dare-ties": tuned(DareTies()),
    "breadcrumbs": tuned(Breadcrumbs()),
    "pcb": tuned(PCB()),
    "tall-masks": tall_masks,
    "consensus": tuned(Consensus()),
    "tsv-m": tuned(TSVM()),
    "iso-c": tuned(IsoC()),
    "iso-cts": tuned(IsoCTS()),
    "fisher": searched(Fisher()),
    "regmean": searched(RegMean()),
    "adamerging-task": searched(replace(ADA, level="task"), started=True),
    "adamerging": searched(ADA, on_top=True, started=True),
    "adamerging-plus": searched(replace(ADA, plus=True), started=True),
    "concrete": concrete,
    "concrete-adamerging": searched(CONCRETE_ADA, started=True),
    "tinting": searched(Tinting(rounds=ROUNDS), started=True),
    "tinting-plus": searched(Tinting(rounds=ROUNDS, plus=True), started=True),
    "atlas": searched(ATLAS(learning_rate=1e-2, epochs=8), labels=True),
    "atlas-x10": searched(ATLAS(parts=10, learning_rate=1e-2, epochs=8), labels=True),
    "self-positioning": searched(SelfPositioning(rounds=ROUNDS), labels=True),
    "grafting": searched(Grafting(), labels=True),
    "atm": alternated,
    "poisoned-task-arithmetic": poisoned(TaskArithmetic()),
    "poisoned-adamerging": poisoned(ADA),
    "poisoned-concrete-adamerging": poisoned(CONCRETE_ADA),
    "poisoned-dam": poisoned(DAM_),
}
