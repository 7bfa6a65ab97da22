"""Alternating descent over resolutions and losses, against all tasks in every step.

    python experiments/mix/alternating.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pictures
import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from pictures import SIDES, TASKS, TRAIN, Network, cropped, loss, multiply_adds, padded, scores

from polytask.evaluate import Claim
from polytask.mix import Alternating, FixedRates, Mix, Mixture

SEEDS = tuple(range(5))
BATCH, STEPS, LRS = 48, 600, (1e-3, 3e-3)
METHODS: dict[str, tuple[Mix, int | None]] = {
    "alternating": (Alternating(), None),
    "together": (FixedRates(), None),
    "together, padded": (FixedRates(), max(SIDES.values())),
}
"""The mix, and the side that all pictures are padded to; None leaves them as they are."""


def attempt(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; return validation and test scores."""
    mix, side = METHODS[name]
    made = pictures.data(seed)
    torch.manual_seed(seed)
    model = Network()
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    streams = dict.fromkeys(TASKS, TRAIN)
    for batch in Mixture(mix, streams, BATCH, seed, steps=STEPS, epoch=STEPS):
        fed = {task: [row for t, row in batch if t == task] for task in TASKS}
        present = {task: rows for task, rows in fed.items() if rows}
        total = torch.zeros(())
        for task, rows in present.items():
            inputs, targets = (x[task]["train"][rows] for x in (made.inputs, made.targets))
            output = cropped(task, model(task, padded(inputs, side)))
            total = total + loss(task, output, targets) / len(present)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return {split: scores(model, made, split, side) for split in ("val", "test")}


def best(name: str) -> dict[str, Any]:
    """Return the learning rate best on validation with the first seed, and all runs."""

    def one(lr: float, seed: int) -> dict[str, Any]:
        return KEPT.run(f"alternating/{name}--lr{lr:g}--s{seed}", partial(attempt, name, lr, seed))

    lr = max(LRS, key=lambda lr: sum(one(lr, SEEDS[0])["val"].values()))
    return {"picked": {"lr": lr}, "test": [one(lr, seed)["test"] for seed in SEEDS]}


def claims(table: Table) -> Iterator[Claim]:
    found = {name: of["test"] for name, of in table["methods"].items()}
    for rival in ("together", "together, padded"):
        for task in TASKS:
            yield claim(
                table, "alternating",
                f"handles mixed resolutions and losses: {task}, against {rival}",
                "digits: class at 8 x 8, place at 16 x 16, cleaning at 12 x 12; accuracy or R2",
                minus([r[task] for r in found["alternating"]], [r[task] for r in found[rival]]),
                "no worse", 1.0, f"points over {rival}",
            )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for name, found in table["methods"].items():
        side = METHODS[name][1]
        cost = sum(multiply_adds(side or SIDES[task]) for task in TASKS) / len(TASKS)
        values = [spread([run[task] for run in found["test"]]) for task in TASKS]
        rows.append([name, said(found["picked"]), *values, f"{cost / 1e6:.2f}"])
    head = ["steps", "picked", "digit, accuracy", "place, R2", "clean, R2", "10^6 multiply-adds"]
    words = "In %; multiply-adds of the encoder for a picture, forward, mean over tasks."
    return grid(table, "Alternating over resolutions and losses", head, rows, words)


def main() -> None:
    torch.set_num_threads(1)
    methods = {name: best(name) for name in METHODS}
    about = {"seeds": SEEDS, "steps": STEPS, "batch": BATCH}
    KEPT.write("alternating", about | {"methods": methods})


if __name__ == "__main__":
    main()
