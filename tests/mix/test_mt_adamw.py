"""MTAdamW against closed forms and torch's AdamW, and after a resume."""

import math

import pytest
import torch
from torch import nn

from polytask.errors import RunError, UsageError
from polytask.mix import MTAdamW


def stepped(optimiser, p, grads, tasks=None):
    """Step through gradients, one task's each."""
    for i, grad in enumerate(grads):
        p.grad = grad.clone()
        if tasks is not None:
            optimiser.at(tasks[i])
        optimiser.step()
    return p.detach().clone()


def test_one_task_of_unit_gradients_is_torchs_adamw():
    draw = torch.Generator().manual_seed(0)
    grads = [torch.randn(5, dtype=torch.float64, generator=draw) for _ in range(30)]
    grads = [grad / grad.norm() for grad in grads]
    start = torch.randn(5, dtype=torch.float64, generator=draw)
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = MTAdamW([one], {"a": 0.3}, **settings)
    theirs = torch.optim.AdamW([other], **settings)
    found = stepped(ours, one, grads, ["a"] * 30)
    torch.testing.assert_close(found, stepped(theirs, other, grads), rtol=1e-13, atol=1e-15)


def test_a_gradients_size_is_of_no_account_and_its_weight_is():
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(4, dtype=torch.float64, generator=draw) for _ in range(6)]
    tasks = ["a", "b"] * 3

    def run(scale: float, weights=None):
        p = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimiser = MTAdamW([p], {"a": 0.5, "b": 0.5}, weights=weights)
        sized = [g * (scale if t == "b" else 1) for g, t in zip(grads, tasks, strict=True)]
        return stepped(optimiser, p, sized, tasks)

    torch.testing.assert_close(run(1e6), run(1.0), rtol=1e-12, atol=0)
    assert not torch.allclose(run(1.0, {"a": 1.0, "b": 5.0}), run(1.0), rtol=1e-9)


def test_moments_are_those_of_the_definition_by_hand():
    """Two tasks of shares 3/4 and 1/4, steps a, b, a; the norm is over both parameters."""
    p, head = nn.Parameter(torch.tensor([1.0, -2.0]).double()), nn.Parameter(torch.ones(1).double())
    optimiser = MTAdamW(
        [p, head], {"a": 0.75, "b": 0.25}, lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.0
    )
    m, v, value = torch.zeros(2).double(), torch.zeros(2).double(), p.detach().clone()
    shares = iter([0.75 / 0.75, 0.25 / 1.0, 0.75 / 1.0])  # of those that reached it so far
    for t, (task, grad, own) in enumerate(
        [("a", [3.0, 4.0], None), ("b", [0.0, 2.0], 1.0), ("a", [1.0, -1.0], None)], 1
    ):
        p.grad = torch.tensor(grad).double()
        head.grad = None if own is None else torch.tensor([own]).double()
        norm = math.sqrt(sum(x * x for x in grad) + (own or 0) ** 2)
        share, g = next(shares), p.grad / norm
        m = 0.5 * m + 0.5 * g / share
        v = 0.75 * v + 0.25 * g**2 / share
        value = value - 0.1 * (m / (1 - 0.5**t)) / (v / (1 - 0.75**t)).sqrt()
        optimiser.at(task)
        optimiser.step()
        torch.testing.assert_close(p.detach(), value, rtol=1e-14, atol=0)
    # the head is b's alone: its own share is 1, and two steps without a gradient left it be
    assert optimiser.state[head]["step"] == 1
    assert float(head.detach()) == pytest.approx(1 - 0.1)


def test_the_moments_tend_to_those_of_the_sum_whatever_the_shares():
    """First moment: the sum over tasks of unit gradients, however rarely a task comes."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimiser = MTAdamW(
        [p], {"often": 9, "rare": 1}, lr=0.0, betas=(0.995, 0.995), weight_decay=0.0
    )
    grads = {"often": torch.tensor([300.0, 0.0]), "rare": torch.tensor([0.0, 0.02])}
    tasks = (["often"] * 5 + ["rare"] + ["often"] * 4) * 60
    stepped(optimiser, p, [grads[task].double() for task in tasks], tasks)
    mean = optimiser.state[p]["exp_avg"] / (1 - 0.995 ** len(tasks))
    torch.testing.assert_close(mean, torch.ones(2).double(), rtol=0.05, atol=0)


def test_a_gradient_of_0_throughout_and_none_at_all_are_no_step():
    p = nn.Parameter(torch.ones(2))
    optimiser = MTAdamW([p], {"a": 1.0}, weight_decay=0.0)
    assert stepped(optimiser, p, [torch.zeros(2)], ["a"]).tolist() == [1, 1]
    p.grad = None
    optimiser.at("a")
    optimiser.step()
    assert optimiser.state[p]["step"] == 1


def test_it_resumes_bit_for_bit_and_takes_a_closure():
    draw = torch.Generator().manual_seed(0)
    grads = [torch.randn(3, generator=draw) for _ in range(9)]
    tasks = ["a", "b", "b"] * 3

    def fresh():
        p = nn.Parameter(torch.ones(3))
        return p, MTAdamW([p], {"a": 0.4, "b": 0.6})

    p, optimiser = fresh()
    whole = stepped(optimiser, p, grads, tasks)
    first, one = fresh()
    stepped(one, first, grads[:4], tasks[:4])
    second, other = fresh()
    with torch.no_grad():
        second.copy_(first)
    other.load_state_dict(one.state_dict())
    assert torch.equal(stepped(other, second, grads[4:], tasks[4:]), whole)

    def closure() -> float:
        second.grad = grads[0].clone()
        assert torch.is_grad_enabled()
        return 7.0

    other.at("a")
    assert other.step(closure) == 7.0


def test_wrong_use_is_refused():
    p = nn.Parameter(torch.ones(2))
    for settings, text in (
        ({"shares": {}}, "give each task its share of the steps, > 0"),
        ({"shares": {"a": 0.0}}, "share of the steps, > 0"),
        ({"shares": {"a": 1.0}, "weights": {"b": 1.0}}, "for tasks a; give each a number >= 0"),
        ({"shares": {"a": 1.0}, "lr": -1.0}, "lr -1.0"),
        ({"shares": {"a": 1.0}, "betas": (0.9, 1.0)}, "betas below 1"),
    ):
        with pytest.raises(UsageError, match=text):
            MTAdamW([p], **settings)
    optimiser = MTAdamW([p], {"depth": 1.0})
    with pytest.raises(RunError, match=r"call at\(task\) before step\(\)"):
        optimiser.step()
    with pytest.raises(UsageError, match=r"Unknown task of MTAdamW 'dpth'. Did you mean 'depth'"):
        optimiser.at("dpth")
    stepped(optimiser, p, [torch.ones(2)], ["depth"])
    other = MTAdamW([p], {"depth": 1.0, "edges": 1.0})
    other.load_state_dict(optimiser.state_dict())
    p.grad = torch.ones(2)
    other.at("depth")
    with pytest.raises(RunError, match="its state is of 1 tasks, it has 2"):
        other.step()
