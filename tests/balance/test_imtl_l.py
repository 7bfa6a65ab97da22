"""IMTL-L: its objective, its gradient, and the scale it settles at."""

import math

import pytest
import torch

from polytask.balance import IMTLL, Balancer


def balancer(*names: str) -> tuple[Balancer, torch.nn.Parameter]:
    leaf = torch.nn.Parameter(torch.tensor(3.0))
    return Balancer(IMTLL(), [leaf], names), leaf


def test_gradients_are_those_of_the_written_objective():
    ours, leaf = balancer("a", "b", "c")
    (s_T,) = ours.parameters()
    with torch.no_grad():
        s_T.copy_(torch.tensor([0.5, -1.0, 2.0]))
    weights = ours.backward({"c": leaf**2, "a": 2 * leaf})
    found = leaf.grad.clone(), s_T.grad.clone()
    leaf.grad = s_T.grad = None
    # the paper's: sum of exp(s) L - s over the tasks present
    (s_T[0].exp() * 2 * leaf - s_T[0] + s_T[2].exp() * leaf**2 - s_T[2]).backward()
    torch.testing.assert_close(found, (leaf.grad, s_T.grad))
    assert float(found[1][1]) == 0.0
    assert dict(weights) == pytest.approx({"a": math.exp(0.5), "c": math.exp(2.0)})


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scaled_losses_come_to_one_whatever_their_unit(scale):
    ours, leaf = balancer("a", "b")
    optimiser = torch.optim.Adam(ours.parameters(), lr=0.1, betas=(0.5, 0.8))
    for _ in range(400):
        optimiser.zero_grad()
        weights = ours.backward({"a": leaf * 0 + 4.0 * scale, "b": leaf * 0 + 0.1})
        optimiser.step()
    assert weights["a"] * 4.0 * scale == pytest.approx(1.0, rel=0.05)
    assert weights["b"] * 0.1 == pytest.approx(1.0, rel=0.05)
