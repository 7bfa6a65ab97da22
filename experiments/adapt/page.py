"""The page `results.md` beside this file and the records `claims.json`, from the tables.

    python experiments/adapt/page.py

Every experiment is a module with `main()`, which runs it and writes `NAME.json`, `claims(table)`,
which decides what the table says of the claims in README.md, and `section(table)`, its part of the
page. An experiment without a table yet has no claims and no section.
"""

from __future__ import annotations

from types import ModuleType

import minilm
import transfer
import vision
from found import KEPT, Page

EXPERIMENTS: tuple[ModuleType, ...] = (minilm, transfer, vision)
"""In the order of the page; the table of each bears its name."""

HEAD = """# What the experiments on adapters found

Figures behind the claims planned in [README.md](README.md), which says what each row is; the claims
as they were decided are in [the ledger](../../docs/claims.md). Mean ± standard deviation over
seeds. Written by `python experiments/adapt/page.py` from the tables beside it.
"""

PAGE = Page(KEPT, HEAD, EXPERIMENTS)

if __name__ == "__main__":
    PAGE.write()
