"""The figures in `docs/balance.md`: what stands between two markers follows from the tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import correlation, fmean, median
from typing import Any

import page
import picture

from polytask.evaluate import interval
from polytask.evaluate.interval import discoveries, p_value

Table = Mapping[str, Any]

PROMISES = {
    "equal": ("the sum of the losses is minimised", "first, always; tune its learning rate"),
    "fixed": (
        "the weighted sum is minimised", "the weights are known, or few enough to be searched",
    ),
    "uncertainty": (
        "weights are the optimum of a noise model of each task",
        "losses are likelihoods of different scale",
    ),
    "dwa": ("none; equal weights on average", "tasks learn at different times"),
    "gls": (
        "no loss's unit matters", "positive losses on scales far apart; none may reach 0",
    ),
    "rlw": ("equal weights on average", "as a control: what does not beat it does nothing"),
    "imtl-l": ("every weighted loss tends to 1", "losses on scales far apart"),
    "scale-invariant": (
        "no loss's unit matters", "positive losses on scales far apart; none may reach 0",
    ),
    "stch": (
        "near the Pareto point of the smallest largest loss", "the worst task counts most",
    ),
    "famo": (
        "all losses fall at nearly equal relative rates", "many tasks: one forward more in all",
    ),
    "gradnorm": (
        "gradients tend to norms set by training rates", "one task's gradient dwarfs the others'",
    ),
    "igb-v1": ("none; more weight to what improved least", "tasks have a level to improve on"),
    "igb-v2": (
        "none; weights are chosen by an agent that learns on the way",
        "long runs: the agent needs updates to learn from",
    ),
    "coba": (
        "none; weights follow the slopes of validation losses",
        "tasks overfit at different times, and validation rows abound",
    ),
    "pcgrad": (
        "with two tasks no conflict is left; with more, less of it",
        "few tasks that pull apart",
    ),
    "aligned-mtl": (
        "condition number 1; preset weights give the optimum of their weighted sum",
        "one task dominates, or a preference among tasks is known",
    ),
    "mgda": (
        "descends on every task; stops at a Pareto stationary point",
        "no task may be given up; small gradients lead",
    ),
    "sdmgrad": (
        "as MGDA, pulled towards the mean gradient", "MGDA stalls, or a direction is preferred",
    ),
    "moco": (
        "as MGDA in the limit, from averaged gradients", "small batches, many updates",
    ),
    "cagrad": (
        "within a ball around the mean gradient, best for the task worst off; converges to the "
        "minimum of the mean loss",
        "the mean counts, but no task should pay for it",
    ),
    "gradvac": ("none; pairs keep their usual cosine", "tasks are similar on average"),
    "imtl-g": (
        "the update projects equally on every task's unit gradient", "gradient norms differ much",
    ),
    "config": (
        "equal positive cosine with every gradient, where one exists",
        "few tasks; physics-informed losses",
    ),
    "nash-mtl": (
        "the bargaining solution: no unit of a loss matters", "scales differ and fairness counts",
    ),
    "fairgrad": (
        "alpha-fair shares of improvement", "how much fairness counts is to be a setting (alpha)",
    ),
    "upgrad": (
        "conflicts with no task, at any number of tasks", "no task may get worse in a step",
    ),
    "dualproj": (
        "conflicts with no task, as near as can be to the mean gradient",
        "no task may get worse in a step",
    ),
    "graddrop": ("none", "as a regulariser"),
    "trimmed-mean": (
        "outlying values of a coordinate do not count", "some tasks are noisy or wrong",
    ),
}  # fmt: skip
"""What a method's source promises, and when that is what one wants."""

MARKED = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def filled(
    text: str, tables: Mapping[str, Table], cost: Mapping[str, Any], around: Sequence[Table]
) -> str:
    """Return the page with the parts between its markers made from the tables.

    around: of methods with and without what stands around them.
    """
    full = {name: table for name, table in tables.items() if page.is_full(table)}
    made = {
        "suites": _suites(full),
        "against-equal": _against_equal(full),
        "families": _families(full),
        "methods": _methods(full, cost),
        "wrappers": _wrappers(around),
    }

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}{made.pop(found[2])}{found[3]}"

    page_text = MARKED.sub(part, text)
    assert not made, f"the page has no place for {', '.join(made)}"
    return page_text


def leads(table: Table, method: str) -> list[float]:
    """Return a method's delta-m minus equal weights', one per seed, over the tasks both have."""
    ours, theirs = (table["methods"][name]["tasks"] for name in (method, "equal"))
    both = [t for t in ours if None not in (*ours[t]["gains"], *theirs[t]["gains"])]
    return [
        fmean(ours[t]["gains"][k] - theirs[t]["gains"][k] for t in both)
        for k in range(len(table["seeds"]))
    ]


def _suites(full: Mapping[str, Table]) -> str:
    rows = [
        f"[{name}](results.md#{name}) ({table['about']['title']}; {len(table['tasks'])} tasks, "
        f"{len(table['methods']) - 1} methods, {len(table['seeds'])} seeds)"
        for name, table in full.items()
    ]
    return "".join(f"- {row}\n" for row in rows)


def _others(table: Table) -> list[str]:
    return [
        name
        for name, found in table["methods"].items()
        if name not in ("single", "equal") and found["delta_m"] is not None
    ]


def _against_equal(full: Mapping[str, Table]) -> str:
    rows = []
    for name, table in full.items():
        others = _others(table)
        found = {method: leads(table, method) for method in others}
        bounds = {method: interval(values) for method, values in found.items()}
        p_values = [p if (p := p_value(found[m])) is not None else 1.0 for m in others]
        hold = [m for m, sure in zip(others, discoveries(p_values), strict=True) if sure]

        def count(names: Sequence[str], sign: int, bounds: Any = bounds) -> int:
            return sum(
                (b[0] > 0 if sign > 0 else b[1] < 0) for m in names if (b := bounds[m]) is not None
            )

        best = max(others, key=lambda m: page.delta(table, m))
        rows.append(
            [
                f"[{name}](results.md#{name})",
                page.cell(table, "equal"),
                best,
                _lead(found[best]),
                f"{sum(fmean(values) > 0 for values in found.values())} of {len(others)}",
                f"{count(others, 1)} ({count(hold, 1)})",
                f"{count(others, -1)} ({count(hold, -1)})",
            ]
        )
    head = [
        "suite", "equal: delta-m", "best method", "its lead over equal", "methods ahead",
        "surely ahead", "surely behind",
    ]  # fmt: skip
    return page.grid(head, rows)


def _lead(values: Sequence[float]) -> str:
    bounds = interval(values)
    text = f"{fmean(values):+.2f}"
    return text if bounds is None else f"{text} [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def _families(full: Mapping[str, Table]) -> str:
    rows = []
    for family, (_, words) in picture.FAMILIES.items():
        row = [words]
        for table in full.values():
            found = [
                fmean(leads(table, name))
                for name in _others(table)
                if picture.family(name) == family and "+" not in name
            ]
            row.append(
                f"{median(found):+.2f} ({min(found):+.2f} to {max(found):+.2f})" if found else ""
            )
        rows.append(row)
    return page.grid(["a method that", *full], rows) + _agreement(full)


def _agreement(full: Mapping[str, Table]) -> str:
    """Say how far the suites agree on the order of the methods."""
    said = []
    for (one, first), (other, second) in combinations(full.items(), 2):
        both = [name for name in _others(first) if name in _others(second)]
        if len(both) > 2:
            orders = [sorted(both, key=lambda m, t=t: page.delta(t, m)) for t in (first, second)]
            places = [[order.index(name) for name in both] for order in orders]
            said.append(f"{one} and {other} {correlation(*places):+.2f}")
    if not said:
        return ""
    return (
        "\nHow far two suites agree on the order of the methods (rank correlation: 1 the same, 0 "
        f"no relation, -1 reversed): {', '.join(said)}.\n"
    )


def _methods(full: Mapping[str, Table], cost: Mapping[str, Any]) -> str:
    times, memory = page.step_times(cost), page.step_times(cost, "memory")
    ranks = dict(page.ranked(full))
    needs = {"losses": "losses", "gramian": "products of gradients", "rows": "gradients"}
    order = [*ranks, *(name for name in PROMISES if name not in ranks)]
    rows = []
    for name in order:
        promise, when = PROMISES.get(name, ("", "see [recipes](#in-a-recipe)"))
        rows.append(
            [
                f"`{name}`",
                needs[picture.family(name)],
                f"x {times[name]:.2f}" if name in times else "",
                f"x {memory[name]:.2f}" if name in memory else "",
                f"{ranks[name]:.1f}" if name in ranks else "",
                promise,
                when,
            ]
        )
    head = ["method", "sees", "step", "memory", "mean rank", "what its source promises", "when"]
    return page.grid(head, rows)


def _wrappers(around: Sequence[Table]) -> str:
    """Return what each addition changed, in points of delta-m: a row per addition and suite."""
    bases = list(dict.fromkeys(b for t in around for found in t["added"].values() for b in found))
    rows = []
    for table in around:
        for recipes in table["added"].values():
            for suite, found in table["suites"].items():
                of = found["delta_m"]
                base, recipe = next(iter(recipes.items()))
                added = recipe.replace(f"{base}+", "").replace(f"+{base}", "")
                row = [added, f"[{suite}](results.md#{suite})"]
                for base in bases:
                    both = (of[base], of[recipes[base]]) if base in recipes else ((), ())
                    # as many seeds as both have
                    change = [after - before for before, after in zip(*both, strict=False)]
                    row.append(_lead(change) if change else "")
                rows.append(row)
    return page.grid(["added", "suite", *(f"`{base}`" for base in bases)], rows)
