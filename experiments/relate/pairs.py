"""Which evidence foresees the pairs of tasks that help each other: every pair trained.

    python experiments/relate/pairs.py

Plan: README.md beside this file.

Shapes: T = tasks, Q = pairs of tasks, N = rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, claim_against_all, minus, spread
from found import section as grid
from known_truth import within_targets
from scipy.stats import spearmanr
from torch import Tensor
from trained import job, model_of, tested

from polytask.evaluate import Claim
from polytask.fit import affinity_of
from polytask.recipes import load_suite
from polytask.recipes.relating import labels_of
from polytask.recipes.train import Job
from polytask.relate import (
    Affinity,
    attribute,
    attributions,
    cka,
    label_correlation,
    rsa,
)
from polytask.share import HardSharing

SEEDS = (0, 1, 2)
SUITES = {"sarcos": (7, 14), "digits2": (4, 4), "tox21": (5, 4)}
"""Tasks, the first of the suite, and epochs."""

WATCHES = ("tag:every=2", "gradient-cosine:every=5")
ROWS = 300
"""Of the validation split, on which models are compared."""

CEILING = "gains of one seed"
"""Evidence that is the truth but for the chance of one seed."""


def names(suite: str) -> tuple[str, ...]:
    return load_suite(suite).tasks.names[: SUITES[suite][0]]


def run(suite: str, tasks: tuple[str, ...], seed: int) -> Job:
    """Return the run of some tasks; that of all is watched."""
    watches = WATCHES if len(tasks) > 2 else ()
    return job(
        f"pairs/{suite}/{'+'.join(tasks) if len(tasks) < 3 else 'all'}--s{seed}", suite, tasks,
        SUITES[suite][1], seed, watches=watches,
    )  # fmt: skip


def gains(suite: str, seed: int) -> Tensor:
    """Return what training with i gains j over being alone, in %, (T, T); NaN on the diagonal."""
    tasks = load_suite(suite).tasks.only(names(suite))
    alone = {task: tested(run(suite, (task,), seed))[task] for task in tasks.names}
    gain_TT = torch.full((len(tasks), len(tasks)), torch.nan).double()
    for i, j in combinations(range(len(tasks)), 2):
        both = tested(run(suite, (tasks.names[i], tasks.names[j]), seed))
        for source, target in ((i, j), (j, i)):
            task = tasks[target]
            gain_TT[source, target] = task.primary.gain(both[task.name], alone[task.name])
    return gain_TT


def evidence(suite: str, seed: int) -> dict[str, Affinity]:
    """Return the affinities, by the name of the method, of the models of one seed."""
    (stream,) = load_suite(suite).val
    assert isinstance(stream.inputs, Tensor)
    inputs = stream.inputs[:ROWS]
    maps, features = {}, {}
    for task in names(suite):
        model = model_of(run(suite, (task,), seed))
        assert isinstance(model, HardSharing)
        maps[task] = attribute(lambda x, m=model, t=task: m(x, (t,))[t], inputs)
        with torch.no_grad():
            seen = model.encoder(inputs)
        features[task] = seen if isinstance(seen, Tensor) else seen["row"]
    joint = run(suite, names(suite), seed)
    tested(joint)
    found = {"attributions": attributions(maps), "cka": cka(features), "rsa": rsa(features)}
    labels = labels_of(load_suite(suite).only(names(suite)))
    if labels is not None:
        found["label-correlation"] = label_correlation(*labels)
    for watch in WATCHES:
        found[watch.split(":")[0]] = affinity_of(joint.folder, watch)
    return found


def of_pairs(values_TT: Tensor) -> Tensor:
    """Return the mean of both directions of every pair, (Q,)."""
    upper = torch.triu_indices(len(values_TT), len(values_TT), 1)
    return (values_TT + values_TT.T)[upper[0], upper[1]] / 2


def worth(truth_TT: Tensor, guess_TT: Tensor) -> dict[str, float | None]:
    """Return what a guess foresees of the gains.

    pairs: rank correlation over pairs, both directions averaged. targets: over sources, within
    targets. picked: mean gain of the third of pairs that it puts first, over that of all, in
    points.
    """
    truth_Q, guess_Q = of_pairs(truth_TT), of_pairs(guess_TT)
    first = guess_Q.argsort(descending=True)[: len(guess_Q) // 3]
    off = ~torch.eye(len(truth_TT), dtype=torch.bool)
    unknown = torch.full((), torch.nan).double()
    return {
        "pairs": float(spearmanr(truth_Q, guess_Q).statistic),
        "targets": within_targets(truth_TT.where(off, unknown), guess_TT.where(off, unknown)),
        "picked": float(truth_Q[first].mean() - truth_Q.mean()),
    }


def main() -> None:
    torch.set_num_threads(1)
    suites = {}
    for suite in SUITES:
        gain_STT = torch.stack([gains(suite, seed) for seed in SEEDS])
        worths: dict[str, list[dict[str, Any]]] = {}
        for at, seed in enumerate(SEEDS):
            # of the other seeds: a lucky model of a task alone must not be in both sides
            others_TT = torch.cat([gain_STT[:at], gain_STT[at + 1 :]]).mean(0)
            guesses = {name: of.filled().values_TT for name, of in evidence(suite, seed).items()}
            for name, guess_TT in (guesses | {CEILING: gain_STT[at]}).items():
                worths.setdefault(name, []).append(worth(others_TT, guess_TT))
        suites[suite] = {
            "tasks": list(names(suite)),
            "epochs": SUITES[suite][1],
            "gains": [one.tolist() for one in gain_STT],
            "evidence": {
                name: {key: [one[key] for one in of] for key in of[0]}
                for name, of in worths.items()
            },
        }
        print(suite, flush=True)
    KEPT.write("pairs", {"seeds": list(SEEDS), "suites": suites})


def correlations(table: Table) -> dict[str, dict[str, list[float]]]:
    """Return evidence -> suite -> of each seed the rank correlation over pairs."""
    found: dict[str, dict[str, list[float]]] = {}
    for suite, one in table["suites"].items():
        for name, of in one["evidence"].items():
            if name != CEILING:
                found.setdefault(name, {})[suite] = of["pairs"]
    return found


def mean_gains(one: Table) -> Tensor:
    """Return the gain of every pair, (Q,), mean over its tasks and the seeds."""
    gain_STT = torch.tensor(
        [[[torch.nan if v is None else v for v in row] for row in seed] for seed in one["gains"]]
    )
    return of_pairs(gain_STT.mean(0))


def helped(table: Table, suites: Iterable[str]) -> str:
    """Return how many pairs gained at all."""
    gains = {suite: mean_gains(table["suites"][suite]) for suite in suites}
    counts = (f"{int((of > 0).sum())} of {len(of)} ({suite})" for suite, of in gains.items())
    return (
        f"pairs that gained over being alone at all: {', '.join(counts)}; the seeds' truths "
        "overlap, so the interval is narrower than that of independent ones"
    )


def mean_over(suites: Mapping[str, list[float]]) -> list[float]:
    """Return of each seed the mean over suites."""
    return [fmean(seed) for seed in zip(*suites.values(), strict=True)]


def claims(table: Table) -> Iterator[Claim]:
    found, margin = correlations(table), 0.2
    how = "rank correlation with the measured gains of all pairs, of the other seeds"
    words = "foresees which pairs of tasks do best together"
    unit = "of rank correlation, random 0"
    for suite, of in found["attributions"].items():
        yield claim(
            table, "attributions", f"{words} ({suite})",
            f"{suite}, {len(table['suites'][suite]['tasks'])} tasks; {how}", of, "greater",
            margin, unit, reason=helped(table, [suite]),
        )  # fmt: skip
    for name, suites in found.items():
        yield claim(
            table, name, words, f"mean over {', '.join(suites)}; {how}", mean_over(suites),
            "greater", margin, unit, reason=helped(table, suites),
        )  # fmt: skip
    common = [suite for suite in table["suites"] if all(suite in of for of in found.values())]
    means = {name: mean_over({s: of[s] for s in common}) for name, of in found.items()}
    mine = means.pop("attributions")
    yield claim_against_all(
        table, "attributions", f"{words}, better than other evidence",
        f"mean over {', '.join(common)}; {how}",
        {name: minus(mine, of) for name, of in means.items()}, "greater", margin,
        "of rank correlation over",
    )  # fmt: skip


def section(table: Table) -> str:
    rows, told = [], []
    for suite, one in table["suites"].items():
        for name, of in one["evidence"].items():
            targets = of["targets"]
            rows.append(
                [suite, name, spread(of["pairs"]), "" if None in targets else spread(targets),
                 spread(of["picked"])]
            )  # fmt: skip
        pair_Q = mean_gains(one)
        told.append(
            f"{suite} {float(pair_Q.mean()):+.1f} % ({float(pair_Q.min()):+.1f} to "
            f"{float(pair_Q.max()):+.1f}, {int((pair_Q > 0).sum())} of {len(pair_Q)} above 0)"
        )
    head = ["suite", "evidence", "over pairs", "within targets", "gain of the first third, points"]
    return grid(
        table, "Pairs: which evidence foresees the gains of training two tasks together", head,
        rows,
        f"Rank correlation with the gains that the other seeds measured; mean gain of a pair's two "
        f"tasks over being alone: {'; '.join(told)}. Last column: of the third of pairs put first, "
        f"above the mean pair. `{CEILING}`: measured gains themselves, with one seed.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
