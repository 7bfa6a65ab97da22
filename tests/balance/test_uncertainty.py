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


def test_constant_losses_settle_at_half_their_inverse():
    ours, leaf = balancer("a", "b")
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        weights = ours.backward({"a": leaf * 0 + 4.0, "b": leaf * 0 + 0.1})
        optimiser.step()
    assert dict(weights) == pytest.approx({"a": 1 / 8, "b": 5.0}, rel=1e-4)
