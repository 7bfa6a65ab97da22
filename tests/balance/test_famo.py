"""FAMO: step by step what its authors' code does, and nothing for tasks that are absent."""

import math
from itertools import pairwise

import pytest
import torch

from polytask.balance import FAMO, Balancer
from polytask.errors import RunError, UsageError

NAMES = ("a", "b", "c")


class Authors:
    """The authors' class, written down anew: logits under Adam, their gradient by autograd."""

    def __init__(self, tasks: int, lr: float, gamma: float) -> None:
        self.logits_T = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.logits_T], lr=lr, weight_decay=gamma)

    def weights(self, losses_T: torch.Tensor) -> torch.Tensor:
        losses_T = losses_T.clone().requires_grad_()
        shares_T = torch.softmax(self.logits_T.detach(), -1)
        scale = (shares_T / losses_T).sum().detach()
        objective = (losses_T.log() * shares_T / scale).sum()
        return torch.autograd.grad(objective, losses_T)[0]

    def update(self, before_T: torch.Tensor, after_T: torch.Tensor) -> None:
        fall_T = before_T.log() - after_T.log()
        shares_T = torch.softmax(self.logits_T, -1)
        (self.logits_T.grad,) = torch.autograd.grad(shares_T, self.logits_T, fall_T)
        self.adam.step()


def losses(steps: int, tasks: int = 3) -> torch.Tensor:
    """Return (steps, before and after, tasks) losses > 0 of very unlike sizes."""
    draw = torch.Generator().manual_seed(0)
    units_T = torch.logspace(-6, 6, tasks, dtype=torch.float64)
    return torch.randn(steps, 2, tasks, generator=draw, dtype=torch.float64).exp() * units_T


def run(method: FAMO, steps: torch.Tensor, names=NAMES, present=NAMES) -> list[dict[str, float]]:
    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
    balancer, used = Balancer(method, [leaf], names), []
    for before, after in steps:
        there = dict(zip(present, before, strict=True))
        used.append(dict(balancer.backward({name: leaf * x for name, x in there.items()})))
        balancer.observe(dict(zip(present, after, strict=True)))
    return used


@pytest.mark.parametrize(("lr", "gamma"), [(0.025, 1e-3), (0.5, 0.0), (0.1, 0.3)])
def test_weights_are_those_of_the_authors_code(lr, gamma):
    steps = losses(40)
    authors = Authors(3, lr, gamma)
    for (before_T, after_T), used in zip(steps, run(FAMO(lr, gamma), steps), strict=True):
        expected_T = authors.weights(before_T)
        torch.testing.assert_close(
            torch.tensor(list(used.values()), dtype=torch.float64), expected_T, rtol=1e-9, atol=0
        )
        assert sum(used.values()) == pytest.approx(1.0)
        authors.update(before_T, after_T)


def test_absent_tasks_are_left_out_of_the_problem():
    steps = losses(20, tasks=2)
    three = run(FAMO(), steps, NAMES, ("a", "c"))
    assert three == run(FAMO(), steps, ("a", "c"), ("a", "c"))


def test_the_task_whose_loss_falls_most_loses_weight():
    steps = torch.tensor([[[1.0, 1.0], [0.5, 0.9]]] * 30, dtype=torch.float64)
    used = run(FAMO(), steps, ("fast", "slow"), ("fast", "slow"))
    assert used[0] == {"fast": 0.5, "slow": 0.5}
    assert all(later["fast"] < now["fast"] for now, later in pairwise(used))


def test_units_of_losses_change_nothing():
    steps = losses(20)
    unit_T = torch.tensor([1e-10, 1.0, 1e15], dtype=torch.float64)
    for one, other in zip(run(FAMO(), steps), run(FAMO(), steps * unit_T), strict=True):
        weighted = [other[n] * float(unit) for n, unit in zip(NAMES, unit_T, strict=True)]
        ratio = [w / one[n] for w, n in zip(weighted, NAMES, strict=True)]
        assert ratio == pytest.approx([ratio[0]] * 3, rel=1e-9)  # the direction is the same


def test_a_task_that_was_absent_before_cannot_be_looked_at():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(FAMO(), [leaf], ["a", "b"])
    balancer.backward({"a": leaf * 1})
    with pytest.raises(RunError, match="task 'b' was absent from the update that is looked at"):
        balancer.observe({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: FAMO(lr=0.0), "lr is 0.0; give a value > 0"),
        (lambda: FAMO(lr=math.inf), "lr is inf; give a value > 0"),
        (lambda: FAMO(gamma=-1.0), "gamma is -1.0; give a value >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, text):
    with pytest.raises(UsageError, match=text):
        build()
