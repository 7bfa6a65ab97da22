"""The page `results.md` beside this file and the records `claims.json`, from the tables.

    python experiments/relate/page.py

Every experiment is a module with `main()`, which runs it and writes `NAME.json`, `claims(table)`,
which decides what the table says of the claims in README.md, and `section(table)`, its part of the
page. An experiment without a table yet has no claims and no section.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import benchmark
import clusters
import known_truth
import sources
from found import KEPT, Table

import suites
from polytask.evaluate import Claim
from polytask.evaluate.claims import save

EXPERIMENTS: tuple[ModuleType, ...] = (known_truth, sources, benchmark, clusters, suites)
"""In the order of the page; the table of each bears its name."""

HEAD = """# What the experiments on relating tasks found

Figures behind the claims planned in [README.md](README.md), which says what each column is; the
claims as they were decided are in [the ledger](../../docs/claims.md). Mean ± standard deviation
over seeds. Written by `python experiments/relate/page.py` from the tables beside it.
"""


def tables() -> dict[str, Table]:
    """Return the tables that are there."""
    names = (experiment.__name__ for experiment in EXPERIMENTS)
    return {name: table for name in names if (table := KEPT.load(name))}


def markdown(tables: Mapping[str, Table]) -> str:
    """Return the page: a section for each table."""
    there = [one for one in EXPERIMENTS if one.__name__ in tables]
    return "\n".join([HEAD, *(one.section(tables[one.__name__]) for one in there)])


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that these tables decide."""
    there = [one for one in EXPERIMENTS if one.__name__ in tables]
    return [claim for one in there for claim in one.claims(tables[one.__name__])]


def main() -> None:
    found = tables()
    save(KEPT.folder, claims(found))
    (KEPT.folder / "results.md").write_text(markdown(found))


if __name__ == "__main__":
    main()
