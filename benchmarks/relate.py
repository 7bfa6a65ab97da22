"""The cost of relating tasks: watching joint training, and choosing groups.

    python benchmarks/relate.py             # about ten minutes
    python benchmarks/relate.py --quick     # under a minute
    python benchmarks/relate.py --json      # one JSON line per figure

Watching is measured as the time of a joint training with TAG over that of the same training
without: the same model, batches and optimiser; processor time, one thread, medians over rounds of
20 steps in which both take turns. By default TAG looks at every 20th step at one source per 20
tasks; every 10th step at one source is measured as well. Choosing is measured in seconds
of processor time. Agreement is the rank correlation (off the diagonal, targets centred) of what
cheaper forms see with the look-ahead of all tasks at every look, over one and the same training.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from polytask.relate import TAG, Affinity, GradientCosine, exact, greedy

BOUNDS = {8: 1.15, 40: 1.3}


class MLP(nn.Module):
    """256 rows of 64 inputs, three layers of 512."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = (64, 512, 512, 512)
        layers = [
            part
            for a, b in pairwise(sizes)
            for part in (nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else []))
        ]
        self.trunk = nn.Sequential(*layers)
        self.width, self.inputs = 512, (256, 64)


class CNN(nn.Module):
    """32 pictures of 3 x 24 x 24, four convolutions with batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 24, 24, 48, 48)
        layers = []
        for n, (a, b) in enumerate(pairwise(channels)):
            layers += [
                nn.Conv2d(a, b, 3, stride=1 + n % 2, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width, self.inputs = 48, (32, 3, 24, 24)


class Training:
    """Joint training on made-up targets: losses that can be computed again, and a step."""

    def __init__(self, body: Callable[[], nn.Module], tasks: int, lr: float = 1e-3) -> None:
        torch.manual_seed(0)
        self.body = body()
        self.names = [f"task {t}" for t in range(tasks)]
        self.heads = nn.ModuleList(nn.Linear(self.body.width, 1) for _ in range(tasks))
        self.model = nn.ModuleList([self.body, self.heads])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.shared = list(self.body.trunk.parameters())
        # tasks of four kinds: those of one kind ask for nearly the same
        kinds = torch.randn(4, 64)[torch.arange(tasks) % 4]
        self.true = (kinds + 0.5 * torch.randn(tasks, 64)) / 8

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            x = torch.randn(self.body.inputs)
            yield x, torch.tanh(x.flatten(1)[:, :64] @ self.true.T)

    def losses(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        features = self.body.trunk(x)
        return {
            name: (head(features)[:, 0] - y[:, t]).square().mean()
            for t, (name, head) in enumerate(zip(self.names, self.heads, strict=True))
        }

    def step(self, x: Tensor, y: Tensor, *watches: TAG | GradientCosine) -> None:
        losses = self.losses(x, y)
        for watch in watches:
            watch.observe(losses, again=lambda: self.losses(x, y))
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()

    def tag(self, sources: int | None = None, every: int = 20, first: bool = False) -> TAG:
        return TAG(self.model, self.shared, self.optimizer, self.names,
                   every=every, sources=sources, first_order=first)  # fmt: skip


def ratio(training: Training, watch: TAG | GradientCosine, rounds: int) -> float:
    """Return the time of 20 watched steps over that of 20 plain ones."""
    x, y = next(training.batches())

    def spent(*watches: TAG | GradientCosine) -> float:
        begun = time.process_time()
        for _ in range(20):
            training.step(x, y, *watches)
        return time.process_time() - begun

    spent(watch)
    return statistics.median(spent(watch) / spent() for _ in range(rounds))


def agreement(tasks: int, steps: int) -> dict[str, float]:
    """Return the rank correlation of cheaper forms with all look-aheads of every step."""
    training = Training(MLP, tasks, lr=3e-4)
    whole = training.tag(tasks, every=2)
    others = {
        "all sources, every 20th": training.tag(tasks),
        "default (1 source, every 20th)": training.tag(),
        "1 source, every 10th": training.tag(every=10),
        "1 source, every 2nd": training.tag(1, every=2),
        "1 source, every 2nd, against now": TAG(
            training.model,
            training.shared,
            training.optimizer,
            training.names,
            every=2,
            sources=1,
            against="now",
        ),
        "first order, every 20th": training.tag(first=True),
        "gradient cosine, every 10th": GradientCosine(training.shared, training.names),
    }
    batches = training.batches()
    for _ in range(steps):
        training.step(*next(batches), whole, *others.values())
    off = ~torch.eye(tasks, dtype=torch.bool)
    expected = whole.affinity().centred().values_TT[off]
    found = {}
    for name, watch in others.items():
        seen = watch.affinity().filled().centred().values_TT[off]
        found[name] = float(spearmanr(seen, expected).statistic)
    return found


def drawn(tasks: int, seed: int) -> Affinity:
    """Return a random affinity in which tasks come in ten kinds."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 10, (tasks,), generator=generator)
    values_TT = torch.randn(tasks, tasks, generator=generator).double()
    values_TT += torch.where(kind[:, None] == kind, 1.0, -0.5)
    names = tuple(f"task {t}" for t in range(tasks))
    return Affinity(names, values_TT, torch.full((tasks, tasks), torch.nan))


def seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute")
    parser.add_argument("--rounds", type=int, help="of each figure")
    parser.add_argument("--json", action="store_true", help="a JSON line per figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = options.rounds or (3 if options.quick else 15)

    def show(what: str, figure: str, value: float, bound: float | None = None) -> None:
        if options.json:
            line = {"what": what, "figure": figure, "value": value, "bound": bound}
            print(json.dumps(line), flush=True)
            return
        kept = "" if bound is None else f"   bound {bound:g} "
        kept += "" if bound is None else ("met" if value <= bound else "NOT MET")
        print(f"{what:44s} {figure:22s} {value:8.3g}{kept}", flush=True)

    if not options.json:
        print(f"{platform.machine()}, torch {torch.__version__}, {rounds} rounds")
    for tasks, bound in BOUNDS.items():
        for name, body in {"MLP": MLP, "MLP with dropout": lambda: MLP(0.1), "CNN": CNN}.items():
            training = Training(body, tasks)
            ways = {"": training.tag()}
            ways[", every 10th"] = training.tag(1, every=10)
            for way, watch in ways.items():
                found = ratio(training, watch, rounds)
                show(f"TAG, {name}, T = {tasks}{way}", "time / joint", found, bound)
    training = Training(MLP, 8)
    every = {"all sources": training.tag(8), "first order": training.tag(first=True)}
    every["gradient cosine"] = GradientCosine(training.shared, training.names)
    for name, watch in every.items():
        show(f"{name}, MLP, T = 8", "time / joint", ratio(training, watch, min(rounds, 5)))
    for name, value in agreement(8, 200 if options.quick else 1000).items():
        show(f"{name}, T = 8", "rank corr. with all", value)
    show("exact, T = 12, budget 4", "seconds, worst of 5",
         max(seconds(lambda s=s: exact(drawn(12, s), 4)) for s in range(5)), 10)  # fmt: skip
    if not options.quick:
        show("exact, T = 14, budget 4", "seconds", seconds(lambda: exact(drawn(14, 0), 4)))
    for budget in (10, 100):
        show(f"greedy, T = 1,000, budget {budget}", "seconds",
             seconds(lambda b=budget: greedy(drawn(1000, 0), b)), 10)  # fmt: skip


if __name__ == "__main__":
    main()
