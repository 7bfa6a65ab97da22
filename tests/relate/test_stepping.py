"""A step on copies is the optimiser's own, and leaves the optimiser and its parameters alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from polytask.relate.stepping import Stepping

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.01),
    "maximize": lambda p: torch.optim.Adam(p, lr=0.1, maximize=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}]),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def parameters(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (5,), (2, 3, 4))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def gradients(like: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in like]


def kept(optimizer: torch.optim.Optimizer, of: list[Tensor]) -> list[Tensor]:
    """Return copies of all that the optimiser may change."""
    states = [v for p in of for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    return [value.detach().clone() for value in (*of, *states)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_optimisers_own_at_any_time_and_changes_nothing(name, dtype):
    mine = parameters(dtype)
    optimizer = OPTIMIZERS[name](mine)
    stepping = Stepping(optimizer, mine)
    for seed in range(4):
        # What a true step would do, on copies of everything.
        others, true = copy.deepcopy((mine, optimizer))
        grads = gradients(mine, 100 + seed)
        for parameter, grad in zip(others, grads, strict=True):
            parameter.grad = grad.clone()
        true.step()
        before = kept(optimizer, mine)
        for found, wanted in zip(stepping.on(grads), others, strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=1e-7)
        idle = [one.clone() for one in stepping.on_nothing()]
        assert all(map(torch.equal, before, kept(optimizer, mine)))
        assert all(p.grad is None for p in mine)
        for parameter in others:
            parameter.grad = None
        others, true = copy.deepcopy((mine, optimizer))
        for parameter in others:
            parameter.grad = torch.zeros_like(parameter)
        true.step()
        for found, wanted in zip(idle, others, strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=1e-7)
        for parameter, grad in zip(mine, gradients(mine, seed), strict=True):
            parameter.grad = grad
        optimizer.step()
        optimizer.zero_grad()


def test_a_parameter_without_a_gradient_stays_and_others_take_no_part():
    mine = parameters(torch.float32)
    optimizer = torch.optim.SGD(mine, lr=1.0, weight_decay=0.5)
    stepping = Stepping(optimizer, mine[:2])
    first, second = stepping.on([torch.ones(3, 4), None])
    torch.testing.assert_close(first, mine[0].detach() * 0.5 - 1)
    assert torch.equal(second, mine[1])


def test_a_learning_rate_that_changes_is_that_of_the_moment():
    mine = parameters(torch.float32)
    optimizer = torch.optim.SGD(mine, lr=1.0)
    stepping, grads = Stepping(optimizer, mine), gradients(mine, 1)
    stepping.on(grads)
    optimizer.param_groups[0]["lr"] = 0.25
    for found, parameter, grad in zip(stepping.on(grads), mine, grads, strict=True):
        torch.testing.assert_close(found, parameter.detach() - 0.25 * grad)


def test_a_state_that_takes_another_form_is_taken_over():
    """As where a checkpoint is loaded between two looks."""
    mine = parameters(torch.float32)
    optimizer = torch.optim.Adam(mine, lr=0.1)
    stepping, grads = Stepping(optimizer, mine), gradients(mine, 2)
    stepping.on(grads)
    assert not optimizer.state
    for parameter, grad in zip(mine, grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = kept(optimizer, mine)
    stepping.on(grads)
    assert all(map(torch.equal, before, kept(optimizer, mine)))


def test_parameters_that_became_others_are_those_of_the_moment():
    """As where a model goes to another device or type after the watch was made."""
    mine = parameters(torch.float32)
    optimizer = torch.optim.Adam(mine, lr=0.1)
    stepping = Stepping(optimizer, mine)
    stepping.on(gradients(mine, 3))
    for parameter in mine:
        parameter.data = parameter.data.double()
    found = stepping.on(gradients(mine, 3))
    assert {value.dtype for value in found} == {torch.float64}
