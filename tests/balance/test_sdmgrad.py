"""SDMGrad: its inner problem by the conditions of its minimum, and its two ends."""

import pytest
import torch

from polytask.balance import MGDA, SDMGrad
from polytask.errors import UsageError


@pytest.mark.parametrize("preference", [None, (0.5, 2.0, 0.0, 1.0)])
@pytest.mark.parametrize("pull", [0.1, 0.3, 2.0])
def test_the_inner_problem_is_at_its_minimum(rows_KP, signal, pull, preference):
    """The slope of |J'(w + pull p)|^2 is the same, and least, wherever w is above 0."""
    preference = preference and preference[: len(rows_KP)]
    given_K = rows_KP.new_tensor(preference or [1 / len(rows_KP)] * len(rows_KP))
    weights_K = SDMGrad(pull, preference)(signal(rows_KP), {}).weights_K
    inner_K = (1 + pull) * weights_K - pull * given_K
    assert float(inner_K.min()) >= -1e-12
    assert float(inner_K.sum()) == pytest.approx(1)
    slope_K = rows_KP @ (weights_K @ rows_KP)
    norms_K = rows_KP.norm(dim=1)
    allowed_K = 1e-9 * (norms_K + pull * (given_K @ rows_KP).norm()) * norms_K.max()
    above_K = slope_K - slope_K.min()
    assert bool((inner_K * above_K <= allowed_K).all())


def test_its_ends_are_mgda_and_the_preferred_direction(signal):
    rows_KP = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = signal(rows_KP)
    torch.testing.assert_close(SDMGrad(0.0)(given, {}).weights_K, MGDA()(given, {}).weights_K)
    preferred_K = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    weights_K = SDMGrad(1e6, tuple(preferred_K.tolist()))(given, {}).weights_K
    torch.testing.assert_close(weights_K, preferred_K, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pull", [-1.0, float("inf"), float("nan")])
def test_a_pull_outside_its_range_is_refused(pull):
    with pytest.raises(UsageError, match=r"SDMGrad: pull is .*; give a number >= 0"):
        SDMGrad(pull)
