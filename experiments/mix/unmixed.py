"""Steps of one task each where gradients differ in size: AdamW, and MTAdamW.

    python experiments/mix/unmixed.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import fmean
from typing import Any

import pictures
import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from pictures import TASKS, TRAIN, Network, loss, scores

from polytask.evaluate import Claim
from polytask.mix import FixedRates, Mixture, MTAdamW, Unmixed

SEEDS = tuple(range(5))
BATCH, STEPS, LRS = 48, 600, (1e-3, 3e-3)
SHARES = {"digit": 0.2, "place": 0.5, "clean": 0.3}
SCALES = {"digit": 1.0, "place": 100.0, "clean": 0.01}
"""What the losses are multiplied by, as units do."""
METHODS = ("unmixed, mt-adamw", "unmixed, adamw", "mixed, adamw")


def attempt(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; return validation and test scores."""
    made = pictures.data(seed)
    torch.manual_seed(seed)
    model = Network()
    mix = FixedRates(tuple(SHARES.values()))
    streams = dict.fromkeys(TASKS, TRAIN)
    mixed = name.startswith("mixed")
    method = mix if mixed else Unmixed(mix, "drawn", seed)
    careful = MTAdamW(model.parameters(), SHARES, lr=lr) if "mt-adamw" in name else None
    optimiser = careful or torch.optim.AdamW(model.parameters(), lr=lr)
    for batch in Mixture(method, streams, BATCH, seed, steps=STEPS, epoch=STEPS):
        fed = {task: [row for t, row in batch if t == task] for task in TASKS}
        total = torch.zeros(())
        for task, rows in fed.items():
            if rows:
                inputs, targets = (x[task]["train"][rows] for x in (made.inputs, made.targets))
                part = SHARES[task] if mixed else 1.0
                total = total + part * SCALES[task] * loss(task, model(task, inputs), targets)
        optimiser.zero_grad()
        total.backward()
        if careful is not None:
            careful.at(batch[0][0])
        optimiser.step()
    return {split: scores(model, made, split) for split in ("val", "test")}


def best(name: str) -> dict[str, Any]:
    """Return the learning rate best on validation with the first seed, and all runs."""

    def one(lr: float, seed: int) -> dict[str, Any]:
        return KEPT.run(f"unmixed/{name}--lr{lr:g}--s{seed}", partial(attempt, name, lr, seed))

    lr = max(LRS, key=lambda lr: sum(one(lr, SEEDS[0])["val"].values()))
    return {"picked": {"lr": lr}, "test": [one(lr, seed)["test"] for seed in SEEDS]}


def claims(table: Table) -> Iterator[Claim]:
    means = {
        name: [fmean(run.values()) for run in of["test"]] for name, of in table["methods"].items()
    }
    setting = "digits: three tasks, losses scaled by 1, 100 and 0.01; mean of accuracy and R2"
    ours = means["unmixed, mt-adamw"]
    for words, rival, expected, margin in (
        ("is stable with MTAdamW where AdamW is not", "unmixed, adamw", "greater", 1.0),
        ("with MTAdamW is as good as mixed batches", "mixed, adamw", "no worse", 1.0),
    ):
        yield claim(
            table, "unmixed", words, setting, minus(ours, means[rival]), expected, margin,
            f"points over {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = [
        [
            name,
            said(found["picked"]),
            *(spread([run[task] for run in found["test"]]) for task in TASKS),
            spread([fmean(run.values()) for run in found["test"]]),
        ]
        for name, found in table["methods"].items()
    ]
    head = ["steps", "picked", "digit, accuracy", "place, R2", "clean, R2", "mean"]
    return grid(table, "Unmixed steps, losses of unlike size", head, rows, "In %.")


def main() -> None:
    torch.set_num_threads(1)
    methods = {name: best(name) for name in METHODS}
    about = {"seeds": SEEDS, "steps": STEPS, "batch": BATCH, "shares": SHARES, "scales": SCALES}
    KEPT.write("unmixed", about | {"methods": methods})


if __name__ == "__main__":
    main()
