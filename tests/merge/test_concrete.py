"""Concrete masks: their distribution, what they leave as it is, and what a search finds."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import RelaxedBernoulli

from polytask.merge.concrete import Concrete
from polytask.merge.concrete_adamerging import ConcreteAdaMerging
from polytask.merge.family import Family
from polytask.merge.masks import Masks, logits_of
from polytask.tasks import Multiclass, Task, TaskSet

from .families import TASKS, inputs, mlp


def test_masks_are_relaxed_bernoulli_variables_over_their_mean():
    """Against torch's own distribution, by quantiles, before the division by the mean."""
    n = 100_000
    logits = torch.full((n,), 0.4, dtype=torch.float64)
    drawn = Masks(temperature=0.5, seed=1).draw({"mask/w": logits}, 3)["w"]
    assert float(drawn.mean()) == pytest.approx(1, abs=1e-9)
    torch.manual_seed(0)
    truth = RelaxedBernoulli(torch.tensor(0.5), logits=logits).sample()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(
        torch.quantile(drawn, levels), torch.quantile(truth / truth.mean(), levels),
        rtol=0.02, atol=0.01,
    )  # fmt: skip


def test_each_round_and_each_tensor_draws_for_itself():
    masks = Masks(seed=2)
    values = {"mask/a": torch.zeros(50), "mask/b": torch.zeros(50)}
    first, again, later = masks.draw(values, 0), masks.draw(values, 0), masks.draw(values, 1)
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], later["a"])
    assert torch.equal(masks.draw({"mask/b": values["mask/b"]}, 0)["b"], first["b"])
    assert list(logits_of(values | {"shift/x": torch.zeros(1)})) == ["a", "b"]


def test_settled_masks_of_equal_logits_are_task_arithmetic():
    family, data = mlp(), inputs("mlp")
    merged = Concrete(rounds=1, learning_rate=1e-12)(family, data)
    for name, base in family.base.items():
        torch.testing.assert_close(
            merged.shared[name], base + 0.3 * family.deltas[name].sum(0), rtol=1e-9, atol=1e-12
        )


def test_concrete_adamerging_merges_with_its_mask_and_its_coefficients():
    family, data = mlp(), inputs("mlp")
    merged = ConcreteAdaMerging(rounds=5, coefficient_rounds=5, learning_rate=0.3)(family, data)
    lam = merged.learned["coefficients"].double()
    for i, name in enumerate(family.names):
        logits = merged.learned[f"mask/{name}"]
        mask = 1 / (1 + (-logits / 0.5).exp())
        mask = mask / mask.mean()
        expected = family.base[name] + sum(
            lam[i, t] * mask * family.deltas[name][t] for t in range(len(TASKS))
        )
        torch.testing.assert_close(merged.shared[name], expected)
    assert len(merged.losses) == 10


class Scores(nn.Module):
    """Logits that are the parameter times the inputs, so that large entries mean sure answers."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.head = nn.Identity()

    def forward(self, x):
        return self.head(x @ self.weight)


def test_the_mask_takes_entries_that_make_answers_sure_and_leaves_out_those_that_do_not():
    """Half of the inputs are always 0 in one task: entries there change nothing, and their share
    of the mask goes to the entries that raise the margin."""
    base = torch.zeros(8, 2, dtype=torch.float64)
    moved = base.clone()
    moved[:, 0] = 1.0
    tasks = TaskSet([Task("x", Multiclass(2)), Task("y", Multiclass(2))])
    family = Family(Scores(base), {"x": Scores(moved), "y": Scores(moved)}, tasks)
    rows = torch.zeros(6, 8, dtype=torch.float64)
    rows[:, :4] = 0.2
    merged = Concrete(rounds=60, learning_rate=0.1, scale=0.5)(family, {"x": rows, "y": rows})
    logits = merged.learned["mask/weight"]
    assert float(logits[:4, 0].min()) > float(logits[4:, 0].max())
    margin = float((rows @ merged.shared["weight"])[0, 0])
    assert margin > 1.5 * float((rows @ (base + 0.5 * 2 * moved))[0, 0])
    assert merged.losses[-1] < merged.losses[0] <= 2 * math.log(2)
