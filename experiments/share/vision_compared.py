"""Pictures, from the comparison on camvid: FLOPs and quality of M3ViT, TaskExpert's quality.

    python experiments/share/vision_compared.py

Plan: README.md beside this file. Needs the table `camvid-sharing` of the comparisons.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from compared import PUBLISHED, delta_m, published
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polytask.evaluate import Claim
from polytask.parsing import parse
from polytask.recipes import build, load_suite
from polytask.share import M3ViT, SharedModel
from polytask.suites import Suite

KNOWN = "camvid-sharing"
SPARSE, DENSE, WIDE, MASKS = "m3vit", "hard:on=tokens", "dense, all experts", "mtan:on=tokens"
QUALITY = (SPARSE, DENSE, "task-expert", "hard")
"""What is read of the table."""
SEEDS = (0, 1, 2)
MOST = 50.0
"""Per cent of the FLOPs."""


def wide(dense: SharedModel, sparse: SharedModel) -> SharedModel:
    """Return the dense model with odd MLPs as wide as all experts of the sparse one's blocks."""
    assert isinstance(sparse.trunk, M3ViT)
    encoder = dense.encoder
    assert isinstance(encoder, nn.Module)
    for at, experts in enumerate(sparse.trunk.experts):
        number, width, hidden = experts.weight_0.shape
        inside = number * hidden
        encoder.blocks[2 * at + 1].mlp = nn.Sequential(
            nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width)
        )
    return dense


def models(suite: Suite, seed: int) -> dict[str, SharedModel]:
    """Return each model with its first weights."""
    made = {name: build(suite, parse(name), seed)[0] for name in (SPARSE, DENSE, MASKS)}
    made[WIDE] = wide(build(suite, parse(DENSE), seed)[0], made[SPARSE])
    return {name: model.eval() for name, model in made.items()}


def flops(model: SharedModel, pictures: torch.Tensor, *tasks: str) -> int:
    """Return what torch counts in a forward pass. Kernels that fuse attention are not counted."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pictures, tasks=tasks)
    return int(counter.get_total_flops())


def counted(suite: Suite, seed: int) -> dict[str, dict[str, Any]]:
    """Return of each model its parameters, and FLOPs a picture: of one task, and of all."""
    inputs = suite.test[0].inputs
    assert isinstance(inputs, torch.Tensor)
    found = {}
    for name, model in models(suite, seed).items():
        one = [flops(model, inputs[:1], task) for task in suite.tasks.names]
        of_8 = [flops(model, inputs[:8], task) / 8 for task in suite.tasks.names]
        found[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "one task": fmean(one),
            "one task, of 8": fmean(of_8),
            "all tasks": flops(model, inputs[:1], *suite.tasks.names),
        }
    return found


def saved(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the % of each rival's FLOPs that one task of M3ViT saves."""
    rivals = {
        "the dense transformer for all tasks": found[DENSE]["all tasks"],
        "a dense transformer as large as all experts": found[WIDE]["one task"],
        "MTAN on the same transformer": found[MASKS]["one task"],
    }
    return {name: 100 * (1 - found[SPARSE]["one task"] / of) for name, of in rivals.items()}


def comparison() -> Table:
    """Return the table; end where it is not there or lacks a method."""
    if not (PUBLISHED / f"{KNOWN}.json").exists():
        sys.exit(f"{KNOWN}.json is not there: python experiments/compare/run.py {KNOWN}")
    known = published(KNOWN)
    lacking = [name for name in QUALITY if name not in known["methods"]]
    if lacking:
        sys.exit(f"{KNOWN}.json lacks {', '.join(lacking)}; compare it again with them.")
    return known


def main() -> None:
    torch.set_num_threads(1)
    known, suite = comparison(), load_suite("camvid")
    table = {
        "seeds": known["seeds"],
        "comparison": known["command"],
        "flops": {str(seed): counted(suite, seed) for seed in SEEDS},
        "delta_m": {name: delta_m(known["methods"][name]["tasks"]) for name in QUALITY},
    }
    KEPT.write("vision_compared", table)


def claims(table: Table) -> Iterator[Claim]:
    """M3ViT saves FLOPs and is no worse; TaskExpert is ahead of a shared decoder."""
    by_seed = [saved(found) for found in table["flops"].values()]
    for rival in by_seed[0]:
        every = [of[rival] for of in by_seed]
        yield claim(
            table, "m3vit", f"one task saves most of the FLOPs of {rival}",
            "camvid's tasks, one picture; FLOPs as torch counts them, whatever the weights",
            every, "greater", MOST, f"% of the FLOPs of {rival} saved", seeds=SEEDS,
        )  # fmt: skip
    of = table["delta_m"]
    quality = claim(
        table, "m3vit", "one task's answer costs less at equal or better quality",
        "delta-m on camvid, each method tuned alike", minus(of[SPARSE], of[DENSE]), "no worse", 1.0,
        f"points of delta-m over the dense transformer ({DENSE})",
    )  # fmt: skip
    expert = claim(
        table, "task-expert", "experts mixed per task are ahead of a shared decoder",
        "delta-m on camvid, each method tuned alike", minus(of["task-expert"], of["hard"]),
        "greater", 0.5, "points of delta-m over hard",
    )  # fmt: skip
    yield from (replace(made, command=table["comparison"]) for made in (quality, expert))


def section(table: Table) -> str:
    """Return FLOPs, parameters and quality of each model."""
    found = next(iter(table["flops"].values()))
    rows = []
    for name in dict.fromkeys((*found, *table["delta_m"])):
        counts, quality = found.get(name), table["delta_m"].get(name)
        figures = ["", "", "", ""]
        if counts is not None:
            of = ("one task", "one task, of 8", "all tasks")
            figures = [f"{counts['parameters']:,}", *(f"{counts[n] / 1e6:.1f}" for n in of)]
        rows.append([name, *figures, spread(quality) if quality else ""])
    head = [
        "model", "parameters", "MFLOPs, one task", "the same, in a batch of 8",
        "MFLOPs, both tasks", "delta-m",
    ]  # fmt: skip
    words = f"Delta-m is that of `{table['comparison']}`. FLOPs are a picture's."
    return grid(table, "M3ViT and TaskExpert on camvid", head, rows, words)


if __name__ == "__main__":
    main()
