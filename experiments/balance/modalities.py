"""FULLER's calibration on a model with two modality branches.

    python experiments/balance/modalities.py

Plan: README.md beside this file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import store
import torch
from two_branches import two_modalities

from polytask.balance import Balancer, Equal
from polytask.evaluate import delta_m
from polytask.fit import Feed, FitConfig, Meters, build_optimiser, primary, train_step, validate
from polytask.mix import Proportional, Schedule
from polytask.share import HardSharing
from polytask.suites import Suite

SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3)
DECAY = 1e-2

MakeBalancer = Callable[[HardSharing], Balancer]
METHODS: dict[str, MakeBalancer] = {
    "equal": lambda model: Balancer(Equal(), model.shared_parameters(), model.tasks),
}


@functools.cache
def suite() -> Suite:
    return two_modalities()


def run(make: MakeBalancer, lr: float, seed: int, against: Mapping[str, float]) -> dict[str, Any]:
    """Train once; return the best validation score and the test values of those weights.

    against: validation values that the score is relative to; empty: the last epoch is the best.
    """
    data = suite()
    config = FitConfig(batch_size=data.batch_size, lr=lr, weight_decay=DECAY, seed=seed)
    torch.manual_seed(seed)
    model = HardSharing.build(data.encoder(), data.width, data.tasks)
    balancer = make(model)
    optimiser = build_optimiser(model, balancer, config)
    sizes = [len(stream) for stream in data.train]
    schedule = Schedule(Proportional(), sizes, config.batch_size, seed)
    feed, cursors_S = Feed(data.train, data.tasks, schedule), schedule.start()
    best: dict[str, Any] = {}
    step = 0
    for epoch in range(data.epochs):
        for _ in range(schedule.steps_per_epoch):
            fed, cursors_S = feed.step(step, cursors_S)
            train_step(model, balancer, optimiser, fed)
            step += 1
        val = _values(model, data, "val")
        score = delta_m(data.tasks, val, against) if against else float(epoch)
        if not best or score > best["score"]:
            best = {"score": score, "epoch": epoch, "val": val}
            weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    best["test"] = _values(model, data, "test")
    return best


def _values(model: HardSharing, data: Suite, split: str) -> dict[str, float]:
    streams = data.split(split)  # type: ignore[arg-type]
    return primary(validate(model, streams, Meters(data.tasks, primary_only=True)), data.tasks)


def main() -> None:
    torch.set_num_threads(1)
    first = store.kept(
        "modalities/reference", lambda: run(METHODS["equal"], RATES[0], SEEDS[0], {})
    )
    found: dict[str, Any] = {}
    for name, make in METHODS.items():

        def one(
            lr: float, seed: int, name: str = name, make: MakeBalancer = make
        ) -> dict[str, Any]:
            file = f"modalities/{name}--lr{lr:g}--s{seed}"
            return store.kept(file, lambda: run(make, lr, seed, first["val"]))

        picked = max(RATES, key=lambda lr: one(lr, SEEDS[0])["score"])
        tests = [one(picked, seed)["test"] for seed in SEEDS]
        found[name] = {"lr": picked, "test": tests}
    tasks = suite().tasks
    reference = {t: fmean(test[t] for test in found["equal"]["test"]) for t in tasks.names}
    for of_method in found.values():
        of_method["delta_m"] = [delta_m(tasks, test, reference) for test in of_method["test"]]
    settings = {"epochs": suite().epochs, "batch_size": suite().batch_size, "rates": RATES}
    metrics = {task.name: task.primary.name for task in tasks}
    table = {"seeds": SEEDS, "settings": settings, "metrics": metrics, "methods": found}
    store.write("modalities", table)


if __name__ == "__main__":
    main()
