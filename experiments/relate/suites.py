"""`polytask relate` on real suites: who helps whom, which groups, and how sure that is.

    python experiments/relate/suites.py                 # all of SUITES
    python experiments/relate/suites.py digits2 tox21   # these; the table holds all there are

Three models of all tasks per suite, with the suite's own settings. Nothing is claimed: the groups
are proposals, and are not trained here.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import found
from found import KEPT, Table

from polytask.fit import FitConfig
from polytask.recipes import RelatePlan, load_suite, relate
from polytask.records import together

SUITES = (
    "digits2",
    "clintox",
    "sider",
    "tox21",
    "sarcos",
    "census",
    "school",
    "sentences",
    "fdu_mtl",
)
SEEDS, BUDGET = 3, 3


class Silent:
    """Shows nothing; an error ends all."""

    def begin(self, runs: Any) -> None:
        """Nothing."""

    def step(self, phase: int, job: Any, step: int, steps: int, losses: Any) -> None:
        """Nothing."""

    def done(self, phase: int, job: Any, fresh: bool) -> None:
        """Nothing."""

    def failed(self, job: Any, reason: str, dropped: Any) -> None:
        raise SystemExit(reason)


def related(name: str) -> dict[str, Any]:
    """Return what relating a suite found, in few numbers."""
    suite = load_suite(name)
    config = FitConfig(epochs=suite.epochs, batch_size=suite.batch_size, lr=1e-3)
    found = relate(
        RelatePlan(
            suite=name, seeds=SEEDS, budget=BUDGET, config=config, processes=2,
            out=Path("runs") / "relate" / f"suite-{name}",
            command=f"polytask relate {name} --seeds {SEEDS} --budget {BUDGET}",
        ),
        Silent(),
    )  # fmt: skip
    return {
        "tasks": len(suite.tasks),
        "seconds": found["seconds"],
        "versions": found["versions"],
        "methods": {method: _summary(one) for method, one in found["methods"].items()},
        "left_out": found["left_out"],
    }


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    affinity, T = found["affinity"], len(found["affinity"]["tasks"])
    pairs = [
        (affinity["values"][i][j], affinity["errors"][i][j])
        for i in range(T)
        for j in range(T)
        if i != j and affinity["values"][i][j] is not None
    ]
    sure = [value for value, error in pairs if error is not None and abs(value) > 2 * error]
    shares = [found["together"][i][j] for i in range(T) for j in range(i)]
    return {
        "tasks": T,
        "known": len(pairs),
        "helps": sum(value > 0 for value in sure),
        "hurts": sum(value < 0 for value in sure),
        "settled": sum(share >= 0.9 or share <= 0.1 for share in shares) / max(1, len(shares)),
        "groups": [
            {
                "score": groups["score"],
                "optimal": groups["optimal"],
                "groups": [_members(groups, k) for k in range(len(groups["groups"]))],
            }
            for groups in found["groups"]
        ],
    }


def _members(groups: dict[str, Any], k: int) -> list[str]:
    """Return a group's tasks; in brackets those that only help, and are served elsewhere."""
    served = {t for t, at in zip(groups["tasks"], groups["serve"], strict=True) if at == k}
    return [task if task in served else f"({task})" for task in groups["groups"][k]]


def claims(table: Table) -> list[Any]:
    """Return no claim: see above."""
    return []


def section(table: Table) -> str:
    """Return the page's part."""
    rows = []
    for name, suite in table["suites"].items():
        for method, one in suite["methods"].items():
            last = one["groups"][-1]["groups"]
            shown = (
                " / ".join(map(", ".join, last))
                if one["tasks"] <= 8
                else " / ".join(str(len(group)) for group in last) + " tasks"
            )
            pairs = one["tasks"] * (one["tasks"] - 1)
            rows.append(
                [
                    name, method, str(one["tasks"]), f"{one['helps']} / {one['hurts']} of {pairs}",
                    f"{100 * one['settled']:.0f} %", shown, f"{suite['seconds']:.0f} s",
                ]
            )  # fmt: skip
    head = ["suite", "evidence", "tasks", "help / hurt beyond two errors", "settled pairs",
            f"groups for {BUDGET} models", "training"]  # fmt: skip
    return (
        found.section(table, "Suites: who helps whom, and which to train together", head, rows)
        + "\nSettled: together, or apart, in nine of ten draws of the table within its errors, for "
        f"{BUDGET} models. In brackets tasks that only help a group. Groups are proposals; they "
        f"were not trained. Training: of {SEEDS} models of all tasks, looks left out.\n"
    )


def main() -> None:
    before = KEPT.load("suites") or {"suites": {}}
    there = dict(before["suites"])
    for name in sys.argv[1:] or SUITES:
        there[name] = KEPT.run(f"suite-{name}-summary", partial(related, name))
        kept = {name: there[name] for name in SUITES if name in there}
        made = together(one["versions"] for one in kept.values())
        KEPT.write("suites", {"versions": made, "seeds": list(range(SEEDS)), "suites": kept})


if __name__ == "__main__":
    main()
