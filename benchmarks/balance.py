"""The cost of balancing: a balanced step against the plain joint step, in one process.

    python benchmarks/balance.py            # all figures
    python benchmarks/balance.py --quick    # a few minutes
    python benchmarks/balance.py --peers    # TorchJD and LibMTL beside them, see balance_peers.py
    python benchmarks/balance.py --json     # one JSON line per figure

Every figure is a ratio to forward and one backward of the summed losses on the same model and
batch, no optimiser: processor time, the median over rounds of the ratio of neighbouring steps, so
that neither other work on the machine nor its drifting speed decides it. After the last round the
engine's Gramian is compared with that of one backward per task.
Memory: what torch's allocator held at most during a step, parameters, gradients and activations
included, as a ratio to the plain step's (CPU: from the profiler's allocation events).
Workloads: an MLP 512-2048-2048-512 with linear heads, batch 256; a CNN of about a million
parameters on 3 x 32 x 32, batch 64; a method's own solver on Gramians of full and of low rank.
"engine" is the engine without a solver; the named methods, ours and the peers', include theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import balance_peers
from polytask.balance import (
    Balance,
    Balancer,
    FeatureLevel,
    Rows,
    SampledRows,
    Signal,
    State,
    Update,
    UPGrad,
    Wrapper,
)
from polytask.balance.exact import GramianBy
from polytask.catalog import METHODS
from polytask.share import HardSharing

BOUNDS: dict[str, dict[str, tuple[float, float | None]]] = {
    "MLP K=8": {
        "engine": (4.0, 3.0),
        "sampled rows, 1/8": (1.7, None),
        "feature level": (1.1, None),
    },
    "MLP K=40": {"engine": (18.0, None), "feature level": (1.1, None)},
    "MLP K=8, rows of one task": {"engine": (1.3, 1.5)},
    "MLP K=40, rows of one task": {"engine": (1.3, 1.5)},
    "MLP K=8, rows of one task, own forward": {"engine": (1.3, 1.5)},
    "conv K=8": {"engine": (6.0, None), "feature level": (1.1, None)},
}
"""Workload -> whose step -> bounds of its time and memory."""
SOLVER_MS = 3.0
Step = Callable[[], None]
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
        self.names = [f"task {k}" for k in range(self.tasks)]
        self.encoder = convolutions() if conv else perceptron()
        self.heads = [nn.Linear(512, 1) for _ in self.names]
        self.model = HardSharing(self.encoder, dict(zip(self.names, self.heads, strict=True)))
        rows = len(self.inputs)
        self.target_BK = torch.randn(rows, self.tasks)
        self.labelled = [torch.arange(rows)] * self.tasks
        if "of one task" in name:  # as the streams of one data set per task, packed into one batch
            self.labelled = [torch.arange(k, rows, self.tasks) for k in range(self.tasks)]
        self.apart = "own forward" in name

    def losses(self) -> list[Tensor]:
        """Return each task's mean squared error over its rows."""
        if self.apart:
            return [
                functional.mse_loss(
                    self.model(self.inputs[rows], [task])[task][:, 0], target_B[rows]
                )
                for task, rows, target_B in zip(
                    self.names, self.labelled, self.target_BK.T, strict=True
                )
            ]
        return self.losses_of(list(self.model(self.inputs).values()))

    def losses_of(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the losses of the outputs (B, 1) of all rows."""
        return [
            functional.mse_loss(output[rows, 0], target_B[rows])
            for output, target_B, rows in zip(outputs, self.target_BK.T, self.labelled, strict=True)
        ]

    def losses_at(self, sample: Tensor) -> list[Tensor]:
        """Return the losses of some rows, for a workload whose tasks label all of them."""
        outputs = self.model(self.inputs[sample])
        return [
            functional.mse_loss(output[:, 0], target_B[sample])
            for output, target_B in zip(outputs.values(), self.target_BK.T, strict=True)
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


def ours(work: Workload) -> tuple[dict[str, Step], dict[str, Balancer]]:
    """Return our steps by name, and the balancers behind them."""
    shared = work.model.shared_parameters()
    methods: dict[str, tuple[Balance | Wrapper, GramianBy]] = {
        "engine": (GramianOnly(), "auto"),
        "UPGrad": (UPGrad(), "auto"),
        "one backward per task": (GramianOnly(), "rows"),
    }
    if not work.apart:
        methods["feature level"] = (FeatureLevel(GramianOnly()), "auto")
    if "rows of one task" not in work.name:
        methods["sampled rows, 1/8"] = (SampledRows(GramianOnly(), 1 / 8), "auto")
    balancers = {
        name: Balancer(method, shared, work.names, gramian=by)
        for name, (method, by) in methods.items()
    }

    def again(rows: Rows, tasks: Sequence[str]) -> list[Tensor]:
        return work.losses_at(rows.indices(len(work.inputs)))

    def step(balancer: Balancer) -> Step:
        return lambda: balancer.backward(work.losses(), again=again) and None

    return {name: step(balancer) for name, balancer in balancers.items()}, balancers


def measure(
    work: Workload, steps: Mapping[str, Step], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return, per step, its time and its memory as ratios to the plain step."""

    def plain() -> None:
        sum(work.losses()).backward()

    steps = {"": plain, **steps}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM):
        for step in steps.values():
            work.clear()
            step()
    for round_ in range(rounds):
        seconds = {}
        for name in list(steps) if round_ % 2 else reversed(steps):
            work.clear()
            begun = time.process_time()
            steps[name]()
            seconds[name] = time.process_time() - begun
        for name, ratio in ratios.items():
            ratio.append(seconds[name] / seconds[""])
    memory = {}
    for name, step in steps.items():
        work.clear()
        memory[name] = peak(work, step)
    return {n: (statistics.median(r), memory[n] / memory[""]) for n, r in ratios.items() if n}


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


def gramians(rank: int, rounds: int) -> list[Tensor]:
    """Return Gramians of 40 random gradients of this rank."""
    found = []
    for seed in range(rounds + 1):
        generator = torch.Generator().manual_seed(seed)
        rows_KP = torch.randn(40, rank, generator=generator, dtype=torch.float64)
        rows_KP = rows_KP @ torch.randn(rank, 200, generator=generator, dtype=torch.float64)
        found.append(rows_KP @ rows_KP.T)
    return found


def milliseconds(solve: Callable[[Tensor], object], grams: Sequence[Tensor]) -> float:
    """Return the median time of one call; the first is not counted."""
    taken = []
    for gram_KK in grams:
        begun = time.process_time()
        solve(gram_KK)
        taken.append(1000 * (time.process_time() - begun))
    return statistics.median(taken[1:])


def solvers() -> dict[str, Callable[[Tensor], object]]:
    """Return every method that answers to a Gramian, as catalog rows with their defaults."""

    def solver(method: Balance) -> Callable[[Tensor], object]:
        state = method.start(40)
        return lambda gram_KK: method(Signal(ones, every, 40, gram_KK=gram_KK), state)

    ones, every = torch.ones(40), torch.arange(40)
    found = {}
    for row in METHODS:
        if row.room == "balance" and not row.wraps:
            method = row.load()()
            if method.needs == "gramian":
                found[row.name] = solver(method)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--peers", action="store_true", help="TorchJD and LibMTL beside them")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    parser.add_argument("--only", default="", help="workloads with this in their name")
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
            print(f"{mark} {workload:38} {subject:38} {figure:7.2f}  {limit:13} {note}", flush=True)

    if not options.json:
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, "
            f"medians of {rounds} rounds"
        )
    for name, bounds in BOUNDS.items():
        if options.only not in name:
            continue
        work = Workload(name)
        steps, balancers = ours(work)
        peers = balance_peers.steps(work) if options.peers and not work.apart else {}
        figures = measure(work, {**steps, **peers}, rounds)
        exact = [balancers[of].state["gram_KK"] for of in ("engine", "one backward per task")]
        norms_K = exact[1].diagonal().sqrt()
        error = float(((exact[0] - exact[1]).abs() / (norms_K[:, None] * norms_K)).max())
        for subject, (ratio, memory) in figures.items():
            note = balancers[subject].engine if subject in balancers else ""
            if subject == "engine":
                note = f"error {error:.0e}; {note}"
            time_bound, memory_bound = bounds.get(subject, (None, None))
            tell(name, f"{subject}, time", ratio, time_bound, note)
            tell(name, f"{subject}, memory", memory, memory_bound, "")
        if error > 1e-4:
            sys.exit(f"{name}: the Gramians of the two engines differ by {error}")
    for rank in (200, 20):
        grams = gramians(rank, 10 * rounds)
        for name, solve in solvers().items():
            taken = milliseconds(solve, grams)
            tell(f"solver alone, K=40, rank {min(rank, 40)}", f"{name}, ms", taken, SOLVER_MS, "")
        for name, solve in balance_peers.solvers().items() if options.peers else ():
            tell(
                f"solver alone, K=40, rank {min(rank, 40)}",
                f"{name}, ms",
                milliseconds(solve, grams),
                None,
                "",
            )


if __name__ == "__main__":
    main()
