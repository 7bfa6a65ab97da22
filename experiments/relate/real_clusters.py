"""STG-MTL on real tasks, up to 100: its groups against random ones and all tasks together.

    python experiments/relate/real_clusters.py

Plan: README.md beside this file.

Shapes: N = rows, I = inputs, T = tasks, K = groups, Q = quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from polytask.evaluate import Claim
from polytask.recipes import load_suite
from polytask.relate import DataMaps, SoftGroups, stg_mtl
from polytask.suites import Split

SEEDS = (0, 1, 2)
SUITES = {"sider": (3,), "school": (3, 10)}
"""Budgets of models."""

LARGEST = 100
"""Schools."""

STEPS, LR, LOOKS, HIDDEN, DRAWS = 100, 0.005, 20, 64, 2
DROPOUT = {"sider": 0.5, "school": 0.25}
LEAST = 0.01
"""Weight in a group below which a task is left out of it, so that its rows need no pass."""

UNIT = {"sider": "points of AUROC", "school": "points of explained variance"}

Rows = tuple[Tensor, Tensor]
"""Inputs (N, I), and labels (N, T), NaN where there is none."""


class Problem:
    """A suite as one table per split."""

    def __init__(self, suite: str) -> None:
        whole = load_suite(suite)
        self.suite = suite
        self.kind: Literal["sider", "school"] = "sider" if suite == "sider" else "school"
        sizes = {t: len(s) for s in whole.train for t in s.targets}
        by_size = sorted(whole.tasks.names, key=lambda t: -sizes[t])
        kept = set(by_size[:LARGEST])
        self.tasks = tuple(t for t in whole.tasks.names if t in kept)
        self.train, self.val, self.test = (self.table(split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
        if suite == "school":
            x_NI, y_NT = self.train
            mean, std = x_NI.mean(0), x_NI.std(0).clamp_min(1e-6)
            level, scale = y_NT.nanmean(), y_NT[~y_NT.isnan()].std()
            self.train, self.val, self.test = (
                ((x - mean) / std, (y - level) / scale)
                for x, y in (self.train, self.val, self.test)
            )

    def table(self, split: Split) -> Rows:
        inputs, labels = [], []
        for stream in load_suite(self.suite).only(self.tasks).split(split):
            assert isinstance(stream.inputs, Tensor)
            y_NT = torch.full((len(stream), len(self.tasks)), torch.nan)
            for task, target_N in stream.targets.items():
                y_NT[:, self.tasks.index(task)] = target_N.float()
            inputs.append(stream.inputs.float())
            labels.append(y_NT)
        return torch.cat(inputs), torch.cat(labels)

    def losses(self, outputs_NT: Tensor, y_NT: Tensor) -> Tensor:
        """Return the loss of every label, 0 where there is none."""
        known_NT = ~y_NT.isnan()
        y_NT = y_NT.nan_to_num()
        if self.suite == "sider":
            all_NT = functional.binary_cross_entropy_with_logits(outputs_NT, y_NT, reduction="none")
        else:
            all_NT = (outputs_NT - y_NT).square()
        return all_NT * known_NT

    def score(self, outputs_NT: Tensor, y_NT: Tensor) -> float:
        """Return the mean AUROC, or the variance explained over all labels, in %."""
        if self.suite == "sider":
            return 100 * fmean(auroc(outputs_NT[:, t], y_NT[:, t]) for t in range(y_NT.shape[1]))
        known_NT = ~y_NT.isnan()
        y = y_NT[known_NT]
        return float(100 * (1 - (outputs_NT[known_NT] - y).square().mean() / y.var()))


def auroc(output_N: Tensor, y_N: Tensor) -> float:
    ranks, yes = rankdata(output_N.numpy()), y_N.numpy() > 0
    count = yes.sum()
    return float((ranks[yes].sum() - count * (count + 1) / 2) / (count * (len(yes) - count)))


class Maps:
    """Data maps of the training rows, each task's rows counted from 0."""

    def __init__(self, problem: Problem) -> None:
        self.y_NT = problem.train[1]
        known_NT = ~self.y_NT.isnan()
        self.maps = DataMaps(problem.tasks, int(known_NT.sum(0).max()))
        self.rows = [known_NT[:, t].nonzero().flatten() for t in range(len(problem.tasks))]

    def look(self, loss_NT: Tensor) -> None:
        """Add how well each row is met: exp(-loss), of a class its probability."""
        for t, task in enumerate(self.maps.tasks):
            met = (-loss_NT[self.rows[t], t]).exp()
            self.maps.observe(task, torch.arange(len(met)), met)

    def groups(self, budget: int, seed: int) -> SoftGroups:
        """Cluster the maps; those of tasks on rows of their own by how they are spread."""
        maps_TN2 = self.maps.maps()
        if not bool(maps_TN2.isnan().any()):
            return stg_mtl(self.maps, budget, seed=seed)
        levels_Q = torch.linspace(0.05, 0.95, 19).double()
        quantiles_QT2 = maps_TN2.nanquantile(levels_Q, dim=1)
        evidence = (self.maps.tasks, quantiles_QT2.transpose(0, 1))
        return stg_mtl(evidence, budget, seed=seed)


def trained(problem: Problem, weights_T: Tensor, seed: int, maps: Maps | None = None) -> Tensor:
    """Return the test outputs (N, T) of one small model, its losses so weighted.

    Of the look with the lowest weighted loss on validation rows.
    """
    kept_T = weights_T > LEAST
    x_NI, y_NT = problem.train
    rows_N = (~y_NT[:, kept_T].isnan()).any(1)
    x_NI, y_NT = x_NI[rows_N], y_NT[rows_N]
    rate = DROPOUT[problem.suite]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Dropout(rate), nn.Linear(x_NI.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(rate),
            nn.Linear(HIDDEN, len(weights_T)),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-2)
        best, found = float("inf"), torch.empty(0)
        weights_T = weights_T.float() * kept_T
        for step in range(1, STEPS + 1):
            model.train()
            loss_NT = problem.losses(model(x_NI), y_NT)
            optimizer.zero_grad()
            ((loss_NT * weights_T).sum() / (~y_NT.isnan() * weights_T).sum()).backward()
            optimizer.step()
            if step % (STEPS // LOOKS):
                continue
            model.eval()
            with torch.no_grad():
                if maps is not None:
                    maps.look(problem.losses(model(problem.train[0]), problem.train[1]))
                val = float(
                    (problem.losses(model(problem.val[0]), problem.val[1]) * weights_T).sum()
                )
                if val < best:
                    best, found = val, model(problem.test[0])
    return found


def grouped(problem: Problem, weights_KT: Tensor, home_T: Tensor, seed: int) -> float:
    """Return the test score where every group has a model, and task t that of home_T[t]."""
    outputs_NT = torch.empty_like(problem.test[1])
    for k, weights_T in enumerate(weights_KT):
        mine_T = home_T == k
        outputs_NT[:, mine_T] = trained(problem, weights_T, seed)[:, mine_T]
    return problem.score(outputs_NT, problem.test[1])


def hard(home_T: Tensor) -> Tensor:
    """Return the weights (K, T) of groups without overlap."""
    return functional.one_hot(home_T).T.float()


def attempt(suite: str, seed: int) -> dict[str, Any]:
    """Return the test score of every way to group, per budget of models."""
    problem = Problem(suite)
    maps = Maps(problem)
    T = len(problem.tasks)
    together = problem.score(trained(problem, torch.ones(T), seed, maps), problem.test[1])
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for budget in SUITES[suite]:
        clusters = maps.groups(budget, seed)
        home_T = torch.tensor(clusters.groups.serve)
        drawn = [home_T[torch.randperm(T, generator=generator)] for _ in range(DRAWS)]
        found[str(budget)] = {
            "STG-MTL, soft": grouped(problem, clusters.weights_KT, home_T, seed),
            "STG-MTL": grouped(problem, hard(home_T), home_T, seed),
            "random": fmean(grouped(problem, hard(home), home, seed) for home in drawn),
            "all together": together,
            "sizes": home_T.bincount().tolist(),
            "tasks of soft groups": float((clusters.weights_KT > LEAST).sum()),
        }
    return found


def main() -> None:
    torch.set_num_threads(1)
    suites: dict[str, Any] = {}
    for suite, budgets in SUITES.items():
        runs = [
            KEPT.run(f"real_clusters/{suite}--s{seed}", partial(attempt, suite, seed))
            for seed in SEEDS
        ]
        suites[suite] = {
            "tasks": len(Problem(suite).tasks),
            "budgets": {
                str(budget): {
                    name: [run[str(budget)][name] for run in runs] for name in runs[0][str(budget)]
                }
                for budget in budgets
            },
        }
    KEPT.write("real_clusters", {"seeds": list(SEEDS), "suites": suites})


def claims(table: Table) -> Iterator[Claim]:
    for suite, one in table["suites"].items():
        for budget, ways in one["budgets"].items():
            setting = (
                f"{suite}, {one['tasks']} tasks, a small network for each of {budget} groups by "
                f"data maps{'' if suite == 'sider' else ' (their quantiles)'}, soft weights"
            )
            for rival, words in (
                ("random", "groups better than random groups of the same sizes"),
                ("all together", "groups better than all tasks together"),
            ):
                yield claim(
                    table, "stg-mtl", f"{words} ({suite}, {budget} groups)", setting,
                    minus(ways["STG-MTL, soft"], ways[rival]), "greater", 0.5, UNIT[suite],
                )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    ways = ("STG-MTL, soft", "STG-MTL", "random", "all together")
    for suite, one in table["suites"].items():
        for budget, found in one["budgets"].items():
            sizes = "; ".join("/".join(map(str, seed)) for seed in found["sizes"])
            rows.append(
                [f"{suite}, {one['tasks']} tasks", budget, *(spread(found[way]) for way in ways),
                 sizes, f"{fmean(found['tasks of soft groups']):.0f}"]
            )  # fmt: skip
    return grid(
        table, "STG-MTL on real tasks: AUROC (sider), explained variance (school), in %",
        ["suite", "models", *ways, "sizes, seed by seed", "tasks in soft groups, all together"],
        rows,
        f"Test split, up is better. Random: {DRAWS} groupings of the same sizes. Soft: a group "
        "also trains tasks that it does not serve, by their membership; the last column counts "
        "tasks over all groups.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
