"""Affinities and rules of grouping against measured gains, where these are published.

    python experiments/relate/known_truth.py

Plan: README.md beside this file.

Shapes: T = tasks, G = groups, S = sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch
from found import KEPT, Table
from found import section as grid
from scipy.stats import spearmanr
from tables import Grouping, Transfer, groupings, higher_orders, transfers
from torch import Tensor

from polytask.errors import UsageError
from polytask.evaluate import Claim
from polytask.relate import Gains, Groups, MTGNet, cover, exact, greedy, hoa

SEEDS = tuple(range(5))
SHARES = (0.1, 0.5)
"""Of the measured groups, how many MTG-Net learns from."""

MOST = 400
"""Groups that MTG-Net learns from at most: a share that is more is left out."""

BUDGETS = {5: (2, 3), 7: (2, 3, 4), 27: (3, 6)}
RANDOM = 300


def within_targets(truth_ST: Tensor, guess_ST: Tensor) -> float | None:
    """Return Spearman's correlation over sources, averaged over targets with 4 sources or more."""
    found = []
    for t in range(truth_ST.shape[1]):
        known = ~(truth_ST[:, t].isnan() | guess_ST[:, t].isnan())
        pair = truth_ST[known, t], guess_ST[known, t]
        if int(known.sum()) >= 4 and all(len(set(side.tolist())) > 1 for side in pair):
            found.append(float(spearmanr(*pair).statistic))
    return fmean(found) if found else None


def caught(truth_ST: Tensor, guess_ST: Tensor) -> float | None:
    """Return the gain of the guessed best source between an average (0) and the best one (1)."""
    found = []
    for t in range(truth_ST.shape[1]):
        known = ~(truth_ST[:, t].isnan() | guess_ST[:, t].isnan())
        values = truth_ST[known, t]
        if int(known.sum()) >= 4 and float(values.max()) > float(values.mean()):
            pick = values[int(guess_ST[known, t].argmax())]
            found.append(float((pick - values.mean()) / (values.max() - values.mean())))
    return fmean(found) if found else None


def of_transfer(given: Transfer) -> dict[str, Any]:
    """Return what each guess is worth."""
    rules = {
        name: {
            "correlation": within_targets(given.truth_ST, guess_ST),
            "caught": caught(given.truth_ST, guess_ST),
        }
        for name, guess_ST in given.guesses.items()
    }
    return {"rules": rules}


def predictors(given: Grouping) -> dict[str, list[Gains]]:
    """Return what each rule expects of every group in the table; several where it draws."""
    member_GT = given.chosen_by.member_GT
    found = {"pairs, measured": [hoa(given.chosen_by.pairs(), member_GT)]}
    if given.tag is not None:
        found["pairs, TAG"] = [hoa(given.tag.pairs(), member_GT)]
    for share in SHARES:
        nets = []
        count = max(2, round(share * len(member_GT)))
        if count > MOST:
            continue
        for seed in SEEDS if count < MOST // 2 else SEEDS[:2]:  # the clinical table: two
            drawn = torch.randperm(len(member_GT), generator=torch.Generator().manual_seed(seed))
            seen = given.chosen_by.only(drawn[:count])
            net = MTGNet(given.truth.tasks, seed=seed, ensemble=2, steps=150).fit(seen)
            nets.append(net.predict(member_GT))
        found[f"MTG-Net, {100 * share:g} % of groups"] = nets
    found["validation gains, all groups"] = [given.chosen_by]
    return found


def correlation(truth: Gains, guess: Gains) -> float | None:
    """Return Spearman's correlation over the groups of three or more, averaged over tasks."""
    large = truth.member_GT.sum(1) > 2
    return within_targets(truth.gain_GT[large], guess.gain_GT[large])


def random_groupings(given: Grouping, budget: int) -> list[float]:
    """Return the mean gains of random partitions into `budget` groups.

    Where not every group was measured: of the group of all tasks and random listed ones beside it,
    each task served by a random one of those that hold it.
    """
    generator = np.random.default_rng(0)
    T = len(given.truth.tasks)
    complete = len(given.truth) == 2**T - T - 1
    rows = given.truth.member_GT.numpy()
    at = {tuple(row): g for g, row in enumerate(rows.astype(int).tolist())}
    gain_GT = given.truth.gain_GT.numpy()
    found: list[float] = []
    while len(found) < RANDOM:
        if complete:
            home = generator.integers(0, budget, T)
            groups = [home == k for k in range(budget) if (home == k).any()]
        else:
            drawn = generator.choice(len(rows), budget - 1, replace=False)
            groups = [np.ones(T, dtype=bool), *rows[drawn]]
        gains = []
        for t in range(T):
            held = [g for g in groups if g[t]]
            group = held[generator.integers(len(held))]
            gains.append(gain_GT[at[tuple(group.astype(int))], t] if group.sum() > 1 else 0.0)
        found.append(float(np.mean(gains)))
    return found


def mean_gain(truth: Gains, groups: Groups) -> float | None:
    """Return the mean gain that was measured for a grouping; None where not all of it was."""
    value = float(truth.measured(groups).mean())
    return value if value == value else None


def of_grouping(given: Grouping) -> dict[str, Any]:
    """Return correlations, and mean gains in % of every rule's choice at every budget."""
    T = len(given.truth.tasks)
    every = predictors(given)
    found: dict[str, Any] = {
        "groups": len(given.truth),
        "correlation": {
            name: fmean(c for g in guesses if (c := correlation(given.truth, g)) is not None)
            for name, guesses in every.items()
        },
        "budgets": {},
    }
    whole = given.truth.member_GT.all(1)
    together = float(given.truth.gain_GT[whole][0].mean())
    for budget in BUDGETS[T]:
        best = cover(given.truth, budget)
        gains = {
            "optimum": best.score,
            "random": fmean(random_groupings(given, budget)),
            "all together": together,
        }
        for name, guesses in every.items():
            gains[name] = fmean(
                float(given.truth.measured(cover(guess, budget, seconds=20)).mean())
                for guess in guesses
            )
        pairs = {"measured": given.chosen_by.pairs()}
        if given.tag is not None:
            pairs["TAG"] = given.tag.pairs()
        for name, affinity in pairs.items():
            for rule in (exact, greedy):
                try:
                    groups = rule(affinity, budget)
                except UsageError:
                    continue  # too many tasks for exact
                value = mean_gain(given.truth, groups)
                if value is not None:
                    gains[f"{rule.__name__} on pairs, {name}"] = value
        found["budgets"][str(budget)] = {
            "optimal": best.optimal,
            "gains": {name: 100 * value for name, value in gains.items()},
        }
    return found


def of_orders() -> dict[str, Any]:
    """Return how well sources together are foreseen from each alone, by order."""
    found = {}
    for order, rows in sorted(higher_orders().items()):
        by: dict[str, list[float]] = {"mean": [], "best": []}
        for target in sorted({row[3] for row in rows}):
            mine = [row for row in rows if row[3] == target]
            measured = [row[0] for row in mine]
            if len(mine) < 4 or len(set(measured)) < 2:
                continue
            for at, name in ((1, "mean"), (2, "best")):
                guess = [row[at] for row in mine]
                if len(set(guess)) > 1:
                    by[name].append(float(spearmanr(measured, guess).statistic))
        found[order] = {"sets": len(rows)} | {n: fmean(v) for n, v in by.items() if v}
    return found


def main() -> None:
    torch.set_num_threads(1)
    names = {
        given.name: KEPT.run(f"known_truth/{given.name}", lambda g=given: of_grouping(g))
        for given in groupings()
    }
    KEPT.write("known_truth", {
        "seeds": list(SEEDS),
        "groupings": names,
        "transfers": {given.name: of_transfer(given) for given in transfers()},
        "orders": of_orders(),
    })  # fmt: skip


def claims(table: Table) -> Iterator[Claim]:
    """No claims: these are single tables, without seeds to pair."""
    yield from ()


def section(table: Table) -> str:
    """The part of the page."""
    rules = list(dict.fromkeys(r for g in table["groupings"].values() for r in g["correlation"]))
    first = grid(
        table, "Gains of groups: rank correlation with the truth",
        ["table", "groups", *rules],
        [
            [name, f"{g['groups']:,}", *(_number(g["correlation"].get(rule)) for rule in rules)]
            for name, g in table["groupings"].items()
        ],
        "Over groups of three tasks or more, within each task, averaged over tasks.",
    )  # fmt: skip
    ends = ("optimum", "random", "all together")
    chosen = list(dict.fromkeys(
        rule for g in table["groupings"].values() for b in g["budgets"].values()
        for rule in b["gains"] if rule not in ends
    ))  # fmt: skip
    rows = []
    for name, g in table["groupings"].items():
        for budget, found in g["budgets"].items():
            best = found["gains"]["optimum"]
            regret = {rule: best - value for rule, value in found["gains"].items()}
            rows.append([name, budget, f"{best:.2f}",
                         *(_number(regret.get(r)) for r in (*ends[1:], *chosen))])  # fmt: skip
    second = grid(
        table, "Groups chosen: mean gain that was missed, in percentage points",
        ["table", "models", "gain of the optimum, %", *ends[1:], *chosen], rows,
        "The optimum is the best choice by the test gains themselves, proven by `cover`. Rules "
        "named without `exact` or `greedy` choose by `cover` among the groups in the table.",
    )  # fmt: skip
    guesses = list(dict.fromkeys(r for t in table["transfers"].values() for r in t["rules"]))
    third = grid(
        table, "Transfer: rank correlation with the truth, and what the source guessed best gains",
        ["table", *guesses],
        [
            [name, *(_both(t["rules"].get(guess)) for guess in guesses)]
            for name, t in table["transfers"].items()
        ],
        "Over sources, within each target, averaged over targets; behind the stroke what the "
        "source guessed best gains, between an average one (0) and the best (1).",
    )  # fmt: skip
    fourth = grid(
        table, "Several sources at once (Taskonomy, 16,000 images): foreseen from each alone",
        ["sources", "sets", "by their mean", "by their best"],
        [
            [order, str(o["sets"]), _number(o.get("mean")), _number(o.get("best"))]
            for order, o in table["orders"].items()
        ],
        "Rank correlation within each target, averaged over targets.",
    )  # fmt: skip
    return "\n".join([first, second, third, fourth])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _both(found: dict[str, float | None] | None) -> str:
    if found is None or found["correlation"] is None:
        return ""
    return f"{_number(found['correlation'])} / {_number(found['caught'])}"


if __name__ == "__main__":
    main()
