"""DSelect-k against top-k gating on tasks in known clusters: error, and who chooses what.

    python experiments/share/selecting.py

Plan: README.md beside this file.

Shapes: N = rows, T = tasks, A = asked tasks, R = rows, E = experts, C = clusters, W = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from synthetic import Problem, losses, normal, picked, problem, random_layer, train
from torch import Tensor, nn

from polytask.evaluate import Claim
from polytask.share import Gate
from polytask.share.base import key
from polytask.share.dselect_k import DSelectK
from polytask.share.experts import Experts, Stacked, run, stack
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.share.use import DEAD, expert_use

SEEDS = tuple(range(5))
CLUSTERS, INPUTS, EXPERTS, K = 4, 10, 8, 2
HIDDEN = 8
"""Of a true expert; the model's are as wide."""
ROWS = {"train": 2000, "val": 1000, "test": 4000}
NOISE, BATCH = 0.3, 128


class TopK(Trunk):
    """h_t = sum_e softmax over the k largest l_t (+ noise in training) f_e(x): static gates.

    noise: whether l_t is drawn with a trained deviation in training, as in Shazeer et al. 2017.
    """

    def __init__(self, tasks: Sequence[str], experts: Experts, k: int, noise: bool) -> None:
        super().__init__(experts.inputs, experts.width)
        self.experts, self.k, self.noise = experts, k, noise
        self.logits, self.deviations = nn.ParameterDict(), nn.ParameterDict()
        self._tasks: tuple[str, ...] = ()
        for task in tasks:
            self.add_task(task)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        logits_AE = torch.stack([self.logits[key(task)] for task in tasks])
        if self.noise and self.training:
            raw_AE = torch.stack([self.deviations[key(task)] for task in tasks])
            deviation_AE = nn.functional.softplus(raw_AE)
            logits_AE = logits_AE + deviation_AE * torch.randn_like(logits_AE)
        values_AK, chosen_AK = logits_AE.topk(self.k, dim=1)
        weights_AE = torch.zeros_like(logits_AE).scatter(1, chosen_AK, values_AK.softmax(1))
        return stack("experts", [self.experts]) | {"weights": weights_AE}

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        weights_RAE = stacked["weights"].expand(len(rows_RD), -1, -1)
        if seen is not None:
            seen["weights_RAE"] = weights_RAE
        experts_ERW = run(stacked, "experts", rows_RD)
        return torch.bmm(weights_RAE, experts_ERW.transpose(0, 1)).transpose(0, 1)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        names = tuple(f"expert {e}" for e in range(self.experts.number))
        return [Gate(0, tuple(tasks), names, (None,) * len(names), seen["weights_RAE"])]

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        parts = (self.logits, self.deviations)
        return [part[key(task)] for part in parts if key(task) in part]

    def add_task(self, task: str) -> None:
        number = self.experts.number
        self.logits[key(task)] = nn.Parameter(0.01 * torch.randn(number))
        if self.noise:
            self.deviations[key(task)] = nn.Parameter(torch.zeros(number))
        self._tasks = (*self._tasks, task)


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dselect-k": [{"lr": lr, "entropy": h} for lr in (0.003, 0.01) for h in (1e-3, 1e-2)],
    "top-k": [{"lr": lr, "noise": noise} for lr in (0.01, 0.03) for noise in (False, True)],
}
"""Equally many of each, around the best of a pilot."""
PLAIN = {"lr": 0.01, "noise": False}
"""The better setting without noise of top-k gates, which tuning had tried with 128 tasks."""


@dataclass(frozen=True)
class Case:
    """Tasks, updates, and the case whose settings it takes; "" for its own."""

    tasks: int
    steps: int = 800
    like: str = ""

    @property
    def folder(self) -> str:
        """Where its runs are kept."""
        return f"selecting/{self.tasks}" + f"x{self.steps}" * (self.steps != Case.steps)


CASES = {
    "16 tasks": Case(16),
    "64 tasks": Case(64, like="128 tasks"),
    "128 tasks": Case(128),
    "16 tasks, 4000 updates": Case(16, 4000, like="16 tasks"),
}


def drawn(tasks: int, seed: int) -> Problem:
    """Return the tasks: a mixture of their cluster's two functions, in random parts."""
    random = torch.Generator().manual_seed(seed)
    layers = [random_layer(INPUTS, HIDDEN, random) for _ in range(2 * CLUSTERS)]
    outs = [torch.randn(HIDDEN, generator=random) for _ in layers]
    part_T = torch.rand(tasks, generator=random)
    cluster_T = torch.tensor(clusters(tasks))

    def made(rows_NI: Tensor) -> Tensor:
        return torch.stack([f(rows_NI) @ out for f, out in zip(layers, outs, strict=True)], 1)

    scale_E, mean_E = torch.std_mean(made(normal(INPUTS)(20_000, random)), 0)

    def truth(rows_NI: Tensor) -> Tensor:
        made_NE = (made(rows_NI) - mean_E) / scale_E
        return part_T * made_NE[:, 2 * cluster_T] + (1 - part_T) * made_NE[:, 2 * cluster_T + 1]

    names = [f"task {t}" for t in range(tasks)]
    return problem(truth, normal(INPUTS), names, ROWS, NOISE, random)


def clusters(tasks: int) -> list[int]:
    """Return each task's cluster."""
    return [t * CLUSTERS // tasks for t in range(tasks)]


def build(name: str, given: Problem, setting: Mapping[str, Any]) -> TrunkModel:
    """Return the model: experts of one hidden layer and one output, a linear head per task."""
    experts = Experts(EXPERTS, INPUTS, (HIDDEN,), out=1)
    names = given.tasks.names
    if name == "dselect-k":
        trunk: Trunk = DSelectK(names, experts, k=K, entropy=setting["entropy"])
    else:
        trunk = TopK(names, experts, K, setting["noise"])
    return TrunkModel.build(nn.Identity(), trunk, given.tasks)


def attempt(name: str, case: Case, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train once; return validation and test loss and what the gates chose."""
    given = drawn(case.tasks, seed)
    torch.manual_seed(seed)
    model = build(name, given, setting)
    looks = train(model, given, given.batches(BATCH, seed), steps=case.steps, lr=setting["lr"])
    inputs = given.splits["test"].inputs
    chosen = [
        {e for e, weight in enumerate(gate.mean) if weight >= DEAD}
        for gate in expert_use(model, [inputs[:1]]).gates
    ]
    within, between = overlaps(chosen, clusters(case.tasks))
    return {
        "val": min(looks),
        "test": fmean(losses(model, given.fed("test")).values()),
        "apart": within - between,
        "within": within,
        "experts": fmean(len(experts) for experts in chosen),
    }


def overlaps(chosen: Sequence[set[int]], groups: Sequence[int]) -> tuple[float, float]:
    """Return the mean Jaccard index of the chosen sets, of pairs within a group and between."""
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for i, one in enumerate(chosen):
        for j in range(i):
            index = len(one & chosen[j]) / len(one | chosen[j])
            pairs[groups[i] == groups[j]].append(index)
    return fmean(pairs[True]), fmean(pairs[False])


def claims(table: Table) -> Iterator[Claim]:
    """DSelect-k against top-k gating, in every case."""
    for title, found in table["cases"].items():
        ours, theirs = found["dselect-k"], found["top-k"]
        setting = (
            f"synthetic regression tasks in {CLUSTERS} clusters, {EXPERTS} experts, k {K}, "
            "static gates"
        )
        taken = fmean(ours["experts"])
        unsettled = f"not all its selectors have settled: a task takes {taken:.2g} experts" * (
            taken > K
        )
        fewer = [100 * (b - a) / b for a, b in zip(ours["test"], theirs["test"], strict=True)]
        yield claim(
            table, "dselect-k", f"predicts better than top-k gating, {title}", setting,
            fewer, "greater", 5.0, "% of top-k's test error saved", reason=unsettled,
        )  # fmt: skip
        yield claim(
            table, "dselect-k", f"selects experts better than top-k gating, {title}",
            f"{setting}; Jaccard index of the experts of two tasks, within clusters minus between",
            minus(ours["apart"], theirs["apart"]), "greater", 0.1, "in that difference over top-k",
            reason=unsettled,
        )  # fmt: skip


COLUMNS = {
    "test": "test error",
    "apart": "Jaccard within - between",
    "within": "Jaccard within",
    "experts": "experts of a task",
}


def section(table: Table) -> str:
    rows = [
        [title, name, said(run["setting"]), *(spread(run[key]) for key in COLUMNS)]
        for title, found in table["cases"].items()
        for name, run in found.items()
    ]
    head = ["case", "gates", "picked", *COLUMNS.values()]
    return grid(table, "DSelect-k and top-k gating: tasks in known clusters", head, rows)


def measured(name: str, case: Case) -> dict[str, Any]:
    """Return what came of these gates with the setting they picked."""
    tuned = CASES.get(case.like, case)
    setting = picked(f"{tuned.folder}/{name}", SETTINGS[name], partial(attempt, name, tuned))
    return columns(name, case, setting, f"{case.folder}/{name}")


def columns(name: str, case: Case, setting: Mapping[str, Any], kept: str) -> dict[str, Any]:
    """Return the setting and what came of it, a column per measure, a number per seed."""
    runs = [
        KEPT.run(f"{kept}--s{seed}", partial(attempt, name, case, setting, seed)) for seed in SEEDS
    ]
    return {"setting": setting} | {key: [found[key] for found in runs] for key in COLUMNS}


def main() -> None:
    torch.set_num_threads(1)
    many = CASES["128 tasks"]
    plain = columns("top-k", many, PLAIN, f"{many.folder}/plain top-k")
    table = {
        title: {name: measured(name, case) for name in SETTINGS} for title, case in CASES.items()
    }
    table["128 tasks"]["top-k without noise"] = plain  # context, no claim is about it
    KEPT.write("selecting", {"seeds": SEEDS, "batch": BATCH, "cases": table})


if __name__ == "__main__":
    main()
