"""The loop of `fit` against a hand-written PyTorch loop: the same model, data, seeds and updates.

    python benchmarks/fit.py            # all figures
    python benchmarks/fit.py --quick    # under a minute
    python benchmarks/fit.py --json     # one JSON line per figure

Step time: both loops train two copies of one model, in turn, a block of updates each; the figure
is the median over rounds of the ratio of neighbouring blocks, so that a machine whose speed
drifts does not decide it. After the last round the weights of both must be equal bit for bit.
Waiting: the share of the training time spent making batches.
Demo: the time of `polytask compare digits2` (what `make demo` runs), against three minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask import suites
from polytask.balance import Balancer, Equal
from polytask.fit import Feed, FitConfig, LossSums, build_optimiser, fit, train_step
from polytask.mix import Proportional, Schedule
from polytask.parsing import parse
from polytask.recipes import build, score_for
from polytask.suites import Suite

STEP_BOUND = 1.03
WAIT_BOUND = 0.05
DEMO_SECONDS = 180.0


def ours(suite: Suite, model: nn.Module, seed: int) -> Iterator[None]:
    """Train with polytask's own pieces, as `fit` calls them; one `next` is one update."""
    sizes = [len(stream) for stream in suite.train]
    schedule = Schedule(Proportional(), sizes, suite.batch_size, seed)
    feed = Feed(suite.train, suite.tasks, schedule)
    balancer = Balancer(Equal(), model.shared_parameters(), tasks=suite.tasks.names)
    optimiser = build_optimiser(model, balancer, FitConfig())
    sums = LossSums(suite.tasks.names)
    cursors, step = schedule.start(), 0
    while True:
        fed, cursors = feed.step(step, cursors)
        sums.add(train_step(model, balancer, optimiser, fed))
        step += 1
        yield


def by_hand(
    suite: Suite, model: nn.Module, seed: int, loss: Callable[..., Tensor]
) -> Iterator[None]:
    """Train with the loop one writes by hand: index, forward, one loss, backward, step."""
    (stream,) = suite.train
    order = rows_of(suite, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    targets = {name: suite.tasks.named(name).kind.encode(t) for name, t in stream.targets.items()}
    together = torch.stack(list(targets.values()), 1) if loss is masked_binary else None
    while True:
        rows = next(order)
        inputs = stream.inputs[rows]
        optimiser.zero_grad(set_to_none=True)
        outputs = model(inputs)
        if together is not None:
            value = loss(outputs, together[rows])
        else:
            value = loss(outputs, {name: target[rows] for name, target in targets.items()})
        value.backward()
        optimiser.step()
        yield


def rows_of(suite: Suite, seed: int) -> Iterator[Tensor]:
    """Yield the rows of every update: the schedule's order, so that both see the same batches."""
    schedule = Schedule(Proportional(), [len(suite.train[0])], suite.batch_size, seed)
    state, step = schedule.start(), 0
    while True:
        ((_, rows),), state = schedule.rows(step, state)
        step += 1
        yield rows


def masked_binary(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
    """Return the sum over tasks of the mean loss over the labels present."""
    logits = torch.cat(list(outputs.values()), 1)
    there = ~target.isnan()
    entropy = F.binary_cross_entropy_with_logits(
        logits, torch.where(there, target, 0.0), weight=there.float(), reduction="none"
    )
    return (entropy.sum(0) / there.sum(0)).sum()


def digits(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the sum of two cross entropies and two squared errors."""
    names = list(outputs)
    classes = [F.cross_entropy(outputs[n], targets[n]) for n in names[:2]]
    numbers = [F.mse_loss(outputs[n].squeeze(1), targets[n]) for n in names[2:]]
    return sum(classes) + sum(numbers)


def step_ratio(
    name: str, loss: Callable[..., Tensor], rounds: int, block: int
) -> tuple[float, float, bool]:
    """Return the median ratio of step times, our milliseconds a step, and whether weights agree."""
    suite = suites.load(name)
    model, _, _ = build(suite, parse("equal"), 0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # both loops would draw from one generator in turn
    models = [model, copy.deepcopy(model)]
    loops = [ours(suite, models[0], 0), by_hand(suite, models[1], 0, loss)]
    ratios, mine = [], []
    for round_ in range(rounds + 1):
        seconds = [0.0, 0.0]
        for i in (0, 1) if round_ % 2 else (1, 0):
            begun = time.perf_counter()
            for _ in range(block):
                next(loops[i])
            seconds[i] = time.perf_counter() - begun
        if round_:  # the first round warms up
            ratios.append(seconds[0] / seconds[1])
            mine.append(1000 * seconds[0] / block)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    return statistics.median(ratios), statistics.median(mine), same


def waiting(name: str, epochs: int) -> float:
    """Return the share of the training time that a run spends waiting for data."""
    suite = suites.load(name)
    config = FitConfig(epochs=epochs, batch_size=suite.batch_size, patience=0)
    model, balance, mix = build(suite, parse("equal"), 0)
    score = score_for(suite.tasks, None)
    return fit(suite, model, balance, mix, config, score, method="equal").cost.waiting


def demo() -> float:
    """Return the seconds of the embedded suite's comparison, from a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "polytask", "compare", "digits2", "--out", folder]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, without the demo")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, block = (15, 20) if options.quick else (41, 50)

    def tell(workload: str, subject: str, ratio: float, bound: float, note: str) -> None:
        if options.json:
            line = {"workload": workload, "subject": subject, "ratio": ratio, "bound": bound}
            print(json.dumps({**line, "note": note}), flush=True)
        else:
            mark = "ok  " if ratio <= bound else "OVER"
            print(f"{mark} {workload:8} {subject:34} {ratio:7.3f}  at most {bound:.2f}  {note}")

    if not options.json:
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, "
            f"medians of {rounds} rounds of {block} updates"
        )
    for name, loss in (("tox21", masked_binary), ("digits2", digits)):
        ratio, milliseconds, same = step_ratio(name, loss, rounds, block)
        equal = "weights equal bit for bit" if same else "WEIGHTS DIFFER"
        tell(name, "step / hand-written loop", ratio, STEP_BOUND, f"{milliseconds:.2f} ms; {equal}")
        if not same:
            sys.exit(f"{name}: the two loops do not end with the same weights")
    for name in ("tox21", "census"):
        tell(
            name, "time waiting for data", waiting(name, 1 if options.quick else 3), WAIT_BOUND, ""
        )
    if not options.quick:
        seconds = demo()
        tell("digits2", "make demo / 3 minutes", seconds / DEMO_SECONDS, 1.0, f"{seconds:.0f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
