"""The jackknife's error, where it has a closed form, and on what has no value."""

import math

import numpy as np
import pytest

from polytask.evaluate import paired_error

NAN = math.nan


def without(values_N: np.ndarray, parts: int, metric=np.mean) -> list[float]:
    part_N = np.arange(len(values_N)) % parts
    return [float(metric(values_N[part_N != part])) for part in range(parts)]


@pytest.mark.parametrize("count", [20, 200])
def test_of_a_mean_it_is_the_standard_error(count: int) -> None:
    random = np.random.RandomState(0)
    one_N, other_N = random.randn(2, count)
    # Leaving out each row alone, the jackknife of a mean is exactly s / sqrt(n).
    found = paired_error(without(one_N, count), without(other_N, count))
    assert found == pytest.approx((one_N - other_N).std(ddof=1) / math.sqrt(count))


def test_of_a_ratio_it_is_about_how_far_samples_scatter() -> None:
    random = np.random.RandomState(1)

    def rmse(values_N: np.ndarray) -> float:
        return float(np.sqrt(np.mean(values_N**2)))

    drawn, told = [], []
    for _ in range(300):
        noise_N = random.randn(400)
        one_N, other_N = noise_N + 0.3 * random.randn(400), noise_N
        drawn.append(rmse(one_N) - rmse(other_N))
        told.append(paired_error(without(one_N, 20, rmse), without(other_N, 20, rmse)))
    assert np.mean(told) == pytest.approx(np.std(drawn), rel=0.15)


def test_what_both_share_takes_itself_out() -> None:
    assert paired_error([1.0, 2.0, 5.0], [0.5, 1.5, 4.5]) == 0.0


def test_parts_without_a_value_are_passed_over() -> None:
    some = paired_error([1.0, NAN, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0])
    assert some == paired_error([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert math.isnan(paired_error([1.0, NAN], [0.0, 0.0]))
    assert math.isnan(paired_error([], []))
    with pytest.raises(ValueError, match="shorter"):
        paired_error([1.0, 2.0], [1.0])
