"""Uncertainty weighting: its objective, its gradient, and where it settles."""

import math

import pytest
import torch

from polytask.balance import Balancer, Uncertainty


def balancer(*names: str) -> tuple[Balancer, torch.nn.Parameter]:
    leaf = torch.nn.Parameter(torch.tensor(3.0))
    return Balancer(Uncertainty(), [leaf], names), leaf


def test_gradients_are_those_of_the_written_objective():
    ours, leaf = balancer("a", "b", "c")
    (s_T,) = ours.parameters()
    with torch.no_grad():
        s_T.copy_(torch.tensor([0.5, -1.0, 2.0]))
    weights = ours.backward({"c": leaf**2, "a": 2 * leaf})
    objective = math.exp(-0.5) * 6 + math.exp(-2.0) * 9 + (0.5 + 2.0) / 2
    assert objective > 0
    assert dict(weights) == pytest.approx({"a": math.exp(-0.5), "c": math.exp(-2.0)})
    assert float(leaf.grad) == pytest.approx(math.exp(-0.5) * 2 + math.exp(-2.0) * 6)
    expected_T = [0.5 - math.exp(-0.5) * 6, 0.0, 0.5 - math.exp(-2.0) * 9]
    assert s_T.grad.tolist() == pytest.approx(expected_T)


def test_it_starts_as_the_plain_sum():
    ours, leaf = balancer("a", "b")
    assert dict(ours.backward({"a": leaf * 2, "b": leaf * 3})) == {"a": 1.0, "b": 1.0}
    assert float(leaf.grad) == 5.0


def test_it_learns_as_libmtl_does_with_every_s_larger_by_log_2():
    """LibMTL weighs by exp(-s) / 2, which is ours at s + log 2; the penalty is the same."""
    ours, leaf = balancer("a", "b", "c")
    (s_T,) = ours.parameters()
    theirs_T = torch.full((3,), -math.log(2), dtype=torch.float64, requires_grad=True)
    adams = torch.optim.Adam([s_T], lr=0.05), torch.optim.Adam([theirs_T], lr=0.05)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        losses_T = torch.randn(3, generator=draw).exp() * torch.tensor([1e-3, 1.0, 1e3])
        weights = ours.backward(list(leaf * 0 + losses_T))
        expected_T = theirs_T.detach().neg().exp() / 2
        assert list(weights.values()) == pytest.approx(expected_T.tolist(), rel=1e-4)
        (losses_T / (2 * theirs_T.exp()) + theirs_T / 2).sum().backward()
        for adam in adams:
            adam.step()
            adam.zero_grad()


def test_constant_losses_settle_at_half_their_inverse():
    ours, leaf = balancer("a", "b")
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        weights = ours.backward({"a": leaf * 0 + 4.0, "b": leaf * 0 + 0.1})
        optimiser.step()
    assert dict(weights) == pytest.approx({"a": 1 / 8, "b": 5.0}, rel=1e-4)
