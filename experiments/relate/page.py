"""The page `results.md` beside this file and the records `claims.json`, from the tables.

    python experiments/relate/page.py

Every experiment is a module with `main()`, which runs it and writes `NAME.json`, `claims(table)`,
which decides what the table says of the claims in README.md, and `section(table)`, its part of the
page. An experiment without a table yet has no claims and no section.
"""

from __future__ import annotations

from types import ModuleType

import benchmark
import clusters
import joint_split
import known_truth
import pairs
import real_clusters
import real_sources
import sources
from found import KEPT, Page

import suites

EXPERIMENTS: tuple[ModuleType, ...] = (
    known_truth,
    pairs,
    joint_split,
    sources,
    real_sources,
    benchmark,
    clusters,
    real_clusters,
    suites,
)
"""In the order of the page; the table of each bears its name."""

HEAD = """# What the experiments on relating tasks found

Figures behind the claims planned in [README.md](README.md), which says what each column is; the
claims as they were decided are in [the ledger](../../docs/claims.md). Mean ± standard deviation
over seeds. Written by `python experiments/relate/page.py` from the tables beside it.
"""

PAGE = Page(KEPT, HEAD, EXPERIMENTS)

if __name__ == "__main__":
    PAGE.write()
