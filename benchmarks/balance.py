"""The cost of balancing: a balanced step against the plain joint step, in one process.

    python benchmarks/balance.py            # all figures
    python benchmarks/balance.py --quick    # about a minute
    python benchmarks/balance.py --json     # one JSON line per figure

Every figure is a ratio to forward and one backward of the summed losses on the same model and
batch, no optimiser: the median over rounds of the ratio of neighbouring steps, so that a machine
whose speed drifts does not decide it. After the last round the Gramian of every exact engine is
compared with that of one backward per task.
Memory: what torch's allocator held at most during a step, parameters, gradients and activations
included, as a ratio to the plain step's (CPU: from the profiler's allocation events).
Workloads: an MLP 512-2048-2048-512 with linear heads, batch 256; a CNN of about a million
parameters on 3 x 32 x 32, batch 64; a task's own solver on random Gramians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from polytask.balance import AlignedMTL, Balancer, PCGrad, Signal, State, Update
from polytask.share import HardSharing

BOUNDS = {
    "MLP K=8": (4.0, 3.0),
    "MLP K=40": (18.0, None),
    "MLP K=8, rows of one task": (1.3, 1.5),
    "MLP K=40, rows of one task": (1.3, 1.5),
    "conv K=8": (6.0, None),
}
SOLVER_MS = 3.0
WARM = 5
"""Steps before the first that counts. In the 1st, 2nd, 4th, 8th, ... the engine also tries out
whether the model mixes rows; those are too few in a run to decide a median."""


@dataclass(frozen=True)
class GramianOnly:
    """Equal weights from a method that asks for the Gramian: the engine's cost without a solver."""

    needs = "gramian"
    foresees = False
    by_epoch = False

    def start(self, tasks: int) -> State:
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        assert signal.gram_KK is not None
        return Update({"gram_KK": signal.gram_KK}, torch.ones(len(signal.index_K)))


class Workload:
    """A model, a batch, and its losses."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.tasks = 40 if "K=40" in name else 8
        conv = name.startswith("conv")
        self.inputs = torch.randn(64, 3, 32, 32) if conv else torch.randn(256, 512)
        names = [f"task {k}" for k in range(self.tasks)]
        encoder = convolutions() if conv else perceptron()
        self.model = HardSharing(encoder, {name: nn.Linear(512, 1) for name in names})
        rows = len(self.inputs)
        self.target_BK = torch.randn(rows, self.tasks)
        self.labelled = [torch.arange(rows)] * self.tasks
        if "rows of one task" in name:  # as the packed streams of one data set per task
            self.labelled = [torch.arange(k, rows, self.tasks) for k in range(self.tasks)]

    def losses(self) -> list[Tensor]:
        """Return each task's mean squared error over its rows."""
        outputs = self.model(self.inputs)
        return [
            functional.mse_loss(output[rows, 0], target_B[rows])
            for output, target_B, rows in zip(
                outputs.values(), self.target_BK.T, self.labelled, strict=True
            )
        ]

    def clear(self) -> None:
        self.model.zero_grad(set_to_none=True)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 512),
        nn.ReLU(),
    )  # fmt: skip


def convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, 512), nn.ReLU())


def measure(
    work: Workload, balancers: dict[str, Balancer], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return, per balancer, its time and its memory as ratios to the plain step."""

    def plain() -> None:
        sum(work.losses()).backward()

    def balanced(balancer: Balancer) -> Callable[[], None]:
        return lambda: balancer.backward(work.losses()) and None

    steps = {"": plain} | {name: balanced(b) for name, b in balancers.items()}
    ratios: dict[str, list[float]] = {name: [] for name in balancers}
    for _ in range(WARM):
        for step in steps.values():
            work.clear()
            step()
    for round_ in range(rounds):
        seconds = {}
        for name in list(steps) if round_ % 2 else reversed(steps):
            work.clear()
            begun = time.perf_counter()
            steps[name]()
            seconds[name] = time.perf_counter() - begun
        for name, ratio in ratios.items():
            ratio.append(seconds[name] / seconds[""])
    memory = {}
    for name, step in steps.items():
        work.clear()
        memory[name] = peak(work, step)
    return {n: (statistics.median(r), memory[n] / memory[""]) for n, r in ratios.items()}


def peak(work: Workload, step: Callable[[], None]) -> int:
    """Return the bytes held at most in one step, parameters and inputs included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    fixed = [*work.model.parameters(), work.inputs]
    return highest + sum(t.numel() * t.element_size() for t in fixed)


def solver_ms(method: AlignedMTL | PCGrad, rounds: int) -> float:
    """Return the median milliseconds of one call with 40 tasks."""
    taken = []
    for seed in range(rounds + 1):
        generator = torch.Generator().manual_seed(seed)
        rows_KP = torch.randn(40, 200, generator=generator, dtype=torch.float64)
        signal = Signal(torch.ones(40), torch.arange(40), 40, seed, gram_KK=rows_KP @ rows_KP.T)
        begun = time.perf_counter()
        method(signal, {})
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else 15

    def tell(workload: str, subject: str, figure: float, bound: float | None, note: str) -> None:
        if options.json:
            line = {"workload": workload, "subject": subject, "figure": figure, "bound": bound}
            print(json.dumps({**line, "note": note}), flush=True)
        else:
            mark = "    " if bound is None else "ok  " if figure <= bound else "OVER"
            limit = "" if bound is None else f"at most {bound:.1f}"
            print(f"{mark} {workload:27} {subject:28} {figure:7.2f}  {limit:13} {note}")

    if not options.json:
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, "
            f"medians of {rounds} rounds"
        )
    for name, (time_bound, memory_bound) in BOUNDS.items():
        work = Workload(name)
        shared = work.model.shared_parameters()
        balancers = {
            "per layer": Balancer(GramianOnly(), shared, gramian="auto"),
            "one backward per task": Balancer(GramianOnly(), shared, gramian="rows"),
        }
        figures = measure(work, balancers, rounds)
        gram_KK, exact_KK = (b.state["gram_KK"] for b in balancers.values())
        norms_K = exact_KK.diagonal().sqrt()
        error = float(((gram_KK - exact_KK).abs() / (norms_K[:, None] * norms_K)).max())
        for subject, (ratio, memory) in figures.items():
            ours = subject == "per layer"
            note = f"error {error:.0e}; {balancers[subject].engine}" if ours else ""
            tell(name, f"{subject}, time", ratio, time_bound if ours else None, note)
            tell(name, f"{subject}, memory", memory, memory_bound if ours else None, "")
        if error > 1e-4:
            sys.exit(f"{name}: the Gramians of the two engines differ by {error}")
    for method in (AlignedMTL(), PCGrad()):
        name = type(method).__name__
        tell("solver alone, K=40", f"{name}, ms", solver_ms(method, 10 * rounds), SOLVER_MS, "")


if __name__ == "__main__":
    main()
