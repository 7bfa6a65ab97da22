"""Nash-MTL and FairGrad: their equations, their limits, and where they have no solution."""

import pytest
import torch

from polytask.balance import MGDA, FairGrad, NashMTL
from polytask.errors import UsageError


def problem(tasks: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale_K1 = torch.exp(2 * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
    return torch.randn(tasks, tasks + 4, generator=generator, dtype=torch.float64) * scale_K1


@pytest.mark.parametrize("tasks", [1, 2, 5, 40])
def test_nash_shares_equally_in_relative_terms(signal, tasks):
    rows_KP = problem(tasks)
    weights_K = NashMTL(max_norm=0)(signal(rows_KP), {}).weights_K
    update_P = weights_K @ rows_KP
    torch.testing.assert_close(weights_K * (rows_KP @ update_P), torch.ones_like(weights_K))
    assert float(update_P.norm()) == pytest.approx(tasks**0.5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_solves_its_equation(signal, alpha):
    rows_KP = problem()
    weights_K = FairGrad(alpha)(signal(rows_KP), {}).weights_K
    improvement_K = rows_KP @ (weights_K @ rows_KP)
    torch.testing.assert_close(improvement_K, weights_K ** (-1 / alpha), rtol=1e-8, atol=0)


def test_two_tasks_by_hand(signal):
    # Orthogonal gradients of lengths 2 and 3: 4 w1 = 1 / w1, 9 w2 = 1 / w2.
    rows_KP = torch.diag(torch.tensor([2.0, 3], dtype=torch.float64))
    for method in (NashMTL(max_norm=0), FairGrad(1.0)):
        assert method(signal(rows_KP), {}).weights_K.tolist() == pytest.approx([1 / 2, 1 / 3])
    # alpha = 2: 4 w1 = w1 ** -0.5
    fair_K = FairGrad(2.0)(signal(rows_KP), {}).weights_K
    assert fair_K.tolist() == pytest.approx([4 ** (-2 / 3), 9 ** (-2 / 3)])


def test_alpha_goes_from_the_sum_to_the_fairest(signal):
    rows_KP = problem()
    assert FairGrad(0.0)(signal(rows_KP), {}).weights_K.tolist() == [1.0] * 5
    fairest_P = MGDA()(signal(rows_KP), {}).weights_K @ rows_KP
    cosines = []
    for alpha in (1.0, 5.0, 20.0):
        update_P = FairGrad(alpha)(signal(rows_KP), {}).weights_K @ rows_KP
        cosines.append(float(torch.cosine_similarity(update_P, fairest_P, dim=0)))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99


def test_nash_keeps_the_update_within_its_bound(rows_KP, signal):
    for bound in (1.0, 0.1):
        update_P = NashMTL(bound)(signal(rows_KP), {}).weights_K @ rows_KP
        assert float(update_P.norm()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("method", [NashMTL(), FairGrad(), FairGrad(2.0)], ids=repr)
def test_gradients_that_cancel_make_no_update(signal, method):
    rows_KP = torch.tensor([[1.0, 2], [-3, -6]], dtype=torch.float64)
    update = method(signal(rows_KP), {})
    assert float((update.weights_K @ rows_KP).norm()) < 1e-3
    assert float(update.weights_K.min()) > 0


@pytest.mark.parametrize("method", [NashMTL(0), FairGrad(), FairGrad(2.0)], ids=repr)
def test_a_task_without_gradient_leaves_the_others_alone(signal, method):
    rows_KP = problem(3)
    with_zero_KP = torch.cat([rows_KP, torch.zeros_like(rows_KP[:1])])
    weights_K = method(signal(with_zero_KP), {}).weights_K
    torch.testing.assert_close(weights_K[:3], method(signal(rows_KP), {}).weights_K)
    assert float(weights_K[3]) == 0.0


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="alpha is -1; give a number from 0 to 20"):
        FairGrad(-1)
    with pytest.raises(UsageError, match="max_norm is -1; give a number >= 0"):
        NashMTL(-1)
