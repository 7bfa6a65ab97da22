"""Intervals: against scipy and tables, how often they cover the truth, and what has none."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from polytask.errors import UsageError
from polytask.evaluate import interval
from polytask.evaluate.interval import discoveries, p_value

seeds = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)
tame = st.lists(st.floats(-1e3, 1e3).map(lambda v: round(v, 6)), min_size=2, max_size=8)
"""Numbers whose squares numpy and scipy do not lose."""


@settings(deadline=None)
@given(tame, st.floats(0.5, 0.999))
def test_equals_scipy(values, level):
    low, high = interval(values, level)
    if len(set(values)) == 1:
        assert (low, high) == (values[0], values[0])
        return
    spread = stats.sem(values)
    expected = stats.t.interval(level, len(values) - 1, np.mean(values), spread)
    assert (low, high) == pytest.approx(expected, rel=1e-7, abs=1e-7 * spread)


def test_the_table_of_student():
    """Two seeds: t(0.975, 1) = 12.706; the interval of 0 and 2 is 1 ± 12.706."""
    assert interval([0.0, 2.0]) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-4)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)


@settings(deadline=None)
@given(seeds, st.randoms())
def test_order_of_seeds_does_not_matter_and_signs_mirror(values, random):
    low, high = interval(values)
    shuffled = list(values)
    random.shuffle(shuffled)
    assert interval(shuffled) == (low, high)
    assert interval([-v for v in values]) == (-high, -low)
    assert low <= high


@pytest.mark.parametrize("seeds_S", [2, 3, 5])
def test_covers_the_truth_as_often_as_it_says(seeds_S):
    """4000 experiments with normal noise: 95 % must cover, within 4 binomial deviations."""
    rng = np.random.default_rng(seeds_S)
    draws = rng.normal(1.5, 0.7, size=(4000, seeds_S))
    covered = [low <= 1.5 <= high for low, high in (interval(list(row)) for row in draws)]
    assert abs(np.mean(covered) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, 2.0, math.inf]])
def test_no_interval_without_two_values_or_with_a_failed_seed(values):
    assert interval(values) is None
    assert p_value(values) is None


def test_equal_values_have_no_width():
    assert interval([0.1] * 3) == (0.1, 0.1)
    assert interval([0.0, -0.0]) == (0.0, 0.0)
    assert (p_value([0.1] * 3), p_value([0.0] * 3)) == (0.0, 1.0)


def test_hostile_sizes_stay_ordered():
    low, high = interval([1e308, 1.5e308])
    assert low < high
    assert not math.isnan(low)
    low, high = interval([1e-300, 2e-300])
    assert low < 1.5e-300 < high


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -1, math.nan])
def test_a_level_outside_0_and_1_is_refused(level):
    with pytest.raises(UsageError, match="give a number between 0 and 1"):
        interval([1.0, 2.0], level)


@settings(deadline=None)
@given(seeds)
def test_p_value_agrees_with_the_interval(values):
    p = p_value(values)
    low, high = interval(values)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (low > 0 or high < 0)


@settings(deadline=None)
@given(tame.filter(lambda values: len(set(values)) > 1))
def test_p_value_equals_scipy(values):
    assume(np.std(values) > 1e-6 * max(map(abs, values)))  # else scipy warns of lost digits
    expected = stats.ttest_1samp(values, 0).pvalue
    assert p_value(values) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_discoveries_equal_scipys_benjamini_hochberg(p_values):
    adjusted = stats.false_discovery_control(p_values, method="bh")
    assert all(
        hold == (q <= 0.05) or abs(q - 0.05) < 1e-9
        for hold, q in zip(discoveries(p_values, 0.05), adjusted, strict=True)
    )


def test_discoveries_step_up():
    """The third p value alone misses its step; the fourth passes and carries it along."""
    assert discoveries([0.01, 0.02, 0.039, 0.04], 0.04) == [True] * 4
    assert discoveries([0.5, 0.001], 0.05) == [False, True]
    assert discoveries([], 0.05) == []
