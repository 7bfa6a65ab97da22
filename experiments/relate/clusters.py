"""STG-MTL: whether its groups train better than random ones and than all tasks together.

    python experiments/relate/clusters.py

Plan: README.md beside this file.

Shapes: N = rows, I = inputs, T = tasks, H = hidden units, K = groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor, nn
from torch.nn import functional

from polytask.evaluate import Claim
from polytask.relate import DataMaps, stg_mtl

SEEDS = tuple(range(6))
KINDS, PER_KIND, INPUTS, UNITS = 3, 4, 12, 6
TASKS = KINDS * PER_KIND
ROWS, TEST, HIDDEN = 400, 4000, 12
STEPS, LR, LOOKS = 300, 0.01, 15


class Problem:
    """Binary tasks on shared inputs; those of one kind read the same hidden layer."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=self.random)  # noqa: E731
        self.kind_T = torch.arange(TASKS)[torch.randperm(TASKS, generator=self.random)] % KINDS
        layers_KIU = draw(KINDS, INPUTS, UNITS) * 1.5 / INPUTS**0.5
        outs_TU = draw(TASKS, UNITS)

        def rows(count: int) -> tuple[Tensor, Tensor]:
            x_NI = draw(count, INPUTS)
            hidden_KNU = torch.tanh(2 * torch.einsum("ni,kiu->knu", x_NI, layers_KIU))
            logit_NT = torch.einsum("tnu,tu->nt", hidden_KNU[self.kind_T], outs_TU)
            return x_NI, (logit_NT + 0.3 * draw(count, TASKS) > 0).float()

        self.train, self.test = rows(ROWS), rows(TEST)


def trained(problem: Problem, weights_T: Tensor, seed: int, maps: DataMaps | None = None) -> Tensor:
    """Return the test error of every task (T,) of one small model, its losses so weighted."""
    x, y = problem.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(),
            nn.Linear(HIDDEN, TASKS),
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=1e-3)
    for step in range(STEPS):
        logits = model(x)
        if maps is not None and step % (STEPS // LOOKS) == 0:
            true_NT = torch.where(y > 0, logits, -logits).sigmoid().detach()
            for t, task in enumerate(maps.tasks):
                maps.observe(task, torch.arange(ROWS), true_NT[:, t])
        loss_T = functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(0)
        optimizer.zero_grad()
        (loss_T * weights_T).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return ((model(problem.test[0]) > 0) != (problem.test[1] > 0)).float().mean(0)


def grouped(problem: Problem, home_T: Tensor, seed: int) -> float:
    """Return the mean test error in % where every group has a model of its own."""
    error_T = torch.zeros(TASKS)
    for k in home_T.unique().tolist():
        mine_T = home_T == k
        error_T[mine_T] = trained(problem, mine_T.float(), seed)[mine_T]
    return 100 * float(error_T.mean())


def attempt(seed: int) -> dict[str, Any]:
    """Return the mean test error of every way to group."""
    problem = Problem(seed)
    maps = DataMaps([f"task {t}" for t in range(TASKS)], ROWS)
    together = 100 * float(trained(problem, torch.ones(TASKS), seed, maps).mean())
    found = stg_mtl(maps, KINDS, seed=seed)
    home_T = torch.tensor(found.groups.serve)
    soft_T = torch.zeros(TASKS)
    for k, weights_T in enumerate(found.weights_KT.float()):
        mine_T = home_T == k
        soft_T[mine_T] = trained(problem, weights_T, seed)[mine_T]
    draws = []
    for _ in range(5):
        order = torch.randperm(TASKS, generator=problem.random)
        draws.append(grouped(problem, home_T[order], seed))  # groups of the same sizes
    same = problem.kind_T[:, None] == problem.kind_T
    together_TT = home_T[:, None] == home_T
    return {
        "STG-MTL, soft": 100 * float(soft_T.mean()),
        "STG-MTL": grouped(problem, home_T, seed),
        "true kinds": grouped(problem, problem.kind_T, seed),
        "random": fmean(draws),
        "all together": together,
        "alone": grouped(problem, torch.arange(TASKS), seed),
        "pairs grouped as in truth": float((same == together_TT).float().mean()),
    }


def main() -> None:
    torch.set_num_threads(1)
    runs = [KEPT.run(f"clusters/s{seed}", lambda s=seed: attempt(s)) for seed in SEEDS]
    names = list(runs[0])
    KEPT.write("clusters", {
        "seeds": list(SEEDS), "ways": {name: [run[name] for run in runs] for name in names},
    })  # fmt: skip


def claims(table: Table) -> Iterator[Claim]:
    setting = (
        f"{TASKS} synthetic binary tasks of {KINDS} kinds on {ROWS} shared rows; a small network "
        f"for each of {KINDS} groups; test error"
    )
    ways = table["ways"]
    for rival, words in (
        ("random", "groups better than random groups of the same sizes"),
        ("all together", "groups better than all tasks together"),
    ):
        yield claim(
            table, "stg-mtl", words, setting, minus(ways[rival], ways["STG-MTL, soft"]), "greater",
            0.5, "points of error saved",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = [[name, spread(values)] for name, values in table["ways"].items()]
    return grid(
        table, "STG-MTL on tasks whose kinds are known: mean test error, %",
        ["groups", "error, %"], rows,
        "The last row is a share of pairs: grouped or parted as the true kinds are.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
