"""BenTo: whether 5 % of a benchmark's tasks rank models as all of them do.

    python experiments/relate/benchmark.py

Plan: README.md beside this file.

Shapes: T = tasks, Q = models.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from scipy.stats import kendalltau
from tables import as_affinity, mmlu_runs, root

from polytask.evaluate import Claim
from polytask.relate import bento

SEEDS = tuple(range(10))
"""Runs of the transfer table: each with other examples in context."""

KEEP = (1, 3, 6, 10)
RANDOM = 500


def accuracies(tasks: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Return the models, and their accuracy on every subject (Q, T), a mean over 5 runs."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(root() / "bento_transfer" / "mmlu_item_responses.parquet")
    model, task = table["model"].to_pylist(), table["task"].to_pylist()
    right = np.asarray(table["correct"].to_pylist(), dtype=float)
    models = sorted(set(model))
    place = np.asarray([models.index(m) * len(tasks) + tasks.index(t)
                        for m, t in zip(model, task, strict=True)])  # fmt: skip
    size = len(models) * len(tasks)
    acc = np.bincount(place, right, size) / np.bincount(place, minlength=size)
    return models, acc.reshape(len(models), len(tasks))


def agreement(acc_QT: np.ndarray, kept: list[int]) -> tuple[float, float]:
    """Return Kendall's tau of the models' ranking, and the error of their mean accuracy in %."""
    whole, part = acc_QT.mean(1), acc_QT[:, kept].mean(1)
    error = 100 * float(np.sqrt(((part - whole) ** 2).mean() / (whole**2).mean()))
    return float(kendalltau(whole, part).statistic), error


def main() -> None:
    tasks, runs = mmlu_runs()
    models, acc_QT = accuracies(tasks)
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for keep in KEEP:
        drawn = [agreement(acc_QT, generator.choice(len(tasks), keep, replace=False).tolist())
                 for _ in range(RANDOM)]  # fmt: skip
        rules: dict[str, Any] = {
            "random": {"tau": fmean(t for t, _ in drawn), "error": fmean(e for _, e in drawn)}
        }
        for name, components in (("distances", 0), ("spectral", 5)):
            each = []
            for acc_TT in runs:
                kept = bento(as_affinity(tasks, acc_TT), keep, components=components)
                at = [tasks.index(task) for task in kept.kept]
                each.append((*agreement(acc_QT, at), kept.coverage[-1]))
            rules[name] = {
                "tau": [e[0] for e in each],
                "error": [e[1] for e in each],
                "coverage": [e[2] for e in each],
            }
        found[str(keep)] = rules
    KEPT.write("benchmark", {
        "seeds": list(SEEDS), "models": models, "tasks": len(tasks), "kept": found,
    })  # fmt: skip


def claims(table: Table) -> Iterator[Claim]:
    rules = table["kept"]["3"]
    setting = "57 subjects of MMLU, 5 models, 3 subjects (5 %) kept by distances of one run"
    tau = rules["distances"]["tau"]
    yield claim(
        table, "bento", "5 % of the tasks rank models as all do", setting,
        [value - 1 for value in tau], "no worse", 0.2, "of Kendall's tau below 1",
    )  # fmt: skip
    yield claim(
        table, "bento", "5 % of the tasks rank models better than as many random ones", setting,
        minus(tau, [rules["random"]["tau"]] * len(tau)), "greater", 0.05,
        "of Kendall's tau over the mean of random choices",
    )  # fmt: skip
    error = rules["distances"]["error"]
    yield claim(
        table, "bento", "5 % of the tasks tell the accuracy better than as many random ones",
        setting, minus([rules["random"]["error"]] * len(error), error), "greater", 1.0,
        "points of relative error saved against the mean of random choices",
    )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for keep, rules in table["kept"].items():
        for name, of in rules.items():
            if name == "random":
                rows.append([keep, name, f"{of['tau']:.2f}", f"{of['error']:.1f}", ""])
            else:
                rows.append([keep, name, spread(of["tau"]), spread(of["error"]),
                             spread([100 * c for c in of["coverage"]])])  # fmt: skip
    return grid(
        table, "BenTo: a few subjects of MMLU in place of 57",
        ["kept", "by", "Kendall's tau of 5 models", "error of their accuracy, %", "covered, %"],
        rows, "Random: the mean of 500 choices. Covered: what `bento` itself says of the rest.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
