"""aTLAS and Self Positioning: the first step by hand, the optimum of a convex problem."""

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.atlas import ATLAS
from polytask.merge.family import Family
from polytask.merge.self_positioning import SelfPositioning
from polytask.tasks import Regression, Task, TaskSet

from .families import TASKS, inputs, mlp, targets

ONE = TaskSet([Task("x", Regression()), Task("y", Regression())])


class Sum(nn.Module):
    """x -> x @ weight: a convex problem in the coefficients."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.reshape(-1, 1))
        self.head = nn.Identity()

    def forward(self, x):
        return self.head(x @ self.weight)


def problem():
    """Task vectors e1 and e2; x wants 2 e1 + e2, y the same: the optimum is known."""
    one, two = torch.eye(2, dtype=torch.float64)
    family = Family(Sum(0 * one), {"x": Sum(one), "y": Sum(two)}, ONE)
    rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = rows @ torch.tensor([2.0, 1.0], dtype=torch.float64)
    return family, {"x": (rows, label), "y": (rows, label)}


def test_self_positioning_finds_the_optimum_of_a_convex_problem():
    family, data = problem()
    merged = SelfPositioning(probe=64, rounds=300, learning_rate=0.1)(family, data)
    expected = torch.tensor([2.0, 1.0])
    torch.testing.assert_close(merged.learned["coefficients"], expected, rtol=1e-4, atol=1e-4)


def test_self_positioning_starts_at_the_average_and_steps_against_the_gradient():
    family, data = problem()
    merged = SelfPositioning(probe=64, rounds=1, batch_size=64, learning_rate=0.01)(family, data)
    rows, label = data["x"]
    lam = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    (2 * (rows @ lam - label).square().mean()).backward()
    expected = (lam.detach() - 0.01 * lam.grad).float()
    torch.testing.assert_close(merged.learned["coefficients"], expected, rtol=1e-5, atol=1e-6)


def test_the_probe_is_balanced_and_the_rest_is_never_seen():
    family, data = problem()
    rows, label = data["x"]
    poisoned = {"x": (rows, label), "y": (rows, label.clone())}
    clean = SelfPositioning(probe=16, rounds=5)(family, data)
    from polytask.merge.batches import Draw

    outside = torch.ones(64, dtype=torch.bool)
    outside[Draw(16, 0).rows(0, 1, 64)] = False
    poisoned["y"][1][outside] = 1e6
    again = SelfPositioning(probe=16, rounds=5)(family, poisoned)
    assert torch.equal(clean.learned["coefficients"], again.learned["coefficients"])


def test_atlas_starts_at_the_base_and_comes_to_the_optimum():
    family, data = problem()
    # One part of two entries: x's vector moves the first alone, y's the second.
    first = ATLAS(epochs=1, batch_size=128, decay=0.0)(family, data)
    label = data["x"][1]
    assert first.losses[0] == pytest.approx(2 * float(label.square().mean()))
    merged = ATLAS(epochs=400, batch_size=64, learning_rate=0.02, decay=0.0)(family, data)
    torch.testing.assert_close(
        merged.learned["coefficients"], torch.tensor([[2.0, 1.0]]), rtol=0.02, atol=0.02
    )


def test_atlas_in_parts_gives_every_part_its_own_coefficient():
    family, data = mlp(), inputs("mlp")
    truth = targets()
    labelled = {t: (x, truth[t]) for t, x in data.items()}
    merged = ATLAS(parts=3, epochs=4, learning_rate=0.1, seed=1)(family, labelled)
    lam = merged.learned["coefficients"]
    assert lam.shape == (len(family.names), len(TASKS), 3)
    # Entries of one tensor moved by no more than three different coefficients per task.
    name, base = next(iter(family.base.items()))
    shift = merged.shared[name] - base
    assert shift.abs().max() > 0
    whole = ATLAS(epochs=4, learning_rate=0.1)(family, labelled)
    assert whole.losses[0] == pytest.approx(merged.losses[0])
    assert merged.losses[-1] < merged.losses[0]


def test_the_penalty_keeps_coefficients_small():
    family, data = problem()
    free = ATLAS(epochs=60, batch_size=64, learning_rate=0.05)(family, data)
    held = ATLAS(epochs=60, batch_size=64, learning_rate=0.05, penalty=5.0, power=2)(family, data)
    assert held.learned["coefficients"].norm() < 0.7 * free.learned["coefficients"].norm()
    with pytest.raises(UsageError, match="power 3"):
        ATLAS(power=3)
