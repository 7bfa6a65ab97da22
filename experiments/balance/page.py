"""The page `results.md` beside this file: what the tables hold, the context of the claims included.

python experiments/balance/page.py     # also writes claims.json, see claims.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import claims
import store

from kept import Table, section, spread

HEAD = """# What the experiments on balance methods found

Figures behind the claims planned in [README.md](README.md), which says what each column is; the
claims as they were decided are in [the ledger](../../docs/claims.md). Mean ± standard deviation
over seeds. Written by `python experiments/balance/page.py` from the tables beside it.
"""


def markdown(tables: Mapping[str, Table]) -> str:
    """Return the page: a section for each table that is there."""
    sections = [SECTIONS[name](tables[name]) for name in SECTIONS if name in tables]
    return "\n".join([HEAD, *sections])


def _paths(table: Table) -> str:
    columns = {
        "log10_condition": "log10 of the condition number",
        "least_cosine": "smallest cosine",
        "similarity": "magnitude similarity",
        "unevenness": "unevenness of validation losses",
        "preset_objective": "preset objective, training",
    }
    rows = [
        [name, *(spread(found[key]) if key in found else "" for key in columns)]
        for name, found in table["methods"].items()
    ]
    return section(table, "Along training: digits2", ["method", *columns.values()], rows)


def _preset(table: Table) -> str:
    settings = table["settings"]
    rows = [
        [name, f"{min(left):.3g}", f"{fmean(left):.3g}", f"{max(left):.3g}"]
        for name, left in table["gap_left_percent"].items()
    ]
    head = ["method", "least", "mean", "most"]
    what = f"% of the gap to the optimum left after {settings['updates']} updates"
    return section(table, f"Preset weights, convex: {what}", head, rows)


def _famo_cost(table: Table) -> str:
    counts = list(table["plain_ms"])
    rows = [
        [name, *(f"{fmean(found[k]):.2f}" for k in counts)]
        for name, found in table["ratios"].items()
    ]
    rows.append(["equal, ms", *(f"{fmean(table['plain_ms'][k]):.2f}" for k in counts)])
    head = ["method", *(f"K = {k}" for k in counts)]
    return section(table, "Processor time of a step over that of equal weights", head, rows)


def _convergence(table: Table) -> str:
    rows = [
        [suite, method, spread(found[method]["spread"]), spread(found[method]["best_score"])]
        for suite, found in table["suites"].items()
        for method in ("equal", "coba")
    ]
    head = ["suite", "method", "spread of the best epochs, %", "best validation delta-m"]
    return section(table, "Convergence in the comparisons", head, rows)


def _added(table: Table) -> str:
    return _with_and_without(table, "What is added to a method")


def _wrapped(table: Table) -> str:
    return _with_and_without(table, "Approximations of the Gramian, and looking ahead")


def _with_and_without(table: Table, title: str) -> str:
    rows = []
    for suite, found in table["suites"].items():
        of = found["delta_m"]
        for recipes in table["added"].values():
            for base, recipe in recipes.items():
                # seeds that both have
                pairs = list(zip(of[base], of[recipe], strict=False))
                alone, added = ([pair[i] for pair in pairs] for i in (0, 1))
                change = [after - before for before, after in pairs]
                rows.append([suite, base, recipe, *map(spread, (alone, added, change))])
    head = ["suite", "method", "with the addition", "delta-m alone", "delta-m with it", "change"]
    return section(table, title, head, rows)


def _modalities(table: Table) -> str:
    metrics = table["metrics"]
    rows = [
        [
            name,
            f"{found['lr']:g}",
            *(spread([test[task] for test in found["test"]]) for task in metrics),
            spread(found["delta_m"]),
        ]
        for name, found in table["methods"].items()
    ]
    head = ["method", "rate", *(f"{t} ({m})" for t, m in metrics.items()), "delta-m over equal"]
    return section(table, "Two modality branches: camvid", head, rows)


SECTIONS = {
    "paths": _paths,
    "preset": _preset,
    "famo_cost": _famo_cost,
    "convergence": _convergence,
    "added": _added,
    "wrapped": _wrapped,
    "modalities": _modalities,
}


def main() -> None:
    claims.main()
    tables = {name: table for name in SECTIONS if (table := store.load(name))}
    (Path(__file__).parent / "results.md").write_text(markdown(tables))


if __name__ == "__main__":
    main()
