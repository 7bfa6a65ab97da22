"""Reasons: each sentence appears with its number where the records support it, and only there."""

import math
import random
from dataclasses import replace

import pytest

from polytask.errors import UsageError
from polytask.evaluate.why import why
from polytask.records import Cost, Point, Probe, Record

COST = Cost(1.0, 1.0, 100, 10, 5, None, 0.0)


def point(step, **by_task):
    """Return a point; by_task: (train loss, validation metric, weight)."""
    return Point(
        step=step,
        epoch=0,
        seconds=0.0,
        train={t: v[0] for t, v in by_task.items()},
        val={t: {"accuracy": v[1]} for t, v in by_task.items()},
        weights={t: v[2] for t, v in by_task.items()},
        score=0.0,
    )


def record(tasks=("a", "b"), seed=0, points=None, probes=(), best=-1, own=None, stopped="patience"):
    points = points or (point(10, **dict.fromkeys(tasks, (1.0, 0.8, 1.0))),)
    kept = points[best]
    return Record(
        suite="s",
        method="m",
        tasks=tuple(tasks),
        seed=seed,
        settings={},
        points=tuple(points),
        probes=tuple(probes),
        best=kept,
        best_per_task=own or {t: (kept.step, kept.val[t]["accuracy"]) for t in kept.val},
        stopped=stopped,
        cost=COST,
        engine="e",
    )


def probes(cosines, norms=(1.0, 1.0)):
    """Return one probe of two tasks for every cosine."""
    return [Probe(i, ((1.0, c), (c, 1.0)), tuple(norms)) for i, c in enumerate(cosines)]


@pytest.fixture
def task(task_set):
    return task_set(a="max").named("a")


QUIET = [0.02, -0.02, 0.01, -0.01, 0.0]
ALONE = record(tasks=("a",))


def test_nothing_stands_out(task):
    assert why([record(probes=probes(QUIET))], [ALONE], task) == (
        "Nothing that was recorded stands out."
    )


def test_conflict_over_all_seeds(task):
    runs = [
        record(seed=0, probes=probes([-0.3, -0.2, -0.1, 0.1, -0.2])),
        record(seed=1, probes=probes([-0.3, -0.2, -0.1, 0.2, -0.1])),
    ]
    assert why(runs, [ALONE], task) == (
        "Gradient conflicts with b in 80 % of probes (mean cosine −0.12)."
    )
    turned = [record(probes=probes([0.3, 0.2, 0.2, 0.25, -0.01]))]
    assert why(turned, [ALONE], task) == (
        "Gradient agrees with b in 80 % of probes (mean cosine 0.19)."
    )


@pytest.mark.parametrize(
    "cosines",
    [
        [-0.9, 0.7, -0.8, 0.75, -0.5],  # mean −0.15, no more than noise
        [-0.04, -0.03, -0.04, -0.035],  # sure, and tiny
        [-0.5, -0.5, -0.5],  # too few
        [None, None, None, None, -0.5],
    ],
)
def test_conflict_that_numbers_do_not_support(task, cosines):
    assert "onflict" not in why([record(probes=probes(cosines))], [ALONE], task)


def test_the_worst_of_many_partners_is_not_picked_by_chance(task_set):
    """139 tasks with random cosines around 0: no conflict; one real one is found among them."""
    rng = random.Random(0)
    names = tuple(f"t{i}" for i in range(139))

    def look(i, real):
        row = tuple([1.0, real] + [rng.gauss(0, 0.2) for _ in names[2:]])
        blank = (None,) * 139
        return Probe(i, (row, *[blank] * 138), (1.0,) * 139)

    task = task_set(t0="max").named("t0")
    quiet = [look(i, rng.gauss(0, 0.2)) for i in range(12)]
    text = why([record(tasks=names, probes=quiet)], [record(tasks=("t0",))], task)
    assert text == "Nothing that was recorded stands out."
    loud = [look(i, -0.6 + rng.gauss(0, 0.2)) for i in range(12)]
    text = why([record(tasks=names, probes=loud)], [record(tasks=("t0",))], task)
    assert text.startswith("Gradient conflicts with t1 in 100 % of probes")
    assert "more" not in text


def test_several_conflicts_are_counted(task):
    looks = [
        Probe(i, ((1.0, c, 2 * c), (c, 1.0, None), (2 * c, None, 1.0)), (1.0, 1.0, 1.0))
        for i, c in enumerate([-0.3, -0.2, -0.25, -0.2])
    ]
    text = why([record(tasks=("a", "b", "c"), probes=looks)], [ALONE], task)
    assert "conflicts with c in 100 % of probes" in text
    assert "and conflicts with 1 more." in text


@pytest.mark.parametrize(
    ("norms", "text"),
    [
        (
            (1.0, 4.0),
            "Its gradient is 20 % of the tasks' gradient norms before weighting, far below",
        ),
        (
            (4.0, 1.0),
            "Its gradient is 80 % of the tasks' gradient norms before weighting, far above",
        ),
        ((1e-6, 1.0), "Its gradient is under 1 % "),
        ((1.0, 0.0), "Its gradient is 100 % "),
        ((1.0, 2.0), "Nothing"),
        ((0.0, 0.0), "Nothing"),
        ((None, 1.0), "Nothing"),
        ((1.0, None), "Nothing"),
        ((math.nan, 1.0), "Nothing"),
        ((math.inf, 1.0), "Nothing"),
    ],
)
def test_domination(task, norms, text):
    said = why([record(probes=probes(QUIET, norms))], [ALONE], task)
    assert said.startswith(text)
    assert ("even share of 50 %" in said) == (not text.startswith("Nothing"))


@pytest.mark.parametrize(
    ("own", "other", "text"),
    [
        (0.2, 1.8, "Its weight was 0.2 times the mean weight."),
        (1.9, 0.01, "Nothing"),
        (5.0, 0.0, "Its weight was 2 times the mean weight."),
        (1.0, 1.0, "Nothing"),
        (math.nan, 1.0, "Nothing"),
        (0.0, 0.0, "Nothing"),
    ],
)
def test_weight(task, own, other, text):
    points = (point(10, a=(1.0, 0.8, own), b=(1.0, 0.8, other)),)
    assert why([record(points=points, probes=probes(QUIET))], [ALONE], task).startswith(text)


def test_a_checkpoint_kept_after_or_before_its_own_best(task):
    run = record(probes=probes(QUIET), own={"a": (4, 0.84), "b": (10, 0.8)})
    assert why([run], [ALONE], task) == (
        "Its own best on validation came before the kept checkpoint (step 4 against 10); "
        "5.0 points of gain were left there."
    )
    late = replace(run, best_per_task={"a": (30, 0.84)}, seed=1)
    text = why([late], [replace(ALONE, seed=1)], task)
    assert "came after the kept checkpoint (step 30 against 10)" in text
    both = why([run, late], [ALONE, replace(ALONE, seed=1)], task)
    assert "came apart from the kept checkpoint (step 17 against 10, mean over seeds)" in both
    little = replace(run, best_per_task={"a": (4, 0.804)})
    assert why([little], [ALONE], task) == "Nothing that was recorded stands out."
    assert why([run], [replace(ALONE, seed=7)], task) == "Nothing that was recorded stands out."


def test_still_improving_at_the_end(task):
    points = (point(5, a=(1.0, 0.799, 1.0)), point(10, a=(1.0, 0.8, 1.0)))
    run = record(points=points, probes=probes(QUIET), stopped="epochs")
    assert "when the epochs ran out" in why([run], [ALONE], task)
    assert "epochs" not in why([replace(run, stopped="patience")], [ALONE], task)
    early = replace(run, best_per_task={"a": (5, 0.8)})
    assert "epochs" not in why([early], [ALONE], task)


@pytest.mark.parametrize(
    ("train", "val", "text"),
    [
        (0.5, 0.72, "Overfits: training loss 50 % lower than the single-task model's, "
                    "validation accuracy 10.0 % worse."),
        (1.5, 0.72, "Underfits: training loss 50 % higher"),
        (1.5, 0.88, "Generalises better than alone: training loss 50 % higher"),
        (0.5, 0.88, "Learns it better than alone: training loss 50 % lower"),
        (1.05, 0.72, "Nothing"),
        (0.5, 0.801, "Nothing"),
        (math.nan, 0.72, "Nothing"),
        (0.5, math.nan, "Nothing"),
    ],
)  # fmt: skip
def test_over_and_underfitting(task, train, val, text):
    run = record(points=(point(10, a=(train, val, 1.0)),), probes=probes(QUIET))
    assert why([run], [ALONE], task).startswith(text)


def test_the_direction_of_the_metric_counts(task_set):
    task = task_set(a="min").named("a")  # rmse
    low = replace(point(10, a=(0.5, 0.0, 1.0)), val={"a": {"rmse": 0.9}})
    one = replace(point(10, a=(1.0, 0.0, 1.0)), val={"a": {"rmse": 1.0}})
    run = replace(record(probes=probes(QUIET)), best=low, best_per_task={"a": (10, 0.9)})
    alone = replace(ALONE, best=one, best_per_task={"a": (10, 1.0)})
    assert why([run], [alone], task).startswith("Learns it better than alone")
    assert "validation rmse 10.0 % better" in why([run], [alone], task)


def test_records_that_lack_almost_everything(task):
    bare = replace(
        record(),
        points=(),
        probes=(),
        best=Point(0, 0, 0.0, {}, {}, {}, math.nan),
        best_per_task={},
    )
    assert why([bare], [], task) == "Gradients were not probed."
    assert why([bare], [bare], task) == "Gradients were not probed."
    assert why([ALONE], [ALONE], task) == "Nothing that was recorded stands out."


def test_what_why_refuses(task):
    with pytest.raises(UsageError, match="give at least one"):
        why([], [], task)
    with pytest.raises(UsageError, match=r"'m', seed 3, has no task 'a'; its tasks are: b, c\."):
        why([record(tasks=("b", "c"), seed=3)], [], task)
