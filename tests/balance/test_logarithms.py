"""Scale-invariant and GLS: gradients of their objectives, and what scaling a loss does to them."""

import math

import pytest
import torch

from polytask.balance import GLS, ScaleInvariant, Signal

LOSSES = [
    [0.3, 2.0, 7.0],
    [1e-10, 1.0, 1e15],
    [5.0],
    [0.5] * 40,
]


@pytest.mark.parametrize("losses", LOSSES, ids=["plain", "unlike", "one task", "forty tasks"])
def test_scale_invariant_descends_the_sum_of_logarithms(weigh, gradient, losses):
    expected = gradient(lambda losses_K: losses_K.log().sum(), losses)
    assert weigh(ScaleInvariant(), [losses])[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("losses", LOSSES, ids=["plain", "unlike", "one task", "forty tasks"])
def test_gls_descends_the_geometric_mean(weigh, gradient, losses):
    expected = gradient(lambda losses_K: losses_K.prod() ** (1 / len(losses_K)), losses)
    assert weigh(GLS(), [losses])[0] == pytest.approx(expected, rel=1e-10)


def test_gls_stays_finite_where_the_product_of_losses_does_not(weigh):
    tiny = [1e-30] * 40  # their product is 0 in float64
    assert math.prod(tiny) == 0
    assert weigh(GLS(), [tiny])[0] == pytest.approx([1 / 40] * 40)


@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_the_unit_of_one_loss_changes_no_weighted_loss_of_scale_invariant(weigh, scale):
    (plain,) = weigh(ScaleInvariant(), [[0.3, 2.0]])
    (scaled,) = weigh(ScaleInvariant(), [[0.3 * scale, 2.0]])
    assert scaled[0] * scale == pytest.approx(plain[0])
    assert scaled[1] == plain[1]


@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_the_unit_of_one_loss_scales_the_update_of_gls_and_does_not_turn_it(weigh, scale):
    (plain,) = weigh(GLS(), [[0.3, 2.0]])
    (scaled,) = weigh(GLS(), [[0.3 * scale, 2.0]])
    assert scaled[0] * scale / plain[0] == pytest.approx(math.sqrt(scale))
    assert scaled[1] / plain[1] == pytest.approx(math.sqrt(scale))


@pytest.mark.parametrize("method", [GLS(), ScaleInvariant()], ids=repr)
def test_an_absent_task_is_left_out_of_the_objective(weigh, method):
    both = weigh(method, [[0.3, math.nan, 2.0]])[0]
    assert [both[0], both[2]] == weigh(method, [[0.3, 2.0]])[0]


def test_float32_losses_are_weighed_as_if_they_were_float64():
    losses_K = torch.tensor([1e-30, 1e30])
    weights_K = GLS()(Signal(losses_K, torch.arange(2), 2), {}).weights_K
    assert weights_K.dtype == torch.float64
    torch.testing.assert_close(weights_K * losses_K.double(), torch.full((2,), 0.5).double())
