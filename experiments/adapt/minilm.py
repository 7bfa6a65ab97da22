"""Every way to adapt a pretrained sentence encoder to fourteen text tasks at once.

    python experiments/adapt/minilm.py    # hours on two cores; goes on where it was killed

What it runs is a comparison that anybody can ask for, `polytask compare minilm --methods ...`, with
these settings. It trains the groups below one after another and writes the table after each. Plan
and claims: README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from found import KEPT, Table, claim, minus
from found import section as grid

from polytask.cli.show import live
from polytask.evaluate import Claim
from polytask.fit import RECORD, WEIGHTS, FitConfig
from polytask.recipes import SINGLE, Plan, compare
from polytask.records import read_json

FULL, PROBE = "equal", "linear-probing"
LORA, BOTTLENECK = "lora", "bottleneck:width=8"
FUSION, SCALEARN, ALTER = "adapter-fusion:width=8", "scalearn:width=8", "alter:width=8"
POLY, MHR = "polytropon:alpha=16", "mhr:alpha=16"
MTLORA = "mtlora:rank=8,task_rank=4,scale=1"
MBC = "mbc:clusters=5"
HYPER = "hyperformer:plus=true"
PROMPT, MPT, SPT = "prompt-tuning:length=10", "mpt:length=10", "spt:length=10,memories=50"
MAM = "mam:length=10,width=8,scale=1"

GROUPS: tuple[tuple[str, ...], ...] = (
    (FULL, PROBE, LORA, BOTTLENECK, "bitfit", "mtl-lora", POLY, MHR, HYPER),
    (FUSION, SCALEARN, ALTER, PROMPT, MPT, "arrow", MBC, "dora"),
    ("global-task", "shared-factor", "smora", "loramoe", "mosld", "tensorpoly", "ssf"),
    (SPT, "polyhistor", MTLORA, "sparse-tuning:density=0.05", "half-fine-tuning", "mor1e"),
    ("prefix-tuning:length=10", MAM, "incremental-rank:rank=4"),
    ("subtuning:most=2",),
)
"""What is trained first and next; widths and scales are those that make methods alike in size."""

CONFIG = FitConfig(
    epochs=2, batch_size=16, schedule="cosine", precision="bf16", length_groups=2,
    min_epoch_steps=25, patience=0, probes=0,
)  # fmt: skip
SEEDS, TUNE = 2, 1
WORSE = 2.0
OUT = KEPT.runs / "minilm"

GAINS: tuple[tuple[str, str, str, str], ...] = (
    ("adapter-fusion", FUSION, BOTTLENECK, "AdapterFusion gains over adapters of each task"),
    ("alter", ALTER, BOTTLENECK, "a mixture of all tasks' adapters gains over one's own"),
    ("scalearn", SCALEARN, BOTTLENECK, "ScaLearn gains over adapters of each task"),
    ("mtl-lora", "mtl-lora", LORA, "MTL-LoRA gains over LoRA of each task"),
    ("global-task", "global-task", LORA, "a global LoRA beside each task's gains over it alone"),
    ("mosld", "mosld", LORA, "MoSLD gains over LoRA of each task"),
    ("loramoe", "loramoe", LORA, "a mixture of LoRA gains over LoRA of each task"),
    ("smora", "smora", LORA, "ranks as experts gain over LoRA of each task"),
    ("mor1e", "mor1e", LORA, "experts of rank 1 chosen by instance gain over LoRA of each task"),
    ("dora", "dora", LORA, "DoRA gains over LoRA"),
    ("polytropon", POLY, LORA, "shared skills gain over LoRA of each task"),
    ("mhr", MHR, POLY, "shares of every part of a skill gain over shares of skills"),
    ("mbc", MBC, LORA, "LoRA of clusters gains over LoRA of each task"),
    ("hyperformer", HYPER, BOTTLENECK, "HyperFormer++ gains over adapters of each task"),
    ("mpt", MPT, PROMPT, "a shared prompt times rank one gains over a task's own"),
    ("spt", SPT, PROMPT, "retrieved prompts gain over a task's own"),
    ("half-fine-tuning", "half-fine-tuning", FULL, "half of the weights at a time gains"),
    ("linear-probing", FULL, PROBE, "training all weights gains over a probe"),
)  # fmt: skip
"""Method of the catalogue, recipe, rival, and the claim: greater."""

KEEPS: tuple[tuple[str, str, str, str], ...] = (
    ("scalearn", SCALEARN, FUSION, "no worse than AdapterFusion with far fewer weights"),
    ("shared-factor", "shared-factor", LORA, "one A for all tasks is no worse than one of each"),
    ("tensorpoly", "tensorpoly", POLY, "no worse than Polytropon with fewer weights"),
    ("arrow", "arrow", LORA, "routed by the input alone it is no worse than told the task"),
    ("polyhistor", "polyhistor", BOTTLENECK, "no worse than adapters of each task"),
    ("lora", LORA, FULL, "LoRA is no worse than training all weights on all tasks"),
    ("bottleneck", BOTTLENECK, FULL, "adapters are no worse than training all weights"),
    ("bitfit", "bitfit", FULL, "biases alone are no worse than training all weights"),
    ("ssf", "ssf", FULL, "scales and shifts are no worse than training all weights"),
    ("sparse-tuning", "sparse-tuning:density=0.05", FULL, "a twentieth of the weights is no worse"),
)
"""The same: no worse."""


def table(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page and the claims need of a comparison's result."""
    tasks = [task["name"] for task in result["tasks"]]
    rows = []
    for name, method in result["methods"].items():
        row = {
            "method": name,
            "delta_m": method["delta_m"],
            "by_seed": _by_seed(method, tasks),
            "lost": sum(method["tasks"][t]["gain"] < -WORSE for t in tasks),
            "gains": {t: method["tasks"][t]["gains"] for t in tasks},
            "scores": {t: fmean(method["tasks"][t]["values"]) for t in tasks},
        }
        if name != SINGLE:
            row |= _cost(method)
        rows.append(row)
    return {
        "seeds": result["seeds"],
        "tasks": {task["name"]: task["metric"] for task in result["tasks"]},
        "heads": _heads(result),
        "picked": {n: p.get("*", {}).get("lr") for n, p in result["tuning"]["picked"].items()},
        "rows": rows,
    }


def _by_seed(method: Mapping[str, Any], tasks: Sequence[str]) -> list[float]:
    return [fmean(each) for each in zip(*(method["tasks"][t]["gains"] for t in tasks), strict=True)]


def _cost(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return what its runs cost: trained parameters, milliseconds an update, bytes on disk."""
    folders = [OUT / folder for folder in method["runs"].values()]
    costs = [read_json(folder / RECORD)["cost"] for folder in folders]
    return {
        "trained": costs[0]["trained"],
        "step_ms": 1e3 * fmean(cost["seconds"] / cost["steps"] for cost in costs),
        "updates": costs[0]["steps"],
        "bytes": (folders[0] / WEIGHTS).stat().st_size,
    }


def _heads(result: Mapping[str, Any]) -> int:
    """Return the parameters of all heads: all that a probe trains."""
    (folder, *_) = result["methods"][PROBE]["runs"].values()
    return int(read_json(OUT / folder / RECORD)["cost"]["trained"])


def rows_of(table: Table) -> dict[str, Mapping[str, Any]]:
    """Return the table's rows by method."""
    return {row["method"]: row for row in table["rows"]}


def claims(table: Table) -> list[Claim]:
    """Decide the claims whose methods the table has."""
    rows, made = rows_of(table), []
    for expected, margin, planned in (("greater", 0.0, GAINS), ("no worse", WORSE, KEEPS)):
        for system, ours, rival, words in planned:
            if ours in rows and rival in rows:
                seeds = min(len(rows[name]["by_seed"]) for name in (ours, rival))
                made.append(
                    claim(
                        table,
                        system,
                        words,
                        f"minilm, 160 rows a task; {ours} against {rival}, task by task",
                        minus(_gains(rows[ours], seeds), _gains(rows[rival], seeds)),
                        expected,
                        margin,
                        f"% of the single-task score over {rival}",
                        seeds=table["seeds"][:seeds],
                    )
                )
    return made


def _gains(row: Mapping[str, Any], seeds: int) -> list[float]:
    """Return a row's gain on each task, the mean over the first so many seeds."""
    return [fmean(of_seed[:seeds]) for of_seed in row["gains"].values()]


def section(table: Table) -> str:
    """Return the experiment's part of the page."""
    heads = table["heads"]
    lines = []
    for row in sorted(table["rows"], key=lambda row: -row["delta_m"]):
        alone = row["method"] == SINGLE
        lines.append(
            [
                f"`{row['method']}`",
                "0" if alone else f"{row['delta_m']:+.1f}",
                "" if alone else " / ".join(f"{value:+.1f}" for value in row["by_seed"]),
                "" if alone else str(row["lost"]),
                "" if alone else f"{(row['trained'] - heads) / 1e3:,.0f} k",
                "" if alone else f"{row['step_ms']:.0f}",
                "" if alone else f"{row['bytes'] / 1e6:.2f}",
                *(f"{row['scores'][task]:.3f}" for task in table["tasks"]),
            ]
        )
    head = ["method", "delta-m", "by seed", "lost", "trained", "ms", "MB", *table["tasks"]]
    return grid(table, "Fourteen text tasks on MiniLM", head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--groups", type=int, default=len(GROUPS), help="train the first so many")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, dict[str, Any]] = {}
    # All methods by the first seed, then by the next: a command that is killed leaves whole rows.
    for seeds, last in product(range(1, SEEDS + 1), range(1, options.groups + 1)):
        methods = tuple(name for group in GROUPS[:last] for name in group)
        plan = Plan(
            suite="minilm", methods=methods, seeds=seeds, tune=TUNE, config=CONFIG,
            out=OUT, processes=2,
            command="python experiments/adapt/minilm.py",
        )  # fmt: skip
        with live("minilm") as show:
            made = table(compare(plan, show))
        found |= {row["method"]: row for row in made["rows"]}
        KEPT.write("minilm", made | {"seeds": list(range(seeds)), "rows": list(found.values())})


if __name__ == "__main__":
    main()
