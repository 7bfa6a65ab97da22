"""What `eight.json` says of the claims in README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from found import Table, claim, minus

from polytask.evaluate import Claim
from polytask.evaluate.claims import Expected

NAMES = {"cnn": "CNN", "vit": "ViT"}
CHANCE = 15.0
"""Success of a backdoor, in %, below which there is none to speak of."""

POISONED = tuple(
    f"poisoned-{name}" for name in ("task-arithmetic", "adamerging", "concrete-adamerging", "dam")
)

GREATER: tuple[tuple[str, str, str, str], ...] = (
    ("adamerging", "ahead of task arithmetic (layer-wise)", "adamerging", "task-arithmetic"),
    ("adamerging", "ahead of task arithmetic (task-wise)", "adamerging-task", "task-arithmetic"),
    ("adamerging", "ahead of task arithmetic (++)", "adamerging-plus", "task-arithmetic"),
    ("adamerging", "layer-wise is ahead of task-wise", "adamerging", "adamerging-task"),
    ("ties", "ahead of the average", "ties", "average"),
    ("breadcrumbs", "ahead of TIES", "breadcrumbs", "ties"),
    ("pcb", "ahead of TIES", "pcb", "ties"),
    *(
        ("surgery", f"adds to {on}", f"{on}+surgery", on)
        for on in ("task-arithmetic", "ties", "adamerging")
    ),
    ("tinting", "ahead of AdaMerging", "tinting", "adamerging"),
    ("tinting", "its filter helps (++)", "tinting-plus", "tinting"),
    *(
        ("tinting", f"tinted heads add to {on}", f"{on}+tinted-heads", on)
        for on in ("task-arithmetic", "ties", "adamerging")
    ),
    ("concrete", "ahead of task arithmetic", "concrete", "task-arithmetic"),
    ("concrete-adamerging", "ahead of AdaMerging", "concrete-adamerging", "adamerging"),
    ("atm", "ahead of task arithmetic", "atm", "task-arithmetic"),
    ("fisher", "ahead of the average", "fisher", "average"),
    ("regmean", "ahead of Fisher merging", "regmean", "fisher"),
    ("atlas", "ahead of task arithmetic", "atlas", "task-arithmetic"),
    ("atlas", "parts help (x10)", "atlas-x10", "atlas"),
    ("self-positioning", "ahead of task arithmetic", "self-positioning", "task-arithmetic"),
    ("consensus", "ahead of task arithmetic", "consensus", "task-arithmetic"),
    ("tsv-m", "ahead of task arithmetic", "tsv-m", "task-arithmetic"),
    ("iso-c", "ahead of task arithmetic", "iso-c", "task-arithmetic"),
    ("iso-cts", "ahead of Iso-C", "iso-cts", "iso-c"),
)
"""System, words, claimed side, other side."""


def made(table: Table) -> Iterator[Claim]:
    """Yield the claims of the backbones that have two seeds or more, from rows with all seeds."""
    for backbone, methods in table["backbones"].items():
        seeds = methods["individual"]["seeds"] if methods else []
        if len(seeds) > 1:
            whole = {name: row for name, row in methods.items() if row["seeds"] == seeds}
            yield from of_backbone(table, backbone, whole)


def of_backbone(table: Table, backbone: str, rows: Mapping[str, Any]) -> Iterator[Claim]:
    setting = f"eight image tasks, {NAMES[backbone]} pretrained on CIFAR-10"
    seeds = rows["individual"]["seeds"]

    def one(
        system: str,
        words: str,
        differences: Sequence[float],
        expected: Expected,
        margin: float,
        unit: str,
        reason: str = "",
    ) -> Claim:
        return claim(
            table, system, f"{words}, {NAMES[backbone]}", setting, differences, expected, margin,
            unit, seeds=seeds, reason=reason,
        )  # fmt: skip

    for system, words, side, other in GREATER:
        if side in rows and other in rows:
            yield one(
                system, words, minus(rows[side]["normalised"], rows[other]["normalised"]),
                "greater", 1.0, f"points of normalised accuracy over {other}",
            )  # fmt: skip
    if "dare" in rows and "task-arithmetic" in rows:
        yield one(
            "dare", "half of each task vector can be dropped",
            minus(rows["dare"]["normalised"], rows["task-arithmetic"]["normalised"]),
            "equal", 1.0, "points of normalised accuracy over task-arithmetic",
        )  # fmt: skip
    if not all(name in rows for name in POISONED):
        return
    safe = rows["poisoned-dam"]
    plain = fmean(rows["poisoned-task-arithmetic"]["attack_success"])
    gone = f"task arithmetic leaves {plain:.3g} % of success: next to no backdoor to lower"
    for other in ("task-arithmetic", "adamerging", "concrete-adamerging"):
        yield one(
            "dam", f"lowers a backdoor's success below {other}",
            minus(rows[f"poisoned-{other}"]["attack_success"], safe["attack_success"]),
            "greater", 5.0, f"points of success below {other}", gone if plain < CHANCE else "",
        )  # fmt: skip
    yield one(
        "dam", "keeps accuracy under a planted backdoor",
        minus(safe["normalised"], rows["poisoned-concrete-adamerging"]["normalised"]),
        "no worse", 1.0, "points of normalised accuracy over concrete-adamerging",
    )  # fmt: skip
