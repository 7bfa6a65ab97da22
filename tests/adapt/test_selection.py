"""Selections: rules against loops, groups, levels, and what depends on more than the task."""

import math

import pytest
import torch
from torch import Tensor

from polytask.adapt import (
    Even,
    GivenScores,
    Plain,
    PrototypeScores,
    RouterScores,
    Rows,
    Selection,
    Shares,
    Softmax,
    TaskScores,
    Trace,
)
from polytask.adapt.selection import mixed, of_task, spread_over
from polytask.errors import UsageError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(), dtype=torch.float64)


def test_softmax_is_that_of_the_best_alone():
    given = scores(2, 3, 1, 5)
    for top in (0, 1, 2, 5, 9):
        weights = Softmax(0.5, top)(given, training=False)
        for row, came in zip(given.view(-1, 5).tolist(), weights.view(-1, 5).tolist(), strict=True):
            keep = sorted(range(5), key=lambda e: -row[e])[: top or 5]
            parts = [math.exp(row[e] / 0.5) if e in keep else 0.0 for e in range(5)]
            assert came == pytest.approx([p / sum(parts) for p in parts])


def test_the_best_may_be_chosen_by_something_else_than_their_weights():
    given, by = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 2.0])
    weights = Softmax(top=2)(given, False, by)
    assert weights.tolist() == pytest.approx([0.0, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_gradients_reach_the_chosen_alone():
    given = scores(4).requires_grad_()
    (Softmax(top=2)(given, True) * torch.arange(4.0)).sum().backward()
    assert (given.grad != 0).sum() == 2


def test_shares_are_sigmoids_over_their_sum():
    given = scores(3, 1, 2, 4)
    wanted = torch.sigmoid(given) / torch.sigmoid(given).sum(-1, keepdim=True)
    assert torch.allclose(Shares()(given, True), wanted)
    assert torch.allclose(Shares(sampled=True)(given, False), wanted)


def test_sampled_shares_are_drawn_from_the_relaxed_bernoulli_distribution():
    """Its median is sigmoid(score / temperature); torch.distributions draws the same."""
    given, tau = torch.tensor([-1.0, 0.5]).expand(20_000, 2), 0.7
    torch.manual_seed(0)
    drawn = Shares(sampled=True, temperature=tau)(given, True)
    torch.manual_seed(1)
    other = torch.distributions.RelaxedBernoulli(tau, logits=given).sample()
    other = other / other.sum(-1, keepdim=True)
    for q in (0.1, 0.5, 0.9):
        assert torch.allclose(drawn.quantile(q, 0), other.quantile(q, 0), atol=0.02)
    torch.manual_seed(0)
    assert torch.equal(drawn, Shares(sampled=True, temperature=tau)(given, True))


def test_task_scores_are_each_rows_own():
    selection = Selection(TaskScores(3, 4, generator(), groups=2, std=1.0), Softmax())
    rows = Rows(torch.tensor([2, 0, -1]))
    weights = selection(rows)
    assert weights.shape == (3, 1, 2, 4)
    for b, t in enumerate((2, 0)):
        assert torch.allclose(weights[b, 0], of_task(selection, t))
    assert selection.scores.per_task == ("scores_TGE",)


def test_router_scores_are_of_tokens_or_of_rows():
    x, rows = torch.randn(2, 5, 6), Rows(torch.tensor([0, 1]))
    token = RouterScores(6, 3, generator(), groups=2)
    assert token(rows, x).shape == (2, 5, 2, 3)
    one = (x[1, 4] @ token.weight_SC.T).view(2, 3)
    assert torch.allclose(token(rows, x)[1, 4], one, atol=1e-6)
    row = RouterScores(6, 3, generator(), level="row")
    assert torch.allclose(row(rows, x)[:, 0, 0], x.mean(1) @ row.weight_SC.T, atol=1e-6)
    with pytest.raises(UsageError, match="give 'token' or 'row'"):
        RouterScores(6, 3, generator(), level="batch")


def test_prototypes_score_by_what_lies_along_them():
    prototypes = torch.eye(4)[:3]
    selection = Selection(PrototypeScores(prototypes), Softmax(top=1), "layer")
    x, trace = torch.tensor([[[0.0, -5.0, 1.0, 9.0]]]), Trace()
    weights = selection(Rows(torch.tensor([0]), trace=trace), x)
    assert weights.flatten().tolist() == [0.0, 1.0, 0.0]
    assert torch.equal(trace.weights["layer"], weights)


def test_given_scores_are_of_all_rows_or_each():
    selection = Selection(GivenScores("preference", 2, "PaLoRA"), Plain())
    both = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    index_B = torch.tensor([0, 1])
    assert selection(Rows(index_B, {"preference": both})).shape == (2, 1, 1, 2)
    assert selection(Rows(index_B, {"preference": both[0]})).shape == (1, 1, 1, 2)
    with pytest.raises(UsageError, match="PaLoRA needs 'preference' of every row; hand it in"):
        selection(Rows(index_B))
    with pytest.raises(UsageError, match=r"has shape \(3,\); give \(2,\) or \(rows, 2\)"):
        selection(Rows(index_B, {"preference": torch.ones(3)}))


def test_parameters_are_mixed_for_rows_also_in_groups():
    weights, values = scores(3, 1, 1, 4), scores(4, 2, 5)
    wanted = torch.einsum("be,eri->bri", weights[:, 0, 0], values)
    assert torch.allclose(mixed(weights, values), wanted)
    weights, values = scores(3, 1, 2, 4), scores(4, 2, 3, 5)
    wanted = torch.einsum("bge,egri->bgri", weights[:, 0], values)
    assert torch.allclose(mixed(weights, values), wanted)
    with pytest.raises(UsageError, match="these weights differ by token"):
        mixed(scores(3, 2, 1, 4), values)


def test_outputs_are_weighed_expert_by_expert():
    weights, made = scores(2, 3, 1, 4), scores(2, 3, 4 * 5)
    wanted = weights.squeeze(2)[..., None] * made.view(2, 3, 4, 5)
    assert torch.allclose(spread_over(weights, made), wanted.flatten(2))
    assert torch.allclose(
        spread_over(weights[:1, :1], made),
        (weights[:1, :1].squeeze(2)[..., None] * made.view(2, 3, 4, 5)).flatten(2),
    )


def test_routing_may_be_replaced_and_only_a_tasks_own_is_a_change_of_weights():
    selection = Selection(TaskScores(2, 4, generator(), std=1.0), Shares())
    selection.rule = Even()
    assert selection(Rows(torch.tensor([1]))).flatten().tolist() == [0.25] * 4
    router = Selection(RouterScores(4, 2, generator()), Softmax())
    with pytest.raises(UsageError, match=r"depends on the input \(RouterScores\)"):
        of_task(router, 0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Softmax(0.0), "Softmax: temperature is 0.0"),
        (lambda: Softmax(top=-1), "Softmax: top is -1"),
        (lambda: Shares(temperature=-1.0), "Shares: temperature is -1.0"),
    ],
)
def test_wrong_rules_are_answered(build, said):
    with pytest.raises(UsageError, match=said):
        build()
