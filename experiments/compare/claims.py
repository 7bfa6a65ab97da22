"""What papers claim about the methods compared, held against the tables in this folder.

Every claim is about delta-m, so the paired difference of a seed is one side's delta-m minus the
other's with that seed, averaged over suites that were run with three seeds: each suite counts
alike. There are two groups, both with margins chosen before any run of theirs:

- `PAIRS`, the first five, over every suite with three seeds, margin half a point.
- `PLANNED`, fixed in `experiments/balance/README.md`, over those of `SUITES` whose table has all
  methods that the claim names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from polytask.catalog import method
from polytask.evaluate import Claim, Effect, decide, decide_against_all, interval
from polytask.evaluate.claims import save

MARGIN = 0.5
"""Points of delta-m that matter where a method is said to be better."""
MATCH = 1.0
"""Points of delta-m that matter where methods are said to match."""
COMMAND = "python experiments/compare/run.py"

Tables = Mapping[str, Mapping[str, Any]]

PAIRS = (
    ("uncertainty", "equal", "uncertainty weighting beats equal weights"),
    ("dwa", "equal", "dynamic weight average beats equal weights"),
    ("pcgrad", "equal", "removing conflicting gradient components beats equal weights"),
    ("aligned-mtl", "pcgrad", "aligning gradient components beats projecting conflicts away"),
    ("aligned-mtl", "equal", "aligning gradient components beats equal weights"),
)
"""Method, what it is said to beat, the claim in words. Sources are those of the catalog."""

SUITES = ("digits2", "tox21", "census", "sentences")
"""Those that are run with every method."""

GRADIENT = (
    "pcgrad", "gradvac", "cagrad", "imtl-g", "nash-mtl", "aligned-mtl", "fairgrad", "upgrad",
    "dualproj", "mgda", "sdmgrad", "moco", "graddrop", "config", "trimmed-mean",
)  # fmt: skip
LOSS = (
    "equal", "uncertainty", "dwa", "gls", "rlw", "imtl-l", "scale-invariant", "stch", "famo",
    "gradnorm", "coba",
)  # fmt: skip
"""Loss balancers that are no IGB."""
EVERY = (*GRADIENT, *LOSS, "igb-v1", "igb-v2")
OTHERS = tuple(name for name in EVERY if name != "equal")


@dataclass(frozen=True)
class Planned:
    """A claim about `system` against `rivals`: every one of them, or their mean."""

    system: str
    rivals: tuple[str, ...]
    named: str
    words: str
    expected: Literal["greater", "no worse", "equal"]
    margin: float
    against: Literal["mean", "all"]
    paper: str = ""


KURIN = "Kurin et al., NeurIPS 2022, arXiv:2201.04122"
XIN = "Xin et al., NeurIPS 2022, arXiv:2209.11379"

PLANNED = (
    *(
        Planned(
            "aligned-mtl", (rival,), rival, f"is ahead of {rival}", "greater", MARGIN, "mean"
        )
        for rival in ("pcgrad", "cagrad", "nash-mtl")
    ),
    *(
        Planned(
            name, LOSS, "loss balancers", f"{version} is the best of the loss balancers",
            "greater", MARGIN, "all",
        )
        for name, version in (("igb-v1", "IGB v1"), ("igb-v2", "IGB v2"))
    ),
    *(
        Planned(
            name, LOSS, "loss balancers",
            f"{version} is better than loss balancers commonly are", "greater", MARGIN, "mean",
        )
        for name, version in (("igb-v1", "IGB v1"), ("igb-v2", "IGB v2"))
    ),
    Planned(
        "famo", GRADIENT, "gradient methods", "matches the mean of the gradient methods",
        "equal", MATCH, "mean",
    ),
    Planned(
        "famo", GRADIENT, "gradient methods", "is no worse than the best gradient method",
        "no worse", MATCH, "all",
    ),
    Planned(
        "equal", OTHERS, "other methods", "tuned equal weights match every method",
        "no worse", MATCH, "all", KURIN,
    ),
    Planned(
        "equal", OTHERS, "other methods", "methods gain nothing on average over a plain sum",
        "no worse", MATCH, "mean", XIN,
    ),
)  # fmt: skip


def write(tables: Tables, path: Path) -> None:
    """Decide the claims on all tables with three seeds and write their records."""
    seeded = {name: table for name, table in tables.items() if len(table["seeds"]) >= 3}
    made = []
    for winner, loser, words in PAIRS:
        both = {n: t for n, t in seeded.items() if {winner, loser} <= set(t["methods"])}
        if both:
            made.append(_pair(both, winner, loser, words))
    for planned in PLANNED:
        used = {
            name: seeded[name]
            for name in SUITES
            if name in seeded and {planned.system, *planned.rivals} <= set(seeded[name]["methods"])
        }
        if used:
            made.append(_planned(used, planned))
    if made:
        save(path.parent, made)


def _pair(used: Tables, winner: str, loser: str, words: str) -> Claim:
    differences = _differences(used, winner, loser)
    return Claim(
        system=winner,
        paper=method(winner).source,
        claim=words,
        setting=f"{_setting(used)}; margin {MARGIN} points",
        seeds=_seeds(used),
        outcome=decide(differences, "greater", MARGIN),
        effect=Effect(fmean(differences), f"points of delta-m over {loser}"),
        interval=interval(differences),
        reason="",
        command=COMMAND,
        versions=_versions(used),
    )


def _planned(used: Tables, planned: Planned) -> Claim:
    by_rival = {rival: _differences(used, planned.system, rival) for rival in planned.rivals}
    reason = ""
    if planned.against == "all":
        assert planned.expected != "equal", "equality with all rivals is no claim of the plan"
        outcome, hardest = decide_against_all(by_rival, planned.expected, planned.margin)
        differences, over = by_rival[hardest], hardest
        alone = [decide(d, planned.expected, planned.margin) for d in by_rival.values()]
        reason = (
            f"against all of {len(by_rival)} rivals, the hardest shown; alone at 95 % it is seen "
            f"against {alone.count('seen')}, not seen against {alone.count('not seen')}"
        )
    else:
        differences = [fmean(of_seed) for of_seed in zip(*by_rival.values(), strict=True)]
        outcome = decide(differences, planned.expected, planned.margin)
        over = planned.rivals[0] if len(planned.rivals) == 1 else f"the mean of {planned.named}"
    rule = {"greater": "margin", "no worse": "no worse by", "equal": "equal within"}
    return Claim(
        system=planned.system,
        paper=planned.paper or method(planned.system).source,
        claim=planned.words,
        setting=f"{_setting(used)}; {rule[planned.expected]} {planned.margin} points",
        seeds=_seeds(used),
        outcome=outcome,
        effect=Effect(fmean(differences), f"points of delta-m over {over}"),
        interval=interval(differences),
        reason=reason,
        command=COMMAND,
        versions=_versions(used),
    )


def _differences(used: Tables, winner: str, loser: str) -> list[float]:
    """Return one paired difference per seed, the mean over the suites."""
    return [
        fmean(_delta_m(t, winner, i) - _delta_m(t, loser, i) for t in used.values())
        for i in range(len(_seeds(used)))
    ]


def _delta_m(table: Mapping[str, Any], name: str, seed: int) -> float:
    gains = [task["gains"][seed] for task in table["methods"][name]["tasks"].values()]
    return fmean(gain for gain in gains if gain is not None)


def _setting(used: Tables) -> str:
    return f"delta-m, mean over {', '.join(used)}; hard sharing, each method tuned alike"


def _seeds(used: Tables) -> tuple[int, ...]:
    """Return the seeds that every table has."""
    return min((tuple(table["seeds"]) for table in used.values()), key=len)


def _versions(used: Tables) -> dict[str, str]:
    versions: dict[str, str] = next(iter(used.values()))["versions"]
    return versions
