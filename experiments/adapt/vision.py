"""Adapters on a hierarchical transformer: MTLoRA, Polyhistor and others on camvid's two tasks.

    python experiments/adapt/vision.py

Plan: README.md beside this file. A run that was stopped goes on where it was; the table is written
whenever another seed is done. POLYTASK_DATA names the folder of the data.

Shapes: B = rows, F = channels of the encoder's levels, H, W = their height and width.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import backbone
import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor, nn

from polytask.adapt import (
    Adapted,
    At,
    BitFit,
    Bottleneck,
    GlobalTask,
    LoRA,
    Method,
    Polyhistor,
    Where,
    adapt,
    mtlora_at,
    save_adapted,
)
from polytask.balance import Balancer
from polytask.evaluate import Claim, delta_m
from polytask.fit import (
    Feed,
    FitConfig,
    Meters,
    build_optimiser,
    fit,
    primary,
    train_step,
    validate,
)
from polytask.mix import Schedule, Uniform
from polytask.parsing import parse
from polytask.recipes import build, load_suite, score_for
from polytask.recipes.adapted import AdaptedModel
from polytask.share import HardSharing, SharedModel
from polytask.suites import Suite
from polytask.suites.pictures import MAP_STEP, fine_map
from polytask.suites.swin import Swin

SUITE = "camvid"
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3)
EPOCHS, BATCH, DECAY = 10, 8, 0.05
HIDDEN = 48
ROUNDS, WARM = 9, 2
"""Of the steps that are timed: that count, and before them."""

LINEAR = ("qkv", "proj", "fc1", "fc2")
OUT = ("proj", "fc2")
LAST = tuple(f"stages.*.blocks.{backbone.SIZES['depths'][0] - 1}.*.{n}" for n in LINEAR[1:])
"""The last block of each stage, without queries, keys and values."""
NORMS = ("norm1", "norm2", "merge.norm", "norms.*", "places", "patches")
"""What MTLoRA trains of the base."""


@dataclass(frozen=True)
class Plan:
    """Adapters, where they go, and what of the base is trained as well."""

    method: Method | Sequence[At]
    where: Where | Sequence[str] | None = None
    train: Sequence[str] | None = None

    def on(self, encoder: nn.Module, tasks: Sequence[str], seed: int) -> Adapted:
        return adapt(encoder, self.method, tasks, self.where, seed, self.train)


PLANS: dict[str, Plan] = {
    "mtlora": Plan(mtlora_at(LAST, LINEAR, rank=16, task_rank=4), train=NORMS),
    "mtlora, shared alone": Plan(GlobalTask(16, 0, 4.0, 4.0, 0.05), LINEAR, NORMS),
    "lora": Plan(LoRA(rank=10, alpha=40.0, dropout=0.05), LINEAR),
    "bottleneck": Plan(Bottleneck(32, form="gelu"), OUT),
    "polyhistor": Plan(Polyhistor(width=32), OUT),
    "polyhistor-lite": Plan(Polyhistor(width=32, lite=True), OUT),
    "bitfit": Plan(BitFit()),
}
FULL, HEADS = "all weights, all tasks", "decoders alone"
ROWS = (FULL, HEADS, *PLANS)
ALONE = "all weights, each task alone"
ADAPTERS = ("mtlora", "lora", "bottleneck", "polyhistor")
"""Those that are held against all weights of each task alone."""


class Decoder(nn.Module):
    """What a task makes of all levels of the encoder: (B, F, H, W) -> an output for every pixel."""

    def __init__(self, width: int, outputs: int, patch: int) -> None:
        super().__init__()
        self._patch, self._square = patch, patch // MAP_STEP
        self.layers = nn.Sequential(
            nn.Conv2d(width, HIDDEN, 1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, outputs * self._square**2, 1),
        )

    def forward(self, levels_BFHW: Tensor) -> Tensor:
        size = [self._patch * side for side in levels_BFHW.shape[-2:]]
        return fine_map(self.layers(levels_BFHW), self._square, size)


def encoder(suite: Suite) -> Swin:
    """Return the pretrained encoder, with the statistics of the suite's pictures."""
    pixels = suite.train[0].inputs
    assert isinstance(pixels, Tensor)
    channels = pixels.transpose(0, 1).flatten(1).float()
    made = backbone.encoder(channels.mean(1).tolist(), channels.std(1).tolist(), "levels")
    lacking, surplus = made.load_state_dict(backbone.base(), strict=False)
    assert not surplus
    assert set(lacking) == {"mean_C11", "scale_C11"}
    return made


def model(row: str, suite: Suite, seed: int) -> SharedModel:
    """Return the row's model: the pretrained encoder, and a new decoder for every task."""
    body = encoder(suite)
    torch.manual_seed(seed)
    patch = backbone.SIZES["patch"]
    heads: dict[str, nn.Module] = {}
    for task in suite.tasks:
        outputs = task.kind.head(1)
        assert isinstance(outputs, nn.Conv2d)
        heads[task.name] = Decoder(body.width, outputs.out_channels, patch)
    reads = dict.fromkeys(heads, "levels")
    if row in PLANS:
        return AdaptedModel(PLANS[row].on(body, suite.tasks.names, seed), heads, reads)
    body.requires_grad_(row != HEADS)
    return HardSharing(body, heads, reads)


def counted(made: SharedModel) -> dict[str, int]:
    """Return what is trained, apart from decoders and with them, and the bytes it takes on disk.

    bytes: of one file with all that is not the pretrained encoder's.
    """
    import safetensors.torch

    free = {n: p.detach() for n, p in made.named_parameters() if p.requires_grad}
    of_heads = sum(p.numel() for task in made.tasks for p in made.task_parameters(task))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        if isinstance(made, AdaptedModel):
            save_adapted(path, made.adapted, made.heads)
        else:
            safetensors.torch.save_file(free, path)
        size = path.stat().st_size
    total = sum(p.numel() for p in free.values())
    return {"own": total - of_heads, "trained": total, "bytes": size}


def trained(
    row: str, suite: Suite, rate: float, seed: int, reference: Mapping[str, float] | None
) -> dict[str, Any]:
    """Train one model, or go on; return its score, values and size.

    reference: validation values that the best weights are chosen against; None: of one task.
    """
    config = FitConfig(
        epochs=EPOCHS,
        batch_size=BATCH,
        lr=rate,
        weight_decay=DECAY,
        schedule="cosine",
        clip=1.0,
        patience=0,
        probes=0,
        seed=seed,
    )
    made = model(row, suite, seed)
    _, balance, mix = build(suite, parse("hard"), seed)
    folder = KEPT.runs / "vision" / "fits" / name_of(row, suite, rate, seed)
    begun = time.process_time()
    record = fit(
        suite, made, balance, mix, config, score_for(suite.tasks, reference),
        method=row, folder=folder,
    )  # fmt: skip
    seconds = time.process_time() - begun
    found = validate(made, suite.test, Meters(suite.tasks), 64)
    return {
        "score": record.best.score,
        "val": dict(primary(record.best.val, suite.tasks)),
        "test": dict(primary(found, suite.tasks)),
        "epoch": record.best.epoch,
        "seconds": seconds,
        **counted(made),
    }


def name_of(row: str, suite: Suite, rate: float, seed: int) -> str:
    """Return the name of a run."""
    tasks = "" if len(suite.tasks) > 1 else f" {suite.tasks.names[0]}"
    return f"{row}{tasks}--lr{rate:g}--s{seed}".replace(", ", "-").replace(" ", "-")


@cache
def camvid() -> Suite:
    return load_suite(SUITE)


def picked(
    row: str, suite: Suite, seed: int, reference: Callable[[int], Mapping[str, float] | None]
) -> dict[str, Any]:
    """Return the run of a seed with the rate whose run of the first seed is best on validation."""

    def one(rate: float, seed: int) -> dict[str, Any]:
        name = f"vision/{name_of(row, suite, rate, seed)}"
        return KEPT.run(name, lambda: trained(row, suite, rate, seed, reference(seed)))

    best = max(RATES, key=lambda rate: one(rate, SEEDS[0])["score"])
    return one(best, seed) | {"rate": best}


def alone(seed: int) -> dict[str, dict[str, Any]]:
    """Return of every task the run of a model of its own, all weights trained."""
    tasks = camvid().tasks.names
    return {t: picked(ALONE, camvid().only([t]), seed, lambda _: None) for t in tasks}


def reference(seed: int) -> dict[str, float]:
    """Return the validation values of the models of each task alone."""
    return {task: run["val"][task] for task, run in alone(seed).items()}


def of_seed(seed: int) -> dict[str, dict[str, Any]]:
    """Return every row's run of a seed, with its delta-m on the test pictures."""
    every = alone(seed)
    runs = list(every.values())
    together = {
        "test": {task: run["test"][task] for task, run in every.items()},
        "rate": [run["rate"] for run in runs],
        "seconds": sum(run["seconds"] for run in runs),
    } | {name: sum(run[name] for run in runs) for name in ("own", "trained", "bytes")}
    found = {ALONE: together}
    for row in ROWS:
        found[row] = picked(row, camvid(), seed, reference)
    tasks = camvid().tasks
    return {
        row: run | {"delta_m": delta_m(tasks, run["test"], together["test"])}
        for row, run in found.items()
    }


def step_times(suite: Suite, rounds: int, warm: int) -> dict[str, float]:
    """Return the median processor time of an update of each row, in ms.

    All rows take turns in one process; those of each task alone are added up.
    """
    made: dict[str, list[Callable[[int], None]]] = {}
    for row in ROWS:
        made[row] = [stepping(row, suite, rounds + warm)]
    made[ALONE] = [stepping(ALONE, suite.only([t]), rounds + warm) for t in suite.tasks.names]
    times: dict[str, list[float]] = {row: [] for row in made}
    for at in range(rounds + warm):
        for row, steps in made.items():
            begun = time.process_time()
            for step in steps:
                step(at)
            times[row].append(time.process_time() - begun)
    return {row: 1000 * statistics.median(every[warm:]) for row, every in times.items()}


def stepping(row: str, suite: Suite, steps: int) -> Callable[[int], None]:
    """Return what makes an update of the row's model, by its number."""
    made = model(row, suite, SEEDS[0])
    _, balance, _ = build(suite, parse("hard"), SEEDS[0])
    names = suite.tasks.names
    balancer = Balancer(balance, made.shared_parameters(), tasks=names, steps_per_epoch=steps)
    optimiser = build_optimiser(made, balancer, FitConfig(lr=RATES[0], batch_size=BATCH))
    schedule = Schedule(Uniform(), [len(s) for s in suite.train], BATCH, SEEDS[0])
    feed = Feed(suite.train, suite.tasks, schedule)
    cursors, fed = schedule.start(), []
    for at in range(steps):
        drawn, cursors = feed.step(at, cursors)
        fed.append(drawn)
    made.train()

    def step(at: int) -> None:
        train_step(made, balancer, optimiser, fed[at], "float32", 1.0)

    return step


def written(seeds: Sequence[int]) -> dict[str, Any]:
    """Return the table of these seeds; runs that are not there are made."""
    by_seed = [of_seed(seed) for seed in seeds]
    times = KEPT.run("vision/step-times", partial(step_times, camvid(), ROUNDS, WARM))
    rows = {}
    for row in (ALONE, *ROWS):
        runs = [found[row] for found in by_seed]
        first = runs[0]
        rows[row] = {
            "rate": first["rate"],
            "own": first["own"],
            "trained": first["trained"],
            "bytes": first["bytes"],
            "step_ms": times[row],
            "seconds": [run["seconds"] for run in runs],
            "delta_m": [run["delta_m"] for run in runs],
            **{t: [run["test"][t] for run in runs] for t in camvid().tasks.names},
        }
    about = backbone.about()
    return {
        "seeds": list(seeds),
        "epochs": EPOCHS,
        "batch": BATCH,
        "rates": RATES,
        "encoder": backbone.SIZES | {"weights": sum(p.numel() for p in backbone.base().values())},
        "pretraining": {"accuracy": float(about["accuracy"]), "seconds": int(about["seconds"])},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many (default all)")
    options = parser.parse_args()
    if not 2 <= options.seeds <= len(SEEDS):
        parser.error(f"seeds is {options.seeds}; give 2 to {len(SEEDS)}.")
    torch.set_num_threads(1)
    for many in range(2, options.seeds + 1):
        KEPT.write("vision", written(SEEDS[:many]))


CLAIMS: tuple[tuple[str, str, str, str, str, float], ...] = (
    ("mtlora", "is ahead of LoRA per task of a similar size", "mtlora", "lora", "greater", 1.0),
    ("mtlora", "is ahead of training all weights on all tasks", "mtlora", FULL, "greater", 1.0),
    ("mtlora", "is as good as training all weights on all tasks", "mtlora", FULL, "no worse", 1.0),
    ("mtlora", "what is each task's own helps", "mtlora", "mtlora, shared alone", "greater", 0.5),
    (
        "polyhistor", "is as good as a bottleneck of each task, with a fraction of its weights",
        "polyhistor", "bottleneck", "no worse", 1.0,
    ),
    ("polyhistor", "Lite is as good", "polyhistor-lite", "polyhistor", "no worse", 1.0),
    *(
        (name, "reaches training all weights for each task alone", name, ALONE, "no worse", 1.0)
        for name in ADAPTERS
    ),
)  # fmt: skip
"""System, claim, the two sides, rule and margin."""


def claims(table: Table) -> Iterator[Claim]:
    """Differences of delta-m, seed by seed."""
    rows = table["rows"]
    for system, words, ours, theirs, expected, margin in CLAIMS:
        sizes = " against ".join(f"{rows[side]['own']:,}" for side in (ours, theirs))
        yield claim(
            table, system, words,
            f"camvid's two tasks, a hierarchical transformer of {table['encoder']['weights']:,} "
            f"weights, {table['epochs']} epochs; {sizes} trained weights apart from decoders",
            minus(rows[ours]["delta_m"], rows[theirs]["delta_m"]), expected, margin,
            f"points of delta-m over {theirs}",
        )  # fmt: skip


def section(table: Table) -> str:
    """Return each row's values, what it trains and what it costs."""
    rows = []
    for name, of in table["rows"].items():
        rate = of["rate"] if isinstance(of["rate"], list) else [of["rate"]]
        rows.append(
            [
                name,
                spread(of["segments"]),
                spread(of["edge_distance"]),
                "" if name == ALONE else spread(of["delta_m"]),
                f"{of['own']:,}",
                f"{of['trained']:,}",
                f"{of['step_ms']:.0f}",
                f"{of['bytes'] / 1000:,.0f}",
                ", ".join(f"{value:g}" for value in rate),
            ]
        )
    head = [
        "trained", "mean IoU", "RMSE of edge_distance, px", "delta-m in %",
        "weights apart from decoders", "with them", "ms an update", "kB on disk", "learning rate",
    ]  # fmt: skip
    made = table["pretraining"]
    words = (
        f"Pretrained on CIFAR-10 to {100 * made['accuracy']:.1f} % on its test pictures in "
        f"{made['seconds'] / 60:.1f} minutes. *ms an update*: processor time, one thread, all rows "
        f"in turns on a machine with other work; {table['batch']} pictures, which adapted rows run "
        "once for each task. *kB on disk*: one file with all that is not the pretrained encoder's, "
        "decoders included."
    )
    return grid(table, "Adapters on a hierarchical transformer: camvid", head, rows, words)


if __name__ == "__main__":
    main()
