"""What a run takes in arithmetic, told before it is trained, and the same on every machine.

Seconds would differ from run to run, and what is tried within a budget with them.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from polytask.fit import FitConfig
from polytask.fit.validate import chunks, evaluating
from polytask.mix import steps_per_epoch
from polytask.parsing import parse
from polytask.recipes.train import Job, build, suite_of
from polytask.suites import Suite

ROWS = 8
"""Rows of each stream that are looked at."""

BACKWARD = 2.0
"""A backward pass takes about twice the arithmetic of the forward pass."""


def work_of_epoch(job: Job) -> float:
    """Return the floating-point operations of an epoch of the job, all streams alike.

    Counted in a forward pass of a few rows, times three for the backward pass; a balance that
    looks at tasks' gradients goes backward once per task (wrappers are not looked into). Where
    torch counts nothing (recurrent layers alone), two per parameter and row.
    """
    suite, recipe = suite_of(job), parse(job.recipe)
    model, balance, _ = build(suite, recipe, job.config.seed)
    counted, rows = 0.0, 0
    with evaluating(model), torch.no_grad():
        for stream in suite.train:
            few = stream.take(torch.arange(min(ROWS, len(stream))))
            tasks = tuple(t for t in suite.tasks.names if t in stream.targets)
            for _, _, inputs in chunks(few, ROWS, "cpu"):
                with FlopCounterMode(display=False) as counter:
                    model(inputs, tasks=tasks)
                counted += counter.get_total_flops()
                rows += len(few)
    if not counted:
        counted, rows = 2.0 * sum(p.numel() for p in model.parameters()), 1
    passes = 1 if getattr(balance, "needs", "losses") == "losses" else len(suite.tasks)
    return counted / rows * (1 + BACKWARD * passes) * rows_of_epoch(suite, job.config)


def rows_of_epoch(suite: Suite, config: FitConfig) -> float:
    """Return the rows that an epoch's updates take, see `FitConfig.epochs`."""
    sizes = {stream.name: len(stream) for stream in suite.train}
    steps = steps_per_epoch(sizes, config.batch_size)
    return sum(sizes.values()) / steps * max(steps, config.min_epoch_steps)
