"""One run from a plain description: what to train on, which methods, which settings, where to.

A `Job` is made of text and numbers alone, so that another process can be handed it as JSON.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask import suites
from polytask.balance import Balance, Wrapper
from polytask.errors import RunError, unknown
from polytask.fit import (
    RECORD,
    RESTING,
    WEIGHTS,
    FitConfig,
    LeftOut,
    MakeWatch,
    Meters,
    Progress,
    fit,
    load_weights,
    validate,
)
from polytask.mix import Mix, steps_per_epoch
from polytask.parsing import Recipe, choose, parse, settings_of
from polytask.recipes.adapted import naming_tasks
from polytask.recipes.adapting import Earlier, build_adapted
from polytask.recipes.scoring import score_for
from polytask.records import Record, file_name, read_json, write_json
from polytask.relate import TAG, GradientCosine, Watch
from polytask.share import SharedModel
from polytask.suites import Stream, Suite

TEST = "test.json"
LOOKED = "validation.json"
"""In the folder of a run: what `look` found."""


@dataclass(frozen=True)
class Job:
    """One run.

    suite: a suite's name, or the path of a file that declares one.
    tasks: only these; None for all. recipe: methods joined by `+`, see `parsing.parse`.
    reference: primary metrics on the validation split that delta-m is taken against while
        training; None: see `score_for`. watches: methods of `relate` that watch the run, see
        `watching`; what they find lies in the folder.
    until: rest after so many epochs, see `fit`. start: the folder of a run, whose best weights
        this one begins with; its model must have all that this one's has.
    """

    suite: str
    tasks: tuple[str, ...] | None
    recipe: str
    config: FitConfig
    folder: Path
    reference: Mapping[str, float] | None = None
    label: str = ""
    watches: tuple[str, ...] = ()
    until: int | None = None
    start: Path | None = None

    def to_json(self) -> dict[str, Any]:
        start = None if self.start is None else str(self.start)
        return {**asdict(self), "folder": str(self.folder), "start": start}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Job:
        tasks, start = raw["tasks"], raw.get("start")
        return cls(
            **{
                **raw,
                "tasks": None if tasks is None else tuple(tasks),
                "config": FitConfig(**raw["config"]),
                "folder": Path(raw["folder"]),
                "watches": tuple(raw.get("watches", ())),
                "start": None if start is None else Path(start),
            }
        )


@functools.lru_cache(maxsize=2)
def load_suite(name: str) -> Suite:
    """Return the suite, loaded once per process."""
    return suites.load(name)


def build(
    suite: Suite, recipe: Recipe, seed: int, earlier: Earlier | None = None
) -> tuple[SharedModel, Balance | Wrapper, Mix]:
    """Return a fresh model, balance and mix; the model's first weights depend on `seed` alone.

    earlier: trains or loads the stages before, of methods of `adapt` that have some.
    """
    if recipe.adapt is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = build_adapted(suite, recipe.adapt.seeded(seed), seed, earlier)
        return adapted, recipe.build_balance(seed), recipe.build_mix(seed)
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


def train(job: Job, progress: Progress | None = None) -> Record:
    """Train one job; a finished folder is returned as it is, an unfinished one is taken up."""
    suite = suite_of(job)
    stages = Stages(job, suite, progress)
    model, balance, mix = build(suite, parse(job.recipe), job.config.seed, stages)
    if job.start is not None:
        begin_with(model, load_weights(job.start), job.start)
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
        until=job.until,
        earlier=stages.records,
    )


class Stages:
    """What a method of `adapt` trains before the run itself: runs of their own below its folder.

    Each trains as the run does, as long, and by the same balance and mix. records: of those trained
    so far.
    """

    def __init__(self, job: Job, suite: Suite, progress: Progress | None = None) -> None:
        self.job, self.suite, self.progress = job, suite, progress
        self.records: list[Record] = []

    def __call__(self, model: SharedModel, name: str, tasks: Sequence[str] | None = None) -> Record:
        """Train the model, or load it where it was trained; return the stage's record."""
        job, recipe = self.job, parse(self.job.recipe)
        suite = self.suite if tasks is None else self.suite.only(tasks)
        record = fit(
            suite,
            model,
            recipe.build_balance(job.config.seed),
            recipe.build_mix(job.config.seed),
            replace(job.config, probes=0),
            score_for(suite.tasks, job.reference),
            method=f"{job.label or job.recipe}, stage {name}",
            folder=job.folder / "stages" / file_name(name),
            progress=self.progress,
        )
        self.records.append(record)
        return record


def suite_of(job: Job) -> Suite:
    """Return the job's suite, of its tasks alone; adapters are told which task each row has."""
    suite = load_suite(job.suite)
    suite = suite if job.tasks is None else suite.only(job.tasks)
    return suite if parse(job.recipe).adapt is None else naming_tasks(suite, suite.tasks.names)


def load_run(job: Job, suite: Suite) -> SharedModel:
    """Return the model of a finished run, or of one that rests, with its best weights."""
    model, _, _ = build(suite, parse(job.recipe), job.config.seed, Stages(job, suite))
    model.load_state_dict(load_weights(job.folder))
    return model


def begin_with(model: SharedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Give the model those weights that are its own; `weights` may hold other tasks' heads too.

    folder: where they are from, for the error: RunError where one is missing or differs in shape.
    """
    own = model.state_dict()
    for name, value in own.items():
        if name not in weights or weights[name].shape != value.shape:
            raise RunError(
                f"{folder} holds a model of another architecture: {name} of shape "
                f"{tuple(value.shape)} is not there. Start from a run with the same sharing."
            )
    model.load_state_dict({name: weights[name] for name in own})


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
    suite = suite_of(job)
    model = load_run(job, suite)
    values = validated(model, suite.test, Meters(suite.tasks), job.config)
    write_json(kept, values)
    return read_json(kept)  # type: ignore[no-any-return]  # as anybody will read it later


def validated(
    model: SharedModel, streams: Sequence[Stream], meters: Meters | LeftOut, config: FitConfig
) -> dict[str, dict[str, float]]:
    """Return the metrics of a model on a split as its training took them: batch, device, dtype."""
    model.to(config.device)
    batch_size = max(config.batch_size, 256)
    return validate(model, streams, meters, batch_size, config.device, config.precision)


def look(job: Job) -> dict[str, dict[str, float]]:
    """Return per task the primary metric on the validation split, with all that `LeftOut` tells.

    By the best weights of a run that is done or rests. The answer is kept beside the run, until it
    has trained on.
    """
    kept = job.folder / LOOKED
    steps = record_of(job.folder).cost.steps
    if not (kept.exists() and read_json(kept)["steps"] == steps):
        suite = suite_of(job)
        model = load_run(job, suite)
        values = validated(model, suite.val, LeftOut(suite.tasks), job.config)
        write_json(kept, {"steps": steps, "values": values})
    return {
        task: {part: math.nan if value is None else value for part, value in of_task.items()}
        for task, of_task in read_json(kept)["values"].items()
    }


def record_of(folder: Path) -> Record:
    """Return the record of a run that is done, or of one that rests; read once while it stands."""
    path = folder / RECORD
    if not path.exists():
        path = folder / RESTING
    written = path.stat().st_mtime_ns if path.exists() else 0  # if not, loading says what is wrong
    return _record(path, written)


@functools.lru_cache(maxsize=1024)
def _record(path: Path, written: int) -> Record:
    return Record.load(path)
