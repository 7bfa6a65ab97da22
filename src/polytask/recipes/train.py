"""One run from a plain description: what to train on, which methods, which settings, where to.

A `Job` is made of text and numbers alone, so that another process can be handed it as JSON.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from polytask import suites
from polytask.balance import Balance, Wrapper
from polytask.errors import RunError, unknown
from polytask.evaluate import delta_m
from polytask.fit import (
    WEIGHTS,
    FitConfig,
    MakeWatch,
    Meters,
    Progress,
    Score,
    fit,
    load_weights,
    validate,
)
from polytask.mix import Mix, steps_per_epoch
from polytask.parsing import Recipe, choose, parse, settings_of
from polytask.records import Record, read_json, write_json
from polytask.relate import TAG, GradientCosine, Watch
from polytask.share import SharedModel
from polytask.suites import Suite
from polytask.tasks import TaskSet

TEST = "test.json"


@dataclass(frozen=True)
class Job:
    """One run.

    suite: a suite's name, or the path of a file that declares one.
    tasks: only these; None for all. recipe: methods joined by `+`, see `parsing.parse`.
    reference: primary metrics on the validation split that delta-m is taken against while
        training; None: see `score_for`. watches: methods of `relate` that watch the run, see
        `watching`; what they find lies in the folder.
    """

    suite: str
    tasks: tuple[str, ...] | None
    recipe: str
    config: FitConfig
    folder: Path
    reference: Mapping[str, float] | None = None
    label: str = ""
    watches: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Job:
        tasks = raw["tasks"]
        return cls(
            **{
                **raw,
                "tasks": None if tasks is None else tuple(tasks),
                "config": FitConfig(**raw["config"]),
                "folder": Path(raw["folder"]),
                "watches": tuple(raw.get("watches", ())),
            }
        )


@functools.lru_cache(maxsize=2)
def load_suite(name: str) -> Suite:
    """Return the suite, loaded once per process."""
    return suites.load(name)


def build(suite: Suite, recipe: Recipe, seed: int) -> tuple[SharedModel, Balance | Wrapper, Mix]:
    """Return a fresh model, balance and mix; the model's first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, width = suite.stand(recipe.stands_on)
        sharing = recipe.share.method.load()
        settings = {name: value for name, value in recipe.share.settings if name != "on"}
        model: SharedModel = sharing.build(encoder, width, suite.tasks, **settings)
    balance: Balance | Wrapper = recipe.build_balance(seed)
    mix: Mix = recipe.build_mix(seed)
    return model, balance, mix


WATCHES: dict[str, Callable[..., Watch]] = {
    "tag": lambda model, optimiser, tasks, **settings: TAG(
        model, model.shared_parameters(), optimiser, tasks, **settings
    ),
    "gradient-cosine": lambda model, optimiser, tasks, **settings: GradientCosine(
        model.shared_parameters(), tasks, **settings
    ),
}
"""The methods of `relate` that watch a run, and how each is made in one."""


LOOKS = 5
"""A watch that is not told how often to look does so as by default, or oftener: in a run of full
length every task is to take this many turns."""


def watching(text: str, seed: int, turns: float = math.inf) -> MakeWatch:
    """Return what makes the watch that `text` names, such as `tag:every=5`; raise UsageError.

    turns: updates of the run for each task.
    """
    choice = choose(text, "relate").seeded(seed)
    if choice.method.name not in WATCHES:
        raise unknown(
            "watch", choice.method.name, WATCHES, f"Those that watch a run: {', '.join(WATCHES)}."
        )
    settings = dict(choice.settings)
    if "every" not in settings:
        usual = settings_of(choice.method)["every"].default
        settings["every"] = int(max(1, min(usual, turns // LOOKS)))
    return partial(WATCHES[choice.method.name], **settings)


def _updates(suite: Suite, config: FitConfig) -> int:
    """Return how many updates a run has at most."""
    sizes = {stream.name: len(stream) for stream in suite.train}
    each = max(steps_per_epoch(sizes, config.batch_size), config.min_epoch_steps)
    return each * config.epochs


def score_for(tasks: TaskSet, reference: Mapping[str, float] | None) -> Score:
    """Return how weights are chosen: by delta-m in % against `reference`.

    Without one: a single task by its primary metric; several by delta-m against the run's own
    first validation, so that every task counts alike whatever its unit.
    """
    if reference is not None:
        return lambda values, first: delta_m(tasks, values, reference)
    if len(tasks) == 1:
        sign = 1.0 if tasks[0].primary.direction == "max" else -1.0
        return lambda values, first: sign * values[tasks[0].name]
    return lambda values, first: _progress(tasks, values, first)


def _progress(tasks: TaskSet, values: Mapping[str, float], first: Mapping[str, float]) -> float:
    """Return delta-m of a run against its own first validation.

    A task that scored exactly 0 there (an F1 before anything is found) has no relative change; it
    counts by its points, so that what it learns later is not left out.
    """
    zero = {name for name in tasks.names if first[name] == 0}
    moved = {n: values[n] + 1 if n in zero else values[n] for n in tasks.names}
    return delta_m(tasks, moved, {n: 1.0 if n in zero else first[n] for n in tasks.names})


def train(job: Job, progress: Progress | None = None) -> Record:
    """Train one job; a finished folder is returned as it is, an unfinished one is taken up."""
    suite = load_suite(job.suite)
    if job.tasks is not None:
        suite = suite.only(job.tasks)
    model, balance, mix = build(suite, parse(job.recipe), job.config.seed)
    return fit(
        suite,
        model,
        balance,
        mix,
        job.config,
        score_for(suite.tasks, job.reference),
        method=job.label or job.recipe,
        folder=job.folder,
        progress=progress,
        watches={
            text: watching(text, job.config.seed, _updates(suite, job.config) / len(suite.tasks))
            for text in job.watches
        },
    )


def test(job: Job) -> dict[str, dict[str, float | None]]:
    """Return the finished run's metrics on the test split, which is read once per run.

    The answer is kept beside the run; asking again reads that file.
    """
    kept = job.folder / TEST
    if kept.exists():
        found: dict[str, dict[str, float | None]] = read_json(kept)
        return found
    if not (job.folder / WEIGHTS).exists():
        raise RunError(f"{job.folder} holds no finished run; train it before testing it.")
    suite = load_suite(job.suite)
    if job.tasks is not None:
        suite = suite.only(job.tasks)
    model, _, _ = build(suite, parse(job.recipe), job.config.seed)
    model.load_state_dict(load_weights(job.folder))
    model.to(job.config.device)
    values = validate(
        model,
        suite.test,
        Meters(suite.tasks),
        max(job.config.batch_size, 256),
        job.config.device,
        job.config.precision,
    )
    write_json(kept, values)
    return read_json(kept)  # type: ignore[no-any-return]  # as anybody will read it later
