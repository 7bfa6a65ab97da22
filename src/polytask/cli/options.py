"""The options that commands which train have in common, and what they come to."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click


def setting(*names: str, type: Any = None, help: str) -> Callable[..., Any]:
    """Return an option whose value, where given, is put among the command's settings."""

    def keep(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.ensure_object(dict)[option.name] = value

    return click.option(*names, type=type, help=help, expose_value=False, callback=keep)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the settings that `compare` and `fit` have in common."""
    schedules, precisions = click.Choice(["constant", "cosine"]), click.Choice(["float32", "bf16"])
    for option in reversed(
        [
            setting("--epochs", type=int, help="At most this many. Default: the suite's."),
            setting("--batch-size", type=int, help="Rows of an update. Default: the suite's."),
            setting(
                "--patience",
                type=int,
                help="Stop after this many epochs without a better score; 0: never. Default: 10.",
            ),
            setting("--schedule", type=schedules, help="Of the learning rate. Default: constant."),
            setting("--clip", type=float, help="Largest gradient norm. Default: none."),
            setting("--accumulate", type=int, help="Micro-batches of an update. Default: 1."),
            setting(
                "--length-groups",
                type=int,
                help="Parts of like length that padded rows of an update run in. Default: 1.",
            ),
            setting(
                "--min-epoch-steps",
                type=int,
                help="Updates that an epoch has at least, however few its rows. Default: 20.",
            ),
            setting(
                "--precision",
                type=precisions,
                help="bf16: autocast of the forward pass. Default: float32.",
            ),
            setting("--device", help="cpu, cuda, cuda:1. Default: cpu."),
            setting(
                "--nonfinite",
                type=click.Choice(["stop", "skip"]),
                help="What a loss or gradient that is not finite does. Default: stop the run.",
            ),
            setting(
                "--checkpoint-seconds",
                type=float,
                help="Save whenever this much time has passed; 0: every update. Default: 30.",
            ),
        ]
    ):
        command = option(command)
    return command


def parallel_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add how many runs go at a time, and the threads of each."""
    for option in reversed(
        [
            click.option(
                "--jobs", type=int, help="Runs at a time. Default: one per core; 1 on a GPU."
            ),
            click.option("--threads", default=1, show_default=True, help="Threads of each run."),
        ]
    ):
        command = option(command)
    return command


def config_of(suite: str, options: dict[str, Any], recipe: str | None = None) -> Any:
    """Return the settings of a run: what was asked for, else the suite's, else the defaults.

    recipe: of the run, where it is one: a pretrained encoder has learning rates of its own.
    """
    from polytask.fit import FitConfig
    from polytask.recipes import load_suite
    from polytask.recipes.adapting import grid_for

    loaded = load_suite(suite)
    base = FitConfig(epochs=loaded.epochs, batch_size=loaded.batch_size)
    grid = None if recipe is None else grid_for(loaded, recipe)
    if grid is not None:
        base = replace(base, lr=grid[0][0], weight_decay=grid[0][1])
    return replace(base, **options)


def runs_at_a_time(device: str, jobs: int | None = None) -> int:
    """Return as many as were asked for, else as there are cores this process may use; a GPU is not
    shared unasked."""
    if jobs is not None:
        return jobs
    if device != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):  # fewer than the machine has, in many containers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def command_line() -> str:
    """Return the command as it was given."""
    return shlex.join(["polytask", *sys.argv[1:]])
