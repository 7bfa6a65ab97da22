"""Results: what every task gained or lost against its own single-task model, and what it cost.

Values are paired by seed: the gain of seed s is against the single-task model of seed s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polytask.errors import UsageError
from polytask.evaluate.gain import gains, mean
from polytask.evaluate.interval import LEVEL, discoveries, interval, p_value
from polytask.records import Cost
from polytask.tasks import TaskSet

Verdict = Literal["gained", "lost", "undecided", "reference"]

Scores = Mapping[str, Mapping[int, float | None]]
"""Per task and seed, the primary metric. None, which is how JSON writes NaN, counts as NaN."""


@dataclass(frozen=True)
class TaskResult:
    """One task under one method.

    metric: name of the primary metric. values, gains (in %): one per seed, in the order of the
        method's seeds; a gain that is not defined is NaN.
    gain: mean of `gains`; None where one of them is not defined.
    interval: of `gain` over seeds; None with one seed, or without a gain.
    verdict: "gained" where the interval lies above 0, "lost" where it lies below, "undecided"
        otherwise; "reference" for the single-task models. Each verdict stands alone: among many
        tasks that did not change, 5 % get a wrong one (see Counts).
    why: what the runs left behind that explains it, in plain words.
    """

    metric: str
    values: tuple[float, ...]
    gains: tuple[float, ...]
    gain: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Counts:
    """How many tasks have each verdict.

    gained_adjusted, lost_adjusted: those that hold when all tasks are tested together, so that of
        the ones counted here 5 % are expected to be false (Benjamini & Hochberg). At 139 tasks
        that did not change, about 3 would count as gained and 3 as lost unadjusted.
    """

    gained: int = 0
    lost: int = 0
    undecided: int = 0
    reference: int = 0
    gained_adjusted: int = 0
    lost_adjusted: int = 0


@dataclass(frozen=True)
class CostResult:
    """What a method cost: the models it trains for all tasks together, mean over seeds.

    seconds: training alone. parameters: of all models together. peak_memory: bytes of the largest
        model's run, since models can be trained one after another; None where not known.
    *_ratio: against the single-task models; None where either side is not known or theirs is 0.
    """

    seconds: float
    steps: float
    parameters: float
    peak_memory: float | None
    seconds_ratio: float | None
    parameters_ratio: float | None
    memory_ratio: float | None


@dataclass(frozen=True)
class MethodResult:
    """One method on all tasks of a suite.

    tasks: per task, in the suite's order. seeds: in the order of every list per seed.
    delta_m: mean gain over tasks in %, and its interval over seeds. Tasks in `left_out` have a
        gain that is not defined for some seed and are left out in every seed, so that all seeds
        average the same tasks. None where no task is left.
    worst: the task with the lowest gain; None where no task has one.
    """

    tasks: dict[str, TaskResult]
    seeds: tuple[int, ...]
    delta_m: float | None
    delta_m_interval: tuple[float, float] | None
    worst: str | None
    counts: Counts
    left_out: tuple[str, ...] = ()
    cost: CostResult | None = None


def judge(
    tasks: TaskSet,
    single: Scores,
    method: Scores,
    *,
    level: float = LEVEL,
    why: Mapping[str, str] | None = None,
    cost: CostResult | None = None,
) -> MethodResult:
    """Return what each task gained or lost under `method` against `single`.

    Both sides need every task, and every task the same seeds; a seed that is missing on one side
    is an error. why: per task, a text that is kept (see `why.why`).
    """
    seeds = _seeds(tasks, single, method)
    per_seed = [gains(tasks, _at(tasks, method, s), _at(tasks, single, s)) for s in seeds]
    results = {}
    for task in tasks:
        name = task.name
        over_seeds = tuple(gain[name] for gain in per_seed)
        values = tuple(_number(method[name][s]) for s in seeds)
        bases = tuple(_number(single[name][s]) for s in seeds)
        undefined = _undefined(seeds, values, bases, over_seeds)
        bounds = None if undefined else interval(over_seeds, level)
        notes = [(why or {}).get(name, ""), undefined]
        if bounds is not None and bounds[0] == bounds[1]:
            notes.append("Every seed gave exactly this gain, so its interval has no width.")
        results[name] = TaskResult(
            metric=task.primary.name,
            values=values,
            gains=over_seeds,
            gain=None if undefined else mean(list(over_seeds)),
            interval=bounds,
            verdict=_verdict(bounds),
            why=" ".join(note for note in notes if note),
        )
    kept = {name: result.gain for name, result in results.items() if result.gain is not None}
    deltas = [mean([gain[name] for name in kept]) for gain in per_seed] if kept else []
    return MethodResult(
        tasks=results,
        seeds=seeds,
        delta_m=mean(deltas) if kept else None,
        delta_m_interval=interval(deltas, level),
        worst=min(kept, key=lambda name: kept[name]) if kept else None,
        counts=_counts(list(results.values()), 1 - level),
        left_out=tuple(name for name in results if name not in kept),
        cost=cost,
    )


def reference(tasks: TaskSet, single: Scores, *, cost: CostResult | None = None) -> MethodResult:
    """Return the result of the single-task models themselves: every gain 0, by definition."""
    seeds = _seeds(tasks, single, single)
    results = {
        task.name: TaskResult(
            metric=task.primary.name,
            values=tuple(_number(single[task.name][s]) for s in seeds),
            gains=(0.0,) * len(seeds),
            gain=0.0,
            interval=None,
            verdict="reference",
        )
        for task in tasks
    }
    return MethodResult(
        tasks=results,
        seeds=seeds,
        delta_m=0.0,
        delta_m_interval=None,
        worst=None,
        counts=Counts(reference=len(results)),
        cost=cost,
    )


def cost(models: Sequence[Sequence[Cost]], single: CostResult | None = None) -> CostResult:
    """Return what training `models` cost: one inner sequence per model, its runs over seeds.

    A method that shares one model among all tasks has one; the single-task models are one per
    task. single: what the ratios are against; None for the single-task models themselves, whose
    ratios are 1. Each model's mean over seeds is summed over models; memory takes the largest.
    """
    if not models or not all(models):
        raise UsageError("A cost needs at least one model, and of each model at least one run.")
    memories = [
        None if None in known else mean([float(m) for m in known if m is not None])
        for known in ([run.peak_memory for run in runs] for runs in models)
    ]
    seconds = sum(mean([run.seconds for run in runs]) for runs in models)
    parameters = sum(mean([float(run.parameters) for run in runs]) for runs in models)
    memory = None if None in memories else max(m for m in memories if m is not None)
    return CostResult(
        seconds=seconds,
        steps=sum(mean([float(run.steps) for run in runs]) for runs in models),
        parameters=parameters,
        peak_memory=memory,
        seconds_ratio=_ratio(seconds, single.seconds if single else seconds),
        parameters_ratio=_ratio(parameters, single.parameters if single else parameters),
        memory_ratio=_ratio(memory, single.peak_memory if single else memory),
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _at(tasks: TaskSet, scores: Scores, seed: int) -> dict[str, float]:
    return {name: _number(scores[name][seed]) for name in tasks.names}


def _seeds(tasks: TaskSet, single: Scores, method: Scores) -> tuple[int, ...]:
    """Return the seeds, in the order of the first task; all tasks must have them on both sides."""
    for side, scores in (("single-task models", single), ("method", method)):
        missing = [name for name in tasks.names if name not in scores]
        if missing:
            raise UsageError(
                f"The {side} must have a value of every task; there is none of "
                f"{', '.join(missing)}. Train them, or judge fewer tasks with tasks.only(...)."
            )
    first = tasks.names[0]
    seeds = tuple(single[first])
    if not seeds:
        raise UsageError(f"Task {first!r} has no seed; a result needs at least one per task.")
    for side, scores in (("single-task model", single), ("method", method)):
        for name in tasks.names:
            if set(scores[name]) != set(seeds):
                raise UsageError(
                    f"Values are paired by seed: the single-task model of {first!r} has seeds "
                    f"{_listed(seeds)}, but the {side} has seeds {_listed(scores[name])} for "
                    f"{name!r}. Run the missing seeds, or leave them out everywhere."
                )
    return seeds


def _listed(seeds: Mapping[int, object] | Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds)) or "(none)"


def _undefined(
    seeds: Sequence[int],
    values: Sequence[float],
    bases: Sequence[float],
    over_seeds: Sequence[float],
) -> str:
    """Return why there is no gain, naming the first seed that has none; "" where all have one."""
    for seed, value, base, gain in zip(seeds, values, bases, over_seeds, strict=True):
        if not math.isnan(gain):
            continue
        if not math.isfinite(value):
            reason = f"the metric is {value} with seed {seed}"
        elif not math.isfinite(base):
            reason = f"the metric of the single-task model is {base} with seed {seed}"
        else:
            reason = f"the single-task model scores {base:g} with seed {seed}"
        return f"No gain: {reason}, and no relative change exists."
    return ""


def _verdict(bounds: tuple[float, float] | None) -> Verdict:
    if bounds is None:
        return "undecided"
    return "gained" if bounds[0] > 0 else "lost" if bounds[1] < 0 else "undecided"


def _counts(results: Sequence[TaskResult], rate: float) -> Counts:
    tested = [r for r in results if r.interval is not None]
    p_values = [p for r in tested if (p := p_value(r.gains)) is not None]
    holds = discoveries(p_values, rate)
    sure = [r for r, hold in zip(tested, holds, strict=True) if hold]
    return Counts(
        gained=sum(r.verdict == "gained" for r in results),
        lost=sum(r.verdict == "lost" for r in results),
        undecided=sum(r.verdict == "undecided" for r in results),
        gained_adjusted=sum(r.verdict == "gained" for r in sure),
        lost_adjusted=sum(r.verdict == "lost" for r in sure),
    )
