"""Gain and delta-m: the paper's formula, its signs, and values that have no relative change."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import UsageError
from polytask.evaluate import delta_m, gains
from polytask.evaluate.gain import mean
from polytask.tasks import TaskSet

finite = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6)


def test_closed_form(task_set):
    tasks = task_set(seg="max", depth="min")
    values, reference = {"seg": 0.44, "depth": 0.9}, {"seg": 0.4, "depth": 1.0}
    assert gains(tasks, values, reference) == pytest.approx({"seg": 10.0, "depth": 10.0})
    worse = {"seg": 0.36, "depth": 1.3}
    assert gains(tasks, worse, reference) == pytest.approx({"seg": -10.0, "depth": -30.0})
    assert delta_m(tasks, worse, reference) == pytest.approx(-20.0)


def test_negative_reference_keeps_the_sign(task_set):
    """R² can be negative; rising from -0.5 to -0.25 is still a gain."""
    assert gains(task_set(a="max"), {"a": -0.25}, {"a": -0.5}) == pytest.approx({"a": 50.0})


@given(numbers=st.lists(st.tuples(finite, finite), min_size=1, max_size=6))
def test_direction_flips_the_sign_and_order_does_not_matter(task_set, numbers):
    pairs = {f"t{i}": pair for i, pair in enumerate(numbers)}
    values = {n: v for n, (v, _) in pairs.items()}
    reference = {n: r for n, (_, r) in pairs.items()}
    up, down = (task_set(**dict.fromkeys(pairs, way)) for way in ("max", "min"))
    assert gains(up, values, reference) == {
        n: -g for n, g in gains(down, values, reference).items()
    }
    turned = TaskSet(reversed(list(up)))
    assert delta_m(turned, values, reference) == delta_m(up, values, reference)
    assert delta_m(up, values, reference) == -delta_m(down, values, reference)


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (1.0, 0.0),
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, 1.0),
        (1.0, -math.inf),
        (1.0, 5e-324),
    ],
)
def test_no_relative_change_is_nan_and_left_out_of_the_mean(task_set, value, reference):
    tasks = task_set(a="max", b="max")
    found = gains(tasks, {"a": value, "b": 1.1}, {"a": reference, "b": 1.0})
    assert math.isnan(found["a"])
    assert delta_m(tasks, {"a": value, "b": 1.1}, {"a": reference, "b": 1.0}) == found["b"]
    assert math.isnan(delta_m(task_set(a="max"), {"a": value}, {"a": reference}))


def test_a_missing_task_is_named(task_set):
    tasks = task_set(a="max", b="min")
    with pytest.raises(UsageError, match=r"needs a value of rmse .*; values has none for 'b'"):
        gains(tasks, {"a": 1.0}, {"a": 1.0, "b": 1.0})
    with pytest.raises(UsageError, match="reference has none for 'a'"):
        delta_m(tasks, {"a": 1.0, "b": 1.0}, {"b": 1.0})


def test_keys_beyond_the_tasks_are_not_read(task_set):
    assert delta_m(task_set(a="max"), {"a": 2.0, "z": 9.0}, {"a": 1.0}) == 100.0


def test_the_mean_of_huge_values_is_finite():
    assert mean([1.7e308, 1.7e308]) == 1.7e308
    assert mean([0.0, 0.0]) == 0.0
    assert mean([-3.0, 5e-324, 3.0]) >= 0.0
