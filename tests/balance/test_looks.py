"""A small model's graph is read now and then where its tasks share all rows, else always."""

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, PCGrad
from polytask.balance.looks import SMALL, Looks

TASKS = ("a", "b", "c", "d")


def losses(model, step, own_rows):
    torch.manual_seed(step)
    outputs_BT = model(torch.randn(12, 5)).square()
    if own_rows:
        return {name: outputs_BT[t::4, t].mean() for t, name in enumerate(TASKS)}
    return dict(zip(TASKS, outputs_BT.mean(0), strict=True))


def fresh(gramian="auto"):
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 4)
    balancer = Balancer(PCGrad(), encoder.parameters(), TASKS, gramian=gramian)
    return nn.Sequential(encoder, head), balancer


def run(model, balancer, steps, own_rows=False):
    """Return how each step was computed, and the gradients it left."""
    said, grads = [], []
    for step in steps:
        model.zero_grad()
        balancer.backward(losses(model, step, own_rows))
        said.append("per layer" in balancer.engine)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return said, grads


def test_a_small_model_whose_tasks_share_rows_is_looked_at_ever_more_seldom():
    said, grads = run(*fresh(), range(17))
    assert [n + 1 for n, looked in enumerate(said) if looked] == [1, 2, 4, 8, 16]
    _, by_rows = run(*fresh("rows"), range(17))
    for ours, theirs in zip(grads, by_rows, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_small_model_whose_rows_have_one_task_each_is_looked_at_every_time():
    said, _ = run(*fresh(), range(9), own_rows=True)
    assert all(said)


def test_tasks_that_stop_sharing_rows_are_seen_at_the_next_look():
    model, balancer = fresh()
    run(model, balancer, range(5))
    said, _ = run(model, balancer, range(5, 10), own_rows=True)
    assert said == [False, False, True, True, True]  # the 8th step looks, and then all do


def test_a_large_model_is_looked_at_every_time():
    looks = Looks()
    for _ in range(9):
        assert looks.due(4, SMALL // 4)
        looks.found(4, dense=True)


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_a_resumed_run_looks_when_one_never_stopped_does(stop):
    model, balancer = fresh()
    run(model, balancer, range(stop))
    other, resumed = fresh()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(balancer.state_dict())
    said, grads = run(model, balancer, range(stop, 17))
    again, same = run(other, resumed, range(stop, 17))
    assert said == again
    assert all(torch.equal(x, y) for x, y in zip(grads, same, strict=True))
