"""GradNorm: its objective's gradient by autograd, and the norms it leads to."""

import math

import pytest
import torch

from polytask.balance import Balancer, GradNorm, Signal
from polytask.errors import UsageError


def one_step(rows_KP, losses_K, logits_K, alpha=1.5, first_K=None, at=None, tasks=None):
    """Return the update and its penalty's gradient in the logits."""
    method = GradNorm(alpha)
    tasks = tasks or len(rows_KP)
    index_K = torch.arange(len(rows_KP)) if at is None else torch.tensor(at)
    state = method.start(tasks)
    with torch.no_grad():
        method.logits_T.index_copy_(0, index_K, logits_K.float())
    if first_K is not None:
        state = {"first_T": state["first_T"].index_copy(0, index_K, first_K)}
    update = method(Signal(losses_K, index_K, tasks, gram_KK=rows_KP @ rows_KP.T), state)
    update.penalty.backward()
    return update, method.logits_T.grad


def test_the_penalty_is_the_papers_objective_over_the_mean_norm(rows_KP):
    tasks = len(rows_KP)
    draw = torch.Generator().manual_seed(1)
    losses_K, first_K = torch.rand(2, tasks, generator=draw, dtype=torch.float64) + 0.1
    logits_K = torch.randn(tasks, generator=draw)
    update, gradient_K = one_step(rows_KP, losses_K, logits_K, 1.5, first_K)

    logits_K = logits_K.double().requires_grad_()
    weights_K = tasks * torch.softmax(logits_K, 0)
    norms_K = (weights_K[:, None] * rows_KP).norm(dim=1)
    mean = norms_K.mean().detach()
    rate_K = losses_K / first_K / (losses_K / first_K).mean()
    apart = (norms_K - mean * rate_K**1.5).abs().sum()
    torch.testing.assert_close(update.weights_K, weights_K.detach())
    if mean == 0:
        assert float(update.penalty.detach()) == 0.0
        assert not gradient_K.any()
        return
    torch.testing.assert_close(update.penalty, apart / mean, rtol=1e-7, atol=0)
    (expected_K,) = torch.autograd.grad(apart / mean, logits_K)
    torch.testing.assert_close(gradient_K.double(), expected_K, rtol=1e-5, atol=1e-6)


def settled(alpha: float, falls: tuple[float, float]) -> float:
    """Return the ratio of the weighted norms after long training on losses that fall like this."""
    leaf = torch.ones(2, dtype=torch.float64, requires_grad=True)
    balancer = Balancer(GradNorm(alpha), [leaf], ["a", "b"])
    optimiser = torch.optim.Adam(balancer.parameters(), lr=0.02)
    for step in range(600):
        optimiser.zero_grad()
        fell = falls if step else (1.0, 1.0)
        sizes = 100.0, 2.0  # norms of the two gradients, across each other
        losses = {
            name: (leaf[i] - 1) * size + fall
            for i, (name, size, fall) in enumerate(zip("ab", sizes, fell, strict=True))
        }
        weights = balancer.backward(losses)
        optimiser.step()
    return weights["a"] * 100 / (weights["b"] * 2)


def test_alpha_0_leads_to_equal_norms():
    assert settled(0.0, (0.1, 0.9)) == pytest.approx(1.0, rel=0.1)


def test_the_slower_task_gets_the_larger_norm():
    assert settled(1.0, (0.6, 0.9)) == pytest.approx(0.6 / 0.9, rel=0.1)


def test_units_of_losses_change_no_gradient_of_the_weights():
    draw = torch.Generator().manual_seed(1)
    rows_KP = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    losses_K = torch.rand(3, generator=draw, dtype=torch.float64) + 0.1
    _, plain_K = one_step(rows_KP, losses_K, torch.zeros(3))
    for scale in (1e-10, 1e15):
        _, scaled_K = one_step(rows_KP * scale, losses_K * scale, torch.zeros(3))
        torch.testing.assert_close(scaled_K, plain_K)


def test_absent_tasks_are_left_out_of_the_problem():
    draw = torch.Generator().manual_seed(1)
    rows_KP = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    losses_K, logits_K = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.3, -0.2])
    alone, gradient_K = one_step(rows_KP, losses_K, logits_K)
    among, gradient_T = one_step(rows_KP, losses_K, logits_K, at=(0, 2), tasks=3)
    assert torch.equal(alone.weights_K, among.weights_K)
    assert gradient_T.tolist() == [float(gradient_K[0]), 0.0, float(gradient_K[1])]
    assert among.state["first_T"].tolist() == pytest.approx([0.5, math.nan, 2.0], nan_ok=True)


def test_first_losses_are_kept():
    method = GradNorm()
    state = method.start(2)
    for losses in ([3.0, 4.0], [1.0, 2.0]):
        signal = Signal(torch.tensor(losses), torch.arange(2), 2, gram_KK=torch.eye(2).double())
        state = method(signal, state).state
    assert state["first_T"].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_a_negative_alpha_is_refused(alpha):
    with pytest.raises(UsageError, match=r"alpha is .*; give a value >= 0"):
        GradNorm(alpha)
