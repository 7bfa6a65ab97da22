"""The page `results.md` beside this file and the records `claims.json`, from the tables.

    python experiments/share/page.py

Every experiment is a module with `main()`, which runs it and writes `NAME.json`, `claims(table)`,
which decides what the table says of the claims in README.md, and `section(table)`, its part of the
page. An experiment without a table yet has no claims and no section.
"""

from __future__ import annotations

from types import ModuleType

import ailments
import alone
import branched_digits2
import branching
import impressions
import modality_missing
import on_fields
import selecting
import specialising
import unbalanced
import unrelated
import vision_compared
import vision_new_task
from found import KEPT, Page

EXPERIMENTS: tuple[ModuleType, ...] = (
    impressions,
    modality_missing,
    ailments,
    unbalanced,
    alone,
    on_fields,
    selecting,
    branching,
    branched_digits2,
    unrelated,
    specialising,
    vision_compared,
    vision_new_task,
)
"""In the order of the page; the table of each bears its name."""

HEAD = """# What the experiments on sharing found

Figures behind the claims planned in [README.md](README.md), which says what each column is; the
claims as they were decided are in [the ledger](../../docs/claims.md). Mean ± standard deviation
over seeds. Written by `python experiments/share/page.py` from the tables beside it.
"""

PAGE = Page(KEPT, HEAD, EXPERIMENTS)

if __name__ == "__main__":
    PAGE.write()
