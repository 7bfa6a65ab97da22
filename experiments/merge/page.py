"""Decides the claims on `eight.json` and writes `claims.json` and `results.md` here.

python experiments/merge/page.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import claims
from found import KEPT, Table, section, spread

from polytask.evaluate.claims import save

HERE = Path(__file__).parent

HEADER = """\
# Merging eight image tasks: results

Written by `python experiments/merge/page.py` from `eight.json`; the plan is in
[README.md](README.md), the claims are in [the ledger](../../docs/claims.md). Normalised accuracy
is the mean over tasks of accuracy over that of the task's own tuned model; each column of a task
is its accuracy, all in %, mean over seeds. Rows with `poisoned` merge a family whose model of mnist
has a backdoor; the last columns say how often it succeeds, and mnist's accuracy without it.
"""


def shown(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, or the one value."""
    return spread(values) if len(values) > 1 else f"{values[0]:.4g}"


def page(table: Table) -> str:
    """Return the page: per backbone, one line per method, the best first."""
    parts = [HEADER]
    for backbone, methods in table["backbones"].items():
        if not methods:
            continue
        ordered = sorted(methods, key=lambda name: -fmean(methods[name]["normalised"]))
        tasks = list(table["tasks"])
        rows = []
        for name in ordered:
            row = methods[name]
            each = [fmean(values) for values in zip(*row["tasks"], strict=True)]
            attack = (
                [shown(row["attack_success"]), shown(row["attacked_accuracy"])]
                if "attack_success" in row
                else ["", ""]
            )
            scale = f"{fmean(row['scale']):.2g}" if "scale" in row else ""
            rows.append(
                [name, shown(row["normalised"]), shown(row["accuracy"])]
                + [f"{value:.1f}" for value in each] + [scale] + attack
            )  # fmt: skip
        head = ["method", "normalised", "accuracy", *tasks, "factor", "success", "mnist"]
        seeds = ", ".join(map(str, methods["individual"]["seeds"]))
        title = f"{claims.NAMES[backbone]}, seeds {seeds}"
        parts.append(section(table, title, head, rows))
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    table = KEPT.load("eight")
    if table is None:
        raise SystemExit("eight.json is not here; run experiments/merge/eight.py first.")
    save(HERE, claims.made(table))
    (HERE / "results.md").write_text(page(table))


if __name__ == "__main__":
    main()
