"""APEM and DTRN against MMoE and PLE, on the encoder's features and on the same embedded fields.

    python experiments/share/on_fields.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from compared import ON_CENSUS, compared, delta_m, published
from found import KEPT, Table, claim, minus, spread
from found import section as grid

from polytask.evaluate import Claim

METHODS = ("apem", "dtrn")
RIVALS = ("mmoe", "ple")
SUITES = ("census", "clicks")


def main() -> None:
    torch.set_num_threads(1)
    found = compared("census", ON_CENSUS, 3)
    kept = ("single", *(f"{rival}:on=fields" for rival in RIVALS))
    methods: dict[str, Any] = {name: found["methods"][name] for name in kept}
    picked = {name: found["picked"][name] for name in kept}
    KEPT.write("on_fields", {"seeds": found["seeds"], "picked": picked, "methods": methods})


def _known(name: str, suite: str) -> list[float]:
    return delta_m(published(f"{suite}-sharing")["methods"][name]["tasks"])


def _apart(table: Table) -> float:
    """Return the largest difference of a single-task test value of this run and the table's, %."""
    theirs = published("census-sharing")["methods"]["single"]["tasks"]
    return max(
        100 * abs(mine / other - 1)
        for task, of in table["methods"]["single"].items()
        for mine, other in zip(of["values"], theirs[task]["values"], strict=True)
    )


def claims(table: Table) -> Iterator[Claim]:
    """Both methods over both rivals, twice."""
    known = published("census-sharing")
    for name in METHODS:
        for rival in RIVALS:
            per_suite = [minus(_known(name, s), _known(rival, s)) for s in SUITES]
            yield claim(
                known, name, f"is ahead of {rival}",
                f"delta-m, mean over {', '.join(SUITES)}; {rival} on the encoder's features, each "
                "method tuned alike",
                [fmean(of_seed) for of_seed in zip(*per_suite, strict=True)], "greater", 0.5,
                f"points of delta-m over {rival}", reason="the tables were known before",
            )  # fmt: skip
    apart = _apart(table)
    for name in METHODS:
        for rival in RIVALS:
            control = f"{rival}:on=fields"
            yield claim(
                table, name, f"is ahead of {rival} on the same embedded fields",
                "delta-m on census, each method tuned alike",
                minus(_known(name, "census"), delta_m(table["methods"][control])), "greater", 0.5,
                f"points of delta-m over {control}",
                reason=f"{name} of the known table; single-task models of both differ by at most "
                f"{apart:.2g} %",
            )  # fmt: skip


def section(table: Table) -> str:
    """Return delta-m of all, on census and clicks."""
    rows = [[name, *(spread(_known(name, s)) for s in SUITES)] for name in (*RIVALS, *METHODS)]
    for rival in RIVALS:
        control = f"{rival}:on=fields"
        rows.append([control, spread(delta_m(table["methods"][control])), ""])
    return grid(
        table,
        "Embedded fields: delta-m over single-task models",
        ["method", *SUITES],
        rows,
        "The first four from the comparisons' tables, the others from this run.",
    )


if __name__ == "__main__":
    main()
