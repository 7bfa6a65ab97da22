"""What each balance method costs a training step of the suites it was compared on.

    python experiments/balance/cost.py                      # all suites and methods, minutes
    python experiments/balance/cost.py --quick              # a few steps each: does it run?
    python experiments/balance/cost.py --suites tox21 --methods equal,pcgrad

A step is what the training loop does: forward, the method's gradients, the optimiser, and the
looks at further losses that a method asks for. Every method trains a model of its own from the
same first weights, and in every round each makes one step on the same batch, in an order that is
turned round every time; the figure is the median over rounds of the ratio to equal weights in the
same round, so that a machine whose speed drifts does not decide it. One process, one thread.

time: that median, with its quartiles. memory: bytes an update needs as `Cost.peak_memory` counts
them, as a ratio to equal weights'. forwards: passes through the encoder in a step beyond the one
that trains. It writes `cost.json` here; a run of some suites or methods replaces those alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from polytask import parsing
from polytask.balance import Balancer
from polytask.errors import RunError, UsageError
from polytask.fit import Feed, FitConfig, Step, build_optimiser, step_losses, train_step
from polytask.fit.cost import Memory
from polytask.mix import Schedule, Uniform
from polytask.recipes import build, load_suite
from polytask.records import versions, write_json

HERE = Path(__file__).parent
BASE = "equal"
SUITES = ("digits2", "tox21", "census", "sentences")
SEED = 0
WARM = 6
"""Rounds before the first that counts: the optimiser's state and the engine's trial steps."""
ROUNDS, FEWEST = 50, 9
BUDGET = 70.0
"""Seconds of a suite: with slow steps fewer rounds are made, never fewer than `FEWEST`."""


def compared(suite_name: str) -> tuple[str, ...]:
    """Return the recipes that the comparison's table of a suite holds."""
    table = json.loads((HERE.parent / "compare" / f"{suite_name}.json").read_text())
    return tuple(name for name in table["methods"] if name != "single")


@dataclass
class Trained:
    """One method with a model of its own."""

    recipe: str
    step: Any
    balancer: Balancer
    memory: Callable[[], int]  # of the largest update so far
    forwards: int = 0
    ratios: list[float] = field(default_factory=list)
    failed: str = ""


def prepare(suite_name: str, recipe: str) -> Trained:
    """Return the method, ready to make steps on batches that are handed to it."""
    suite = load_suite(suite_name)
    config = FitConfig(epochs=suite.epochs, batch_size=suite.batch_size, seed=SEED)
    torch.manual_seed(SEED)
    model, balance, _ = build(suite, parsing.parse(recipe), SEED)
    balancer = Balancer(
        balance, model.shared_parameters(), tasks=suite.tasks.names, steps_per_epoch=100
    )
    optimiser = build_optimiser(model, balancer, config)
    model.train()
    watch = balancer.observes == "validation"
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.encoder.register_forward_pre_hook(count)
    memory = Memory("cpu")

    def step(fed: Step, val: Step) -> None:
        if watch:
            model.eval()
            tasks, losses_K = step_losses(model, val, config.precision)
            model.train()
            balancer.observe(losses_K, tasks=tasks)
        train_step(model, balancer, optimiser, fed, config.precision, config.clip)

    # Asked at the end: on a small model the first update is computed in another way than most.
    made = Trained(recipe, step, balancer, lambda: memory.bytes(model, optimiser, balancer))

    def first(fed: Step, val: Step) -> None:
        with memory.watch():
            step(fed, val)
        made.forwards = passes - 1
        hook.remove()
        made.step = step

    made.step = first
    return made


def feeds(suite_name: str, steps: int) -> list[tuple[Step, Step]]:
    """Return the training and validation batches of every round."""
    suite = load_suite(suite_name)
    made = []
    for streams in (suite.train, suite.val):
        schedule = Schedule(Uniform(), [len(s) for s in streams], suite.batch_size, SEED)
        feed = Feed(streams, suite.tasks, schedule)
        cursors, drawn = schedule.start(), []
        for at in range(steps):
            fed, cursors = feed.step(at, cursors)
            drawn.append(fed)
        made.append(drawn)
    return list(zip(*made, strict=True))


def measure(suite_name: str, recipes: tuple[str, ...], quick: bool) -> dict[str, Any]:
    """Return the figures of one suite."""
    rounds, warm = (3, 2) if quick else (ROUNDS, WARM)
    recipes = (BASE, *(recipe for recipe in recipes if recipe != BASE))
    trained, failed = [], {}
    for recipe in recipes:
        try:
            trained.append(prepare(suite_name, recipe))
        except (RunError, UsageError) as error:  # such as one made for other tasks
            failed[recipe] = {"failed": str(error)}
    base_ms, begun, done = [], time.perf_counter(), 0
    for at, (fed, val) in enumerate(feeds(suite_name, warm + rounds)):
        seconds: dict[str, float] = {}
        for one in trained if at % 2 else reversed(trained):
            if one.failed:
                continue
            torch.manual_seed(at)  # the same rows drop out for all
            start = time.process_time()  # not the clock's: other work on the machine counts nothing
            try:
                one.step(fed, val)
            except (RunError, UsageError) as error:
                one.failed = str(error)
                continue
            seconds[one.recipe] = time.process_time() - start
        if at < warm:
            begun = time.perf_counter()
            continue
        done += 1
        base_ms.append(1000 * seconds[BASE])
        for one in trained:
            if one.recipe in seconds:
                one.ratios.append(seconds[one.recipe] / seconds[BASE])
        if done >= FEWEST and time.perf_counter() - begun > BUDGET:
            break
    suite = load_suite(suite_name)
    return {
        "tasks": len(suite.tasks),
        "streams": len(suite.train),
        "batch": suite.batch_size,
        "rounds": done,
        "base_ms": _short(statistics.median(base_ms)),
        "methods": failed | {one.recipe: _figures(one, trained[0]) for one in trained},
    }


def _figures(one: Trained, base: Trained) -> dict[str, Any]:
    if one.failed:
        return {"failed": one.failed}
    low, middle, high = statistics.quantiles(one.ratios, n=4)
    return {
        "time": _short(middle),
        "quartiles": [_short(low), _short(high)],
        "memory": _short(one.memory() / base.memory()),
        "forwards": one.forwards,
        "engine": one.balancer.engine,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds; writes nothing")
    parser.add_argument("--suites", default=",".join(SUITES), help="default: %(default)s")
    parser.add_argument("--methods", help="recipes; default: those of the suite's comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = parsing.split(options.methods) if options.methods else ()
    path = HERE / "cost.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    suites = kept.get("suites", {})
    made = {
        "command": shlex.join(["python", "experiments/balance/cost.py", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
        "threads": 1,
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    for name in options.suites.split(","):
        found = measure(name, asked or compared(name), options.quick)
        for recipe, figures in found["methods"].items():
            told = figures.get("failed") or (
                f"time x {figures['time']:.2f} {figures['quartiles']}, memory x "
                f"{figures['memory']:.2f}, forwards + {figures['forwards']}"
            )
            print(f"{name:10} {recipe:28} {told}", flush=True)
        if asked and name in suites:
            found["methods"] = suites[name]["methods"] | found["methods"]
        suites[name] = made | found
    if options.quick:
        return
    write_json(path, {"suites": suites})
    # One line per method, so that a change of one figure is one line of a diff.
    path.write_text(path.read_text().replace('}, "', '},\n"'))


if __name__ == "__main__":
    main()
