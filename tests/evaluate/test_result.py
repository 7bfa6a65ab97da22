"""Results: pairing by seed, verdicts, what is undefined, counts among many tasks, and cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import UsageError
from polytask.evaluate import cost, interval, judge, reference
from polytask.records import Cost, to_json


def scores(**by_task):
    return {name: dict(enumerate(values)) for name, values in by_task.items()}


def test_gains_are_paired_by_seed(task_set):
    """Seeds differ far more than the method changes; only pairing sees the steady 10 %."""
    tasks = task_set(a="max", b="min")
    single = scores(a=[0.1, 0.5, 0.9], b=[1.0, 2.0, 4.0])
    method = scores(a=[0.11, 0.551, 0.988], b=[1.2, 2.38, 4.84])
    result = judge(tasks, single, method)
    a, b = result.tasks["a"], result.tasks["b"]
    assert a.gains == pytest.approx((10.0, 10.2, 9.7778), abs=1e-3)
    assert b.gains == pytest.approx((-20.0, -19.0, -21.0))
    assert a.interval == pytest.approx(interval(a.gains))
    assert (a.metric, a.verdict, a.values) == ("accuracy", "gained", (0.11, 0.551, 0.988))
    assert (b.metric, b.verdict) == ("rmse", "lost")
    assert result.worst == "b"
    deltas = [(x + y) / 2 for x, y in zip(a.gains, b.gains, strict=True)]
    assert result.delta_m == pytest.approx(sum(deltas) / 3)
    assert result.delta_m_interval == pytest.approx(interval(deltas))
    assert (result.counts.gained, result.counts.lost, result.counts.undecided) == (1, 1, 0)


def test_the_order_of_seeds_inside_a_task_does_not_matter(task_set):
    tasks = task_set(a="max")
    single = {"a": {3: 1.0, 1: 2.0}}
    result = judge(tasks, single, {"a": {1: 2.2, 3: 1.5}})
    assert result.seeds == (3, 1)
    assert result.tasks["a"].gains == pytest.approx((50.0, 10.0))


values = st.lists(st.floats(0.1, 10), min_size=3, max_size=3)


@settings(max_examples=50, deadline=None)
@given(single=values, method=values, order=st.permutations([0, 1, 2]))
def test_permuting_seeds_and_turning_the_direction(task_set, single, method, order):
    tasks_max, tasks_min = task_set(a="max"), task_set(a="min")
    up = judge(tasks_max, scores(a=single), scores(a=method)).tasks["a"]
    turned = judge(
        tasks_max,
        {"a": {s: single[s] for s in order}},
        {"a": {s: method[s] for s in order}},
    ).tasks["a"]
    assert (turned.gain, turned.interval, turned.verdict) == (up.gain, up.interval, up.verdict)
    down = judge(tasks_min, scores(a=single), scores(a=method)).tasks["a"]
    assert down.gain == -up.gain
    mirror = {"gained": "lost", "lost": "gained", "undecided": "undecided"}
    assert down.verdict == mirror[up.verdict]


def test_one_seed_is_undecided(task_set):
    result = judge(task_set(a="max"), scores(a=[1.0]), scores(a=[9.0]))
    assert result.tasks["a"].gain == pytest.approx(800.0)
    assert result.tasks["a"].interval is None
    assert result.tasks["a"].verdict == "undecided"
    assert result.delta_m_interval is None
    assert result.counts.undecided == 1
    assert result.counts.gained_adjusted == 0


def test_equal_gains_are_decided_and_said(task_set):
    result = judge(task_set(a="max"), scores(a=[1.0, 2.0]), scores(a=[1.5, 3.0]))
    assert result.tasks["a"].interval == (50.0, 50.0)
    assert result.tasks["a"].verdict == "gained"
    assert "no width" in result.tasks["a"].why
    same = judge(task_set(a="max"), scores(a=[1.0, 2.0]), scores(a=[1.0, 2.0]))
    assert same.tasks["a"].verdict == "undecided"


@pytest.mark.parametrize(
    ("single", "method", "text"),
    [
        ([1.0, 1.0], [1.1, math.nan], "the metric is nan with seed 1"),
        ([1.0, 1.0], [None, 1.1], "the metric is nan with seed 0"),
        ([1.0, 1.0], [1.1, math.inf], "the metric is inf with seed 1"),
        ([1.0, math.nan], [1.1, 1.1], "of the single-task model is nan with seed 1"),
        ([1.0, 0.0], [1.1, 1.1], "the single-task model scores 0 with seed 1"),
    ],
)
def test_an_undefined_gain_is_said_and_left_out_in_every_seed(task_set, single, method, text):
    tasks = task_set(a="max", b="max")
    result = judge(
        tasks,
        scores(a=single, b=[1.0, 1.0]),
        scores(a=method, b=[1.2, 1.4]),
        why={"a": "It conflicts."},
    )
    a = result.tasks["a"]
    assert (a.gain, a.interval, a.verdict) == (None, None, "undecided")
    assert a.why.startswith("It conflicts. No gain: ")
    assert text in a.why
    assert result.left_out == ("a",)
    assert result.delta_m == pytest.approx(30.0)
    assert result.delta_m_interval == pytest.approx(interval([20.0, 40.0]))
    assert result.worst == "b"
    assert to_json(result)["tasks"]["a"]["gain"] is None


def test_nothing_left_has_no_delta_m(task_set):
    result = judge(task_set(a="max"), scores(a=[0.0, 0.0]), scores(a=[1.0, 1.0]))
    assert (result.delta_m, result.delta_m_interval, result.worst) == (None, None, None)


def test_a_missing_seed_or_task_is_an_error(task_set):
    tasks = task_set(a="max", b="max")
    full = scores(a=[1.0, 1.0], b=[1.0, 1.0])
    with pytest.raises(UsageError, match=r"seeds 0, 1, but the method has seeds 0 for 'b'"):
        judge(tasks, full, scores(a=[1.0, 1.0], b=[1.0]))
    with pytest.raises(UsageError, match=r"the single-task model has seeds 0, 1, 2 for 'b'"):
        judge(tasks, scores(a=[1.0, 1.0], b=[1.0, 1.0, 1.0]), full)
    with pytest.raises(UsageError, match=r"The method must have .* none of b\."):
        judge(tasks, full, scores(a=[1.0, 1.0]))
    with pytest.raises(UsageError, match="'a' has no seed"):
        judge(tasks, scores(a=[], b=[]), scores(a=[], b=[]))


def test_the_reference_is_nought_by_definition(task_set):
    result = reference(task_set(a="max", b="min"), scores(a=[1.0, math.nan], b=[1.0, 2.0]))
    assert [r.verdict for r in result.tasks.values()] == ["reference"] * 2
    assert [r.gain for r in result.tasks.values()] == [0.0, 0.0]
    assert (result.delta_m, result.counts.reference, result.worst) == (0.0, 2, None)


def test_many_unchanged_tasks_fool_single_verdicts_but_not_the_adjusted_counts(task_set):
    """139 tasks, 5 seeds, no effect: about 7 wrong verdicts, hardly any that holds."""
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(139)]
    tasks = task_set(**dict.fromkeys(names, "max"))
    wrong = adjusted = 0
    for _ in range(10):
        single = {n: dict(enumerate(rng.normal(10, 0.1, 5))) for n in names}
        method = {n: dict(enumerate(rng.normal(10, 0.1, 5))) for n in names}
        counts = judge(tasks, single, method).counts
        wrong += counts.gained + counts.lost
        adjusted += counts.gained_adjusted + counts.lost_adjusted
        assert counts.gained + counts.lost + counts.undecided == 139
    assert 40 < wrong < 100  # 69.5 expected
    assert adjusted <= 5


def test_clear_effects_survive_the_adjustment(task_set):
    rng = np.random.default_rng(1)
    names = [f"t{i}" for i in range(20)]
    factor = {n: 1.2 if i < 10 else 0.8 for i, n in enumerate(names)}
    single = {n: dict(enumerate(rng.normal(10, 0.1, 5))) for n in names}
    method = {n: {s: v * factor[n] + 0.1 * s for s, v in single[n].items()} for n in names}
    counts = judge(task_set(**dict.fromkeys(names, "max")), single, method).counts
    assert (counts.gained_adjusted, counts.lost_adjusted) == (10, 10)


RUN = Cost(
    seconds=2.0,
    validation_seconds=9.0,
    steps=10,
    parameters=100,
    shared_parameters=90,
    peak_memory=1000,
    waiting=0.0,
)


def test_cost_against_the_sum_of_the_single_task_models():
    small = replace(RUN, seconds=1.0, steps=5, parameters=50, peak_memory=400)
    single = cost([[RUN, replace(RUN, seconds=4.0)], [small, small]])
    assert (single.seconds, single.steps, single.parameters) == (4.0, 15, 150)
    assert single.peak_memory == 1000  # one after the other: the largest counts
    assert (single.seconds_ratio, single.parameters_ratio, single.memory_ratio) == (1, 1, 1)
    joint = cost([[replace(RUN, seconds=3.0, peak_memory=1500)]], single)
    assert joint.seconds_ratio == pytest.approx(0.75)
    assert joint.parameters_ratio == pytest.approx(100 / 150)
    assert joint.memory_ratio == pytest.approx(1.5)


def test_cost_that_is_not_known_has_no_ratio():
    unknown = replace(RUN, peak_memory=None)
    single = cost([[RUN], [unknown]])
    assert (single.peak_memory, single.memory_ratio) == (None, None)
    assert cost([[RUN]], single).memory_ratio is None
    free = cost([[replace(RUN, seconds=0.0)]])
    assert free.seconds_ratio is None
    with pytest.raises(UsageError, match="at least one run"):
        cost([[RUN], []])
