"""Which labels to ask for: criteria by closed forms and autograd, picks within their budget."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.errors import DataError, UsageError
from polytask.relate import (
    alternating_selection,
    bald,
    best_labels,
    core_set,
    expected_gradient_length,
    inconsistency,
    rank_combination,
    uncertain,
)
from polytask.relate.bald import disagreement

NAN = float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_uncertainty_is_0_where_sure_and_largest_where_all_is_equal():
    p_NC = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]]).double()
    entropy = torch.distributions.Categorical(p_NC).entropy()
    torch.testing.assert_close(uncertain(p_NC), entropy, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        uncertain(p_NC, form="margin"), torch.tensor([0.0, 0.8, 1.0]).double()
    )
    expected = torch.tensor([0.0, 0.5, 2 / 3]).double()
    torch.testing.assert_close(uncertain(p_NC, form="least-confidence"), expected)


def test_a_binary_task_is_two_classes_and_positions_are_averaged():
    p_N = torch.tensor([0.1, 0.5, 0.8])
    both_NC = torch.stack([1 - p_N, p_N], 1)
    for form in ("entropy", "margin", "least-confidence"):
        torch.testing.assert_close(uncertain(p_N, form=form), uncertain(both_NC, form=form))
    p_NLC = torch.softmax(normal(2, 5, 3), -1)
    each = torch.stack([uncertain(p_NLC[:, i]) for i in range(5)])
    torch.testing.assert_close(uncertain(p_NLC), each.mean(0))


def test_bald_is_the_mutual_information():
    p_ENC = torch.softmax(2 * normal(4, 6, 3), -1)
    mean = p_ENC.mean(0)
    # sum over members and answers of p(member) p(y | member) log p(y | member) / p(y)
    expected = (p_ENC * (p_ENC / mean).log()).sum(-1).mean(0)
    torch.testing.assert_close(bald(p_ENC), expected)
    agreeing = p_ENC[:1].expand(4, -1, -1)
    torch.testing.assert_close(bald(agreeing), torch.zeros(6).double())
    sure = torch.tensor([[1.0], [0.0]])
    assert float(bald(sure)) == pytest.approx(torch.tensor(2.0).log().item())
    values = normal(5, 7, 2)
    torch.testing.assert_close(disagreement(values), values.var(0).mean(1))


def test_expected_gradient_length_is_what_autograd_finds():
    head = nn.Linear(5, 3).double()
    x = normal(4, 5)
    p_NC = torch.softmax(head(x), 1).detach()
    for n in range(4):
        total = 0.0
        for y in range(3):
            loss = functional.cross_entropy(head(x[n : n + 1]), torch.tensor([y]))
            grads = torch.autograd.grad(loss, list(head.parameters()))
            length = torch.cat([g.reshape(-1) for g in grads]).norm()
            total += float(p_NC[n, y] * length)
        assert float(expected_gradient_length(x, p_NC)[n]) == pytest.approx(total)
    binary = nn.Linear(5, 1).double()
    p_N = torch.sigmoid(binary(x))[:, 0].detach()
    for n in range(4):
        total = 0.0
        for y in (0.0, 1.0):
            loss = functional.binary_cross_entropy_with_logits(
                binary(x[n])[0], torch.tensor(y).double()
            )
            grads = torch.autograd.grad(loss, list(binary.parameters()))
            length = torch.cat([g.reshape(-1) for g in grads]).norm()
            total += float((p_N[n] if y else 1 - p_N[n]) * length)
        assert float(expected_gradient_length(x, p_N)[n]) == pytest.approx(total)


def test_core_set_takes_one_row_of_every_cluster_and_stays_within_twice_the_best_radius():
    centres = 10 * normal(5, 3)
    rows = (centres[:, None] + 0.1 * normal(5, 8, 3)).reshape(40, 3)
    chosen = core_set(rows, torch.zeros(40, dtype=torch.bool), 5)
    assert {n // 8 for n in chosen} == set(range(5))
    labelled = torch.zeros(40, dtype=torch.bool)
    labelled[:8] = True
    more = core_set(rows, labelled, 4)
    assert {n // 8 for n in more} == {1, 2, 3, 4}
    assert len(core_set(rows, labelled, 99)) == 32
    assert len(set(core_set(torch.zeros(6, 2), torch.zeros(6, dtype=torch.bool), 6))) == 6


def test_inconsistency_is_0_where_paths_agree_and_grows_with_what_they_differ():
    p_ANC = torch.softmax(normal(2, 5, 3), -1)
    p_ANC[1, 0] = p_ANC[0, 0]
    found = inconsistency(p_ANC, classes=True)
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    assert bool((found[1:] > 0).all())
    depth = normal(1, 6).repeat(3, 1)
    depth[1, 2] += 5
    numbers = inconsistency(depth, classes=False)
    assert int(numbers.argmax()) == 2
    assert float(numbers[0]) == 0


SCORES = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.1, 0.9], [NAN, 0.95], [NAN, NAN], [0.5, 0.5]])


def test_rows_high_in_all_lists_are_labelled_for_all_tasks_asked():
    # ranks as shares: task 0 of 4, task 1 of 5
    found = rank_combination(SCORES, 3.0)
    assert found.labels == ((3, 1), (1, 0), (1, 1))
    assert found.cost == 3
    assert rank_combination(SCORES, 4.0, by="max").labels[:1] == ((3, 1),)
    assert rank_combination(SCORES[:3], 2.0, by="mean").labels == ((1, 0), (1, 1))
    assert rank_combination(SCORES[:3], 2.0, by="max").labels == ((0, 0), (0, 1))
    assert rank_combination(SCORES[:3], 2.0, by="min").labels == ((1, 0), (1, 1))


def test_tasks_take_turns_and_a_dear_task_has_fewer_of_them():
    assert alternating_selection(SCORES, 5.0).labels == ((0, 0), (0, 1), (3, 1), (2, 0), (2, 1))
    own = alternating_selection(SCORES, 4.0, rows=False)
    assert own.labels == ((0, 0), (3, 1), (1, 0), (2, 1))
    dear = alternating_selection(SCORES, 4.0, rows=False, costs=(2.0, 1.0))
    assert dear.labels == ((0, 0), (3, 1), (2, 1))
    assert dear.cost == 4


def test_single_labels_go_by_score_per_cost():
    assert best_labels(SCORES, 2.0, scaled=False).labels == ((3, 1), (0, 0))
    assert best_labels(SCORES, 3.0, scaled=False, costs=(1.0, 3.0)).labels == (
        (0, 0), (1, 0), (5, 0),
    )  # fmt: skip
    apart = best_labels(SCORES[:2], 4.0, scaled=False, per_row=1)
    assert apart.labels == ((0, 0), (1, 0))
    # a task of scores a hundred times as large does not take all once scaled
    large = SCORES * torch.tensor([1.0, 100.0])
    assert {t for _, t in best_labels(large, 4.0, scaled=False).labels} == {1}
    assert {t for _, t in best_labels(large, 4.0).labels} == {0, 1}


@pytest.mark.parametrize("choose", [rank_combination, alternating_selection, best_labels])
def test_no_choice_spends_more_than_the_budget_or_asks_for_what_is_there(choose):
    generator = torch.Generator().manual_seed(0)
    scores_NT = torch.rand(40, 3, generator=generator)
    scores_NT[torch.rand(40, 3, generator=generator) < 0.3] = NAN
    costs = (1.0, 2.5, 0.3)
    for budget in (0.2, 3.0, 17.0, 1000.0):
        found = choose(scores_NT, budget, costs=costs)
        assert found == choose(scores_NT, budget, costs=costs)
        assert len(set(found.labels)) == len(found.labels)
        assert not any(bool(scores_NT[n, t].isnan()) for n, t in found.labels)
        assert found.cost == pytest.approx(sum(costs[t] for _, t in found.labels))
        assert found.cost <= budget + 1e-9
        assert int(found.mask(40, 3).sum()) == len(found.labels)
    assert len(found.labels) == int((~scores_NT.isnan()).sum())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: uncertain(torch.tensor([[0.9, 0.9]])), DataError, "do not sum to 1"),
        (lambda: uncertain(torch.tensor([[NAN, 1.0]])), DataError, r"do not lie in \[0, 1\]"),
        (lambda: uncertain(torch.tensor([0.5]), form="x"), UsageError, "form is 'x'"),
        (lambda: uncertain(torch.ones(3, 1)), UsageError, "of 1 class"),
        (lambda: bald(torch.full((1, 4), 0.5)), UsageError, "at least 2 members"),
        (lambda: core_set(normal(4, 2), torch.zeros(3), 1), UsageError, "one flag for each row"),
        (lambda: rank_combination(SCORES, 0.0), UsageError, "budget is 0.0"),
        (lambda: rank_combination(SCORES, 1.0, by="sum"), UsageError, "by is 'sum'"),
        (lambda: alternating_selection(SCORES, 1.0, costs=(1.0,)), UsageError, "give 2 costs > 0"),
        (lambda: best_labels(-SCORES, 1.0), UsageError, "give scores >= 0"),
        (lambda: best_labels(SCORES.nan_to_num(torch.inf), 1.0), DataError, "infinite"),
    ],
)
def test_wrong_use_is_answered_with_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
