"""Why a task gained or lost: what the runs recorded about it, in plain words.

Every sentence is a number that stands out, with the number in it. None of them proves a cause:
gradients that conflict are evidence, not a verdict. What does not stand out is not mentioned.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from polytask.errors import UsageError
from polytask.evaluate.gain import mean
from polytask.evaluate.interval import LEVEL, interval
from polytask.records import Record
from polytask.tasks import Metric, Task

COSINE = 0.05
"""Mean cosines nearer to 0 are not mentioned: unrelated gradients in P shared parameters have
cosines of about 1 / sqrt(P), which is below this from P = 400 on."""

LOOKS = 4
"""Probes a pair of tasks needs before its mean cosine is judged: fewer say little of the spread."""

NORM_FACTOR = 3.0
"""A gradient norm is mentioned from this many times larger or smaller than the others' mean:
norms of tasks with losses of different units commonly differ by 2."""

WEIGHT_FACTOR = 2.0
"""A weight is mentioned from half or twice the mean: less is what any weighting does."""

LEFT = 1.0
"""Points of gain between a task's own best checkpoint and the kept one that are mentioned: the best
of many validations is better by a little even where nothing changes."""

TRAIN_CHANGE = 10.0
"""Percent by which the training loss must differ from the single-task model's to be mentioned: it
is a mean over the steps before the checkpoint, which are not the same steps."""

VAL_CHANGE = 1.0
"""Percent by which the validation metric must differ to be called better or worse."""


def why(records: Sequence[Record], single: Sequence[Record], task: Task) -> str:
    """Return what the runs recorded about `task` that stands out, as a few sentences.

    records: runs of one method, one per seed. single: runs of the task alone; those with the same
    seed are compared. Everything is averaged over seeds, and what a record lacks is skipped.
    Raises UsageError where there is no record, or one that does not have the task.
    """
    if not records:
        raise UsageError(f"Why {task.name!r} changed is read from records; give at least one.")
    for record in (*records, *single):
        if task.name not in record.tasks:
            raise UsageError(
                f"The record of {record.method!r}, seed {record.seed}, has no task {task.name!r}; "
                f"its tasks are: {', '.join(record.tasks)}."
            )
    alone = {record.seed: record for record in single}
    pairs = [(record, alone[record.seed]) for record in records if record.seed in alone]
    sentences = [
        *_directions(records, task.name),
        _norm(records, task.name),
        _weight(records, task.name),
        _stop(pairs, task),
        _end(records, task.name),
        _fit(pairs, task),
    ]
    said = [sentence for sentence in sentences if sentence]
    shared = any(len(record.tasks) > 1 for record in records)
    if shared and not any(record.probes for record in records):
        said.append("Gradients were not probed.")
    elif not said:
        said.append("Nothing that was recorded stands out.")
    return " ".join(said)


def _directions(records: Sequence[Record], name: str) -> list[str]:
    """Return whom the task's gradient conflicts with most, and agrees with most."""
    cosines: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        at = record.tasks.index(name)
        for probe in record.probes:
            for other, cosine in zip(record.tasks, probe.cosines[at], strict=True):
                if other != name and cosine is not None and math.isfinite(cosine):
                    cosines[other].append(cosine)
    judged = {other: seen for other, seen in cosines.items() if len(seen) >= LOOKS}
    conflicts: dict[str, float] = {}
    agrees: dict[str, float] = {}
    for other, seen in judged.items():
        # Bonferroni over partners: the worst of 138 has a bad mean by chance alone. Probes of one
        # run are not independent, so this guards against chance and is no test.
        bounds = interval(seen, 1 - (1 - LEVEL) / len(judged))
        assert bounds is not None
        if bounds[1] < 0 and mean(seen) <= -COSINE:
            conflicts[other] = mean(seen)
        elif bounds[0] > 0 and mean(seen) >= COSINE:
            agrees[other] = mean(seen)
    said = []
    if conflicts:
        worst = min(conflicts, key=lambda other: conflicts[other])
        share = sum(c < 0 for c in judged[worst]) / len(judged[worst])
        said.append(_partner("conflicts", worst, share, conflicts))
    if agrees:
        best = max(agrees, key=lambda other: agrees[other])
        share = sum(c > 0 for c in judged[best]) / len(judged[best])
        said.append(_partner("agrees", best, share, agrees))
    return said


def _partner(verb: str, partner: str, share: float, found: dict[str, float]) -> str:
    others = len(found) - 1
    more = f", and {verb} with {others} more" if others else ""
    cosine = f"{found[partner]:.2f}".replace("-", "−")
    return (
        f"Gradient {verb} with {partner} in {100 * share:.0f} % of probes "
        f"(mean cosine {cosine}){more}."
    )


def _norm(records: Sequence[Record], name: str) -> str:
    """Return the task's share of the gradient norm where it is far from even."""
    shares, evens = [], []
    for record in records:
        at = record.tasks.index(name)
        for probe in record.probes:
            own = probe.norms[at]
            present = [n for n in probe.norms if n is not None and math.isfinite(n)]
            if own is None or not math.isfinite(own) or len(present) < 2 or not any(present):
                continue
            shares.append(own / math.fsum(present))
            evens.append(1 / len(present))
    if not shares:
        return ""
    share, even = mean(shares), mean(evens)
    # Odds, not the share itself: with two tasks no share can be three times the even one.
    factor = math.inf if share >= 1 else (share / (1 - share)) / (even / (1 - even))
    if 1 / NORM_FACTOR < factor < NORM_FACTOR:
        return ""
    side = "above" if factor > 1 else "below"
    return (
        f"Its gradient is {_percent(share)} of the tasks' gradient norms before weighting, far "
        f"{side} an even share of {_percent(even)}."
    )


def _weight(records: Sequence[Record], name: str) -> str:
    """Return the task's weight relative to the mean weight where it is far from 1."""
    ratios = []
    for record in records:
        for point in record.points:
            weights = [w for w in point.weights.values() if math.isfinite(w)]
            own = point.weights.get(name, math.nan)
            if math.isfinite(own) and len(weights) >= 2 and mean(weights) > 0:
                ratios.append(own / mean(weights))
    if not ratios or 1 / WEIGHT_FACTOR < mean(ratios) < WEIGHT_FACTOR:
        return ""
    return f"Its weight was {mean(ratios):.2g} times the mean weight."


def _stop(pairs: Sequence[tuple[Record, Record]], task: Task) -> str:
    """Return how much gain on validation the kept checkpoint gave away for this task."""
    left, own_steps, kept_steps = [], [], []
    for record, alone in pairs:
        step, best = record.best_per_task.get(task.name, (0, math.nan))
        _, reference = alone.best_per_task.get(task.name, (0, math.nan))
        kept = _kept(record, task.name, task.primary)
        points = task.primary.gain(best, reference) - task.primary.gain(kept, reference)
        if math.isfinite(points):
            left.append(points)
            own_steps.append(step)
            kept_steps.append(record.best.step)
    if not left or mean(left) < LEFT:
        return ""
    if all(own > kept for own, kept in zip(own_steps, kept_steps, strict=True)):
        when = "after"
    elif all(own < kept for own, kept in zip(own_steps, kept_steps, strict=True)):
        when = "before"
    else:
        when = "apart from"
    seeds = ", mean over seeds" if len(left) > 1 else ""
    steps = f"step {_mean_step(own_steps)} against {_mean_step(kept_steps)}{seeds}"
    return (
        f"Its own best on validation came {when} the kept checkpoint ({steps}); "
        f"{mean(left):.1f} points of gain were left there."
    )


def _end(records: Sequence[Record], name: str) -> str:
    """Return that the task was still improving, where most runs ended so."""
    ends = Counter(
        record.stopped == "epochs"
        and len(record.points) > 1
        and record.best_per_task.get(name, (None, math.nan))[0] == record.points[-1].step
        for record in records
    )
    if ends[True] <= ends[False]:
        return ""
    return "Its last validation was its best when the epochs ran out."


def _fit(pairs: Sequence[tuple[Record, Record]], task: Task) -> str:
    """Return whether the task is fitted more or less than alone, and how validation took it."""
    metric = task.primary
    trains, vals = [], []
    for record, alone in pairs:
        loss = record.best.train.get(task.name, math.nan)
        base = alone.best.train.get(task.name, math.nan)
        val = metric.gain(_kept(record, task.name, metric), _kept(alone, task.name, metric))
        if base > 0 and math.isfinite(loss) and math.isfinite(val):
            trains.append(100 * (loss - base) / base)
            vals.append(val)
    if not trains:
        return ""
    train, val = mean(trains), mean(vals)
    if abs(train) < TRAIN_CHANGE or abs(val) < VAL_CHANGE:
        return ""
    verdict = {
        (True, True): "Generalises better than alone",
        (True, False): "Underfits",
        (False, True): "Learns it better than alone",
        (False, False): "Overfits",
    }[train > 0, val > 0]
    return (
        f"{verdict}: training loss {abs(train):.0f} % {'higher' if train > 0 else 'lower'} than "
        f"the single-task model's, validation {metric.name} {abs(val):.1f} % "
        f"{'better' if val > 0 else 'worse'}."
    )


def _kept(record: Record, name: str, metric: Metric) -> float:
    """Return the task's primary metric on validation at the kept checkpoint; NaN where absent."""
    return record.best.val.get(name, {}).get(metric.name, math.nan)


def _mean_step(steps: Sequence[int]) -> str:
    return f"{mean([float(step) for step in steps]):.0f}"


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
