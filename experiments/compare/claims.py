"""What papers claim about the methods compared, held against the tables in this folder.

Every claim is about delta-m, so the paired difference of a seed is one method's delta-m minus the
other's with that seed, averaged over the suites that were run with three seeds: each suite counts
alike. The margin, half a point, was chosen before any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from polytask.catalog import method
from polytask.evaluate import Claim, Effect, decide, interval
from polytask.evaluate.claims import save

MARGIN = 0.5
COMMAND = "python experiments/compare/run.py"

CLAIMS = (
    ("uncertainty", "equal", "uncertainty weighting beats equal weights"),
    ("dwa", "equal", "dynamic weight average beats equal weights"),
    ("pcgrad", "equal", "removing conflicting gradient components beats equal weights"),
    ("aligned-mtl", "pcgrad", "aligning gradient components beats projecting conflicts away"),
    ("aligned-mtl", "equal", "aligning gradient components beats equal weights"),
)
"""Method, what it is said to beat, the claim in words. Sources are those of the catalog."""


def write(tables: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Decide the claims on all tables with three seeds and write their records."""
    used = {name: table for name, table in tables.items() if len(table["seeds"]) >= 3}
    if not used:
        return
    first = next(iter(used.values()))
    seeds = tuple(first["seeds"])
    made = []
    for winner, loser, words in CLAIMS:
        differences = [
            fmean(_delta_m(t, winner, i) - _delta_m(t, loser, i) for t in used.values())
            for i in range(len(seeds))
        ]
        made.append(
            Claim(
                system=winner,
                paper=method(winner).source,
                claim=words,
                setting=(
                    f"delta-m, mean over {', '.join(used)}; hard sharing, each method tuned alike; "
                    f"margin {MARGIN} points"
                ),
                seeds=seeds,
                outcome=decide(differences, "greater", MARGIN),
                effect=Effect(fmean(differences), f"points of delta-m over {loser}"),
                interval=interval(differences),
                reason="",
                command=COMMAND,
                versions=first["versions"],
            )
        )
    save(path.parent, made)


def _delta_m(table: Mapping[str, Any], name: str, seed: int) -> float:
    gains = [task["gains"][seed] for task in table["methods"][name]["tasks"].values()]
    return fmean(gain for gain in gains if gain is not None)
