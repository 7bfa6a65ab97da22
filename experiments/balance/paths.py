"""What happens along training on digits2: gradients at every update, losses after every epoch.

    python experiments/balance/paths.py                       # all methods, all seeds
    python experiments/balance/paths.py --methods pcgrad coba # these; the table when all are there

Plan: README.md beside this file.

Shapes: K = tasks present in a step.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import store
import torch
from torch import Tensor

from polytask.balance import Balance, Needs, Signal, State, Update
from polytask.fit import Feed, FitConfig, Silent, fit, step_losses
from polytask.fit.validate import evaluating
from polytask.mix import Proportional, Schedule
from polytask.parsing import parse
from polytask.recipes import build, load_suite
from polytask.records import Point
from polytask.share import SharedModel
from polytask.suites import Stream
from polytask.tasks import TaskSet

SUITE = "digits2"
SEEDS = (0, 1, 2, 3, 4)
SETTINGS = {"epochs": 15, "lr": 1e-3, "weight_decay": 1e-2}
PRESET = {"left": 1.0, "right": 1.0, "offset": 3.0, "overlap": 3.0}

WATCHED = ("pcgrad", "cagrad", "nash-mtl", "aligned-mtl")
METHODS = {name: name for name in ("equal", "coba", *WATCHED)} | {
    "fixed preset": "fixed:weights=1/1/3/3",
    "aligned-mtl preset": "aligned-mtl:preference=1/1/3/3",
}
"""Name in the table -> recipe."""


@dataclass
class Watched:
    """A Gramian method as it is, and what its answers look like."""

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    method: Balance
    log10_condition: list[float] = field(default_factory=list)
    least_cosine: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)

    def start(self, tasks: int) -> State:
        return self.method.start(tasks)

    def __call__(self, signal: Signal, state: State) -> Update:
        update = self.method(signal, state)
        assert signal.gram_KK is not None, "the engine gives it to methods that need it"
        gram_KK, weights_K = signal.gram_KK, update.weights_K.detach().double()
        self.log10_condition.append(log10_condition(gram_KK))
        self.least_cosine.append(least_cosine(gram_KK, weights_K))
        self.similarity.append(similarity(gram_KK))
        return update

    def means(self) -> dict[str, float]:
        return {
            "log10_condition": fmean(self.log10_condition),
            "least_cosine": fmean(self.least_cosine),
            "similarity": fmean(self.similarity),
        }


def log10_condition(gram_KK: Tensor) -> float:
    """Return log10 of the largest over the smallest singular value of the gradients."""
    squares_K = torch.linalg.eigvalsh(gram_KK)
    # Below this the smallest eigenvalue is rounding of float32 gradients.
    least = float(squares_K[-1]) * torch.finfo(torch.float32).eps ** 2
    return 0.5 * math.log10(float(squares_K[-1]) / max(float(squares_K[0]), least))


def least_cosine(gram_KK: Tensor, weights_K: Tensor) -> float:
    """Return the smallest cosine of the weighted sum of the gradients with one of them."""
    products_K = gram_KK @ weights_K
    norms_K = gram_KK.diagonal().sqrt()
    return float((products_K / (norms_K * (weights_K @ products_K).sqrt())).min())


def similarity(gram_KK: Tensor) -> float:
    """Return 2 |a| |b| / (|a|^2 + |b|^2), the mean over pairs of gradients."""
    squares_K = gram_KK.diagonal()
    pairs_KK = 2 * (squares_K[:, None] * squares_K).sqrt() / (squares_K[:, None] + squares_K)
    k = len(squares_K)
    return float((pairs_KK.sum() - k) / (k * (k - 1)))


class Losses(Silent):
    """The losses of a whole split, before training and after each epoch."""

    def __init__(self, model: SharedModel, streams: tuple[Stream, ...], tasks: TaskSet) -> None:
        sizes = [len(stream) for stream in streams]
        schedule = Schedule(Proportional(), sizes, sum(sizes), seed=0)
        self._model = model
        self._all, _ = Feed(streams, tasks, schedule).step(0, schedule.start())
        self.taken = [self.now()]

    def now(self) -> dict[str, float]:
        with evaluating(self._model):
            tasks, losses_K = step_losses(self._model, self._all, "float32")
        return dict(zip(tasks, losses_K.tolist(), strict=True))

    def point(self, point: Point) -> None:
        self.taken.append(self.now())


class Both(Silent):
    """Validation losses after each epoch, training losses after the last."""

    def __init__(self, val: Losses, train: Losses, epochs: int) -> None:
        self.val, self.train, self._epochs = val, train, epochs

    def point(self, point: Point) -> None:
        self.val.point(point)
        if point.epoch == self._epochs:
            self.train.point(point)


def run(recipe: str, seed: int) -> dict[str, Any]:
    """Train once; return what was seen."""
    suite = load_suite(SUITE)
    model, balance, mix = build(suite, parse(recipe), seed)
    watched = Watched(balance) if recipe in WATCHED else None
    config = FitConfig(batch_size=suite.batch_size, patience=0, probes=0, seed=seed, **SETTINGS)
    looks = Both(
        Losses(model, suite.val, suite.tasks),
        Losses(model, suite.train, suite.tasks),
        config.epochs,
    )
    with TemporaryDirectory() as folder:
        fit(
            suite, model, watched or balance, mix, config, lambda now, first: 0.0,
            method=recipe, folder=Path(folder), progress=looks,
        )  # fmt: skip
    seen: dict[str, Any] = {} if watched is None else watched.means()
    return seen | {"val_losses": looks.val.taken, "train_losses": looks.train.taken[-1]}


def unevenness(losses: list[dict[str, float]]) -> float:
    """Return the deviation over tasks of loss / loss before training, mean over the epochs."""
    first, *later = losses
    ratios = [
        torch.tensor([epoch[t] / first[t] for t in first], dtype=torch.float64) for epoch in later
    ]
    return fmean(float(ratio_T.std(correction=0)) for ratio_T in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.methods:
        for seed in SEEDS:
            store.kept(f"paths/{name}--s{seed}", lambda n=name, s=seed: run(METHODS[n], s))
    if set(options.methods) != set(METHODS):
        return
    table: dict[str, Any] = {}
    for name in METHODS:
        runs = [store.kept(f"paths/{name}--s{seed}", dict) for seed in SEEDS]
        keys = [key for key in runs[0] if key not in ("val_losses", "train_losses")]
        table[name] = {key: [found[key] for found in runs] for key in keys}
        table[name]["unevenness"] = [unevenness(found["val_losses"]) for found in runs]
        objective = [sum(w * found["train_losses"][t] for t, w in PRESET.items()) for found in runs]
        table[name]["preset_objective"] = objective
    store.write("paths", {"suite": SUITE, "seeds": SEEDS, "settings": SETTINGS, "methods": table})


if __name__ == "__main__":
    main()
