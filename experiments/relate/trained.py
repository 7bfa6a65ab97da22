"""Runs on suites for the experiments of this folder, all with one setting; what they test at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from found import KEPT

from polytask.fit import FitConfig, load_weights
from polytask.parsing import parse
from polytask.recipes import load_suite
from polytask.recipes.train import Job, build, suite_of, test, train
from polytask.share import SharedModel

LR = 1e-3


def job(
    folder: str,
    suite: str,
    tasks: Sequence[str],
    epochs: int,
    seed: int,
    *,
    watches: Sequence[str] = (),
    start: Path | None = None,
) -> Job:
    """Return a run with hard sharing and equal weights, which trains all its epochs."""
    config = FitConfig(
        epochs=epochs, batch_size=load_suite(suite).batch_size, lr=LR, patience=0, probes=0,
        seed=seed,
    )  # fmt: skip
    return Job(
        suite, tuple(tasks), "equal", config, KEPT.runs / folder, watches=tuple(watches),
        start=start,
    )  # fmt: skip


def tested(run: Job) -> dict[str, float]:
    """Train, unless that is done; return the primary metrics on the test split."""
    train(run)
    values = test(run)
    found = {}
    for task in suite_of(run).tasks:
        value = values[task.name][task.primary.name]
        assert value is not None
        found[task.name] = value
    return found


def model_of(run: Job) -> SharedModel:
    """Return the model of a finished run, for evaluation."""
    model, _, _ = build(suite_of(run), parse(run.recipe), run.config.seed)
    model.load_state_dict(load_weights(run.folder))
    return model.eval()


def passes(run: Job) -> int:
    """Return the rows that the encoder saw in training a run to its end."""
    return train(run).cost.steps * run.config.batch_size
