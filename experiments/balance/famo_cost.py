"""What a step costs against the number of tasks: FAMO beside a gradient method.

    python experiments/balance/famo_cost.py

Plan: README.md beside this file.

Shapes: B = rows, K = tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import store
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.balance import FAMO, Balancer, Equal, PCGrad

REPETITIONS = (0, 1, 2)
TASKS = (2, 4, 8, 16, 40)
WIDTHS = (256, 512, 512)
BATCH, STEPS, WARM_UP = 128, 40, 5

METHODS: dict[str, Callable[[list[nn.Parameter]], Balancer]] = {
    "equal": lambda shared: Balancer(Equal(), shared),
    "famo": lambda shared: Balancer(FAMO(), shared),
    "pcgrad, rows": lambda shared: Balancer(PCGrad(), shared),
    "pcgrad, per layer": lambda shared: Balancer(PCGrad(), shared, gramian="per layer"),
}


class Case:
    """A model, its data and a balancer; `step()` makes one update."""

    def __init__(self, tasks: int, seed: int, balancer: Callable[[list[nn.Parameter]], Balancer]):
        torch.manual_seed(seed)
        first, *rest = WIDTHS
        layers: list[nn.Module] = []
        for width in rest:
            layers += [nn.Linear(first, width), nn.ReLU()]
            first = width
        self.encoder, self.heads = nn.Sequential(*layers), nn.Linear(first, tasks)
        self.inputs = torch.randn(BATCH, WIDTHS[0])
        self.targets = torch.randn(BATCH, tasks)
        self.balancer = balancer(list(self.encoder.parameters()))
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def losses(self) -> Tensor:
        outputs = self.heads(self.encoder(self.inputs))
        return F.mse_loss(outputs, self.targets, reduction="none").mean(0)

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.balancer.backward(self.losses())
        self.optimiser.step()
        if self.balancer.observes == "after":
            with torch.no_grad():
                self.balancer.observe(self.losses())


def seconds(tasks: int, seed: int) -> dict[str, float]:
    """Return each method's median processor time of a step, the methods taking turns."""
    cases = {name: Case(tasks, seed, balancer) for name, balancer in METHODS.items()}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for step in range(WARM_UP + STEPS):
        for name, case in cases.items():
            begun = time.process_time()
            case.step()
            if step >= WARM_UP:
                taken[name].append(time.process_time() - begun)
    return {name: median(times) for name, times in taken.items()}


def main() -> None:
    torch.set_num_threads(1)
    ratios: dict[str, Any] = {name: {str(k): [] for k in TASKS} for name in METHODS}
    plain: dict[str, list[float]] = {str(k): [] for k in TASKS}
    for seed in REPETITIONS:
        for tasks in TASKS:
            name = f"famo_cost/k{tasks}--s{seed}"
            found = store.kept(name, lambda k=tasks, s=seed: seconds(k, s))
            plain[str(tasks)].append(1e3 * found["equal"])
            for method, taken in found.items():
                ratios[method][str(tasks)].append(taken / found["equal"])
    settings = {"widths": WIDTHS, "batch": BATCH, "steps": STEPS}
    table = {"seeds": REPETITIONS, "settings": settings, "ratios": ratios, "plain_ms": plain}
    store.write("famo_cost", table)


if __name__ == "__main__":
    main()
