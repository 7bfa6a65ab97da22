"""Against the truth: bias, calibration and excess loss in cases that have a closed form."""

import math

import pytest
import torch

from polytask.errors import UsageError
from polytask.evaluate import against_truth


def draw(number: int = 4000) -> torch.Tensor:
    return torch.rand(number, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kl(q: float, p: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def test_the_truth_itself_has_nothing_against_it():
    q = draw()
    found = against_truth(q, q)
    assert (found.bias, found.error, found.calibration) == (0, 0, 0)
    assert found.excess == pytest.approx(0, abs=1e-15)
    assert (found.ratio, found.rows) == (1, 4000)


def test_promising_a_tenth_too_much_everywhere():
    q = draw() * 0.9
    found = against_truth(q + 0.1, q)
    for value in (found.bias, found.error, found.calibration):
        assert value == pytest.approx(0.1)
    assert found.ratio == pytest.approx(float(q.mean() + 0.1) / float(q.mean()))
    expected = sum(kl(float(v), float(v) + 0.1) for v in q if v > 0) / len(q)
    assert found.excess == pytest.approx(expected)


def test_a_constant_that_is_right_on_average_is_calibrated_and_wrong():
    """For uniform q the mean of |q - 1/2| is 1/4, and the excess is log 2 - 1/2 nats."""
    q = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    found = against_truth(torch.full_like(q, 0.5), q)
    assert found.bias == pytest.approx(0)
    assert found.calibration == pytest.approx(0)
    assert found.error == pytest.approx(0.25)
    # mean entropy of a uniform q is 1/2 nat, that of 1/2 is log 2
    assert found.excess == pytest.approx(math.log(2) - 0.5, abs=1e-6)


def test_errors_that_cancel_over_all_rows_show_in_their_bins():
    """Half the rows 0.1 too high, half 0.1 too low, told apart by what is predicted."""
    q = torch.tensor([0.2, 0.8], dtype=torch.float64).repeat(50)
    p = torch.tensor([0.3, 0.7], dtype=torch.float64).repeat(50)
    found = against_truth(p, q, bins=2)
    assert found.bias == pytest.approx(0)
    assert found.calibration == pytest.approx(0.1)
    assert against_truth(p, q, bins=1).calibration == pytest.approx(0)
    assert found.excess == pytest.approx((kl(0.2, 0.3) + kl(0.8, 0.7)) / 2)


def test_what_cancels_among_rows_of_one_prediction_is_no_miscalibration():
    """The same prediction for q = 0.1 and q = 0.5, in an order that would part them by position."""
    q = torch.tensor([0.1] * 30 + [0.5] * 30, dtype=torch.float64)
    p = torch.full((60,), 0.3, dtype=torch.float64)
    found = against_truth(p, q, bins=7)
    assert found.calibration == pytest.approx(0)
    assert found.error == pytest.approx(0.2)


def test_bins_hold_as_many_rows_each():
    """10 rows in 5 bins, alternately off by +0.1, -0.1: pairs cancel, unequal bins would not."""
    p = torch.linspace(0.2, 0.8, 10, dtype=torch.float64)
    q = p + 0.1 * torch.tensor([1.0, -1.0] * 5).double()
    shuffled = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert against_truth(p[shuffled], q[shuffled], bins=5).calibration == pytest.approx(
        0, abs=1e-15
    )
    assert against_truth(p, q, bins=10).calibration == pytest.approx(0.1)


def test_certainty_about_what_can_happen_is_infinitely_bad_and_about_what_must_is_not():
    assert against_truth(torch.zeros(2), torch.tensor([0.0, 0.1])).excess == math.inf
    sure = against_truth(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert (sure.excess, sure.error) == (0, 0)
    assert against_truth(torch.ones(3) / 2, torch.zeros(3)).ratio == math.inf


@pytest.mark.parametrize(
    ("predicted", "true", "told"),
    [
        (torch.zeros(3), torch.zeros(2), r"shapes \(3,\) and \(2,\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "two vectors"),
        (torch.zeros(0), torch.zeros(0), "two vectors"),
        (
            torch.tensor([3.0]),
            torch.zeros(1),
            "predicted probabilities must lie in 0 to 1.*sigmoid",
        ),
        (torch.zeros(1), torch.tensor([-0.5]), "true probabilities must lie"),
        (torch.tensor([math.nan]), torch.zeros(1), "predicted probabilities"),
    ],
)
def test_what_is_no_probability_is_refused(predicted, true, told):
    with pytest.raises(UsageError, match=told):
        against_truth(predicted, true)
    with pytest.raises(UsageError, match="bins 0"):
        against_truth(torch.zeros(1), torch.zeros(1), bins=0)
