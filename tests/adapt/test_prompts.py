"""Prompts that tasks share: MPT and its distillation, SPT and its memory bank."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.adapt import (
    MPT,
    SPT,
    PromptDistillation,
    PromptTuning,
    adapt,
    describe,
    load_adapted,
    save_adapted,
)
from polytask.errors import UsageError

from .rowwise import TASKS, moved

INDEX_B = torch.tensor([2, 0, 1, 0])


def words(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(13, 6), nn.Linear(6, 5)).to(dtype)


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_mpt_is_its_loop(dtype, close):
    adapted = moved(adapt(words(dtype), MPT(4), TASKS))
    twin = copy.deepcopy(adapted)
    with adapted.tasks(INDEX_B):
        ours = adapted(TOKENS)
    adapter, base = twin.parts[0].at("0"), twin.base
    rows = []
    for tokens, task in zip(TOKENS, INDEX_B.tolist(), strict=True):
        outer = adapter.position_TP[task][:, None] * adapter.channel_TE[task][None, :]
        entries = functional.embedding(tokens, base[0].weight)
        rows.append(torch.cat([adapter.shared_PE * outer, entries]))
    theirs = functional.linear(torch.stack(rows), base[1].weight, base[1].bias)
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    for out in (ours, theirs):
        torch.autograd.backward(out.square().sum())
    for mine, other in zip(adapted.parts.parameters(), twin.parts.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=close, atol=close)


def test_mpt_trains_few_numbers_and_keeps_its_prompt_where_a_task_is_added():
    adapted = adapt(words(), MPT(4), TASKS)
    assert sum(p.numel() for p in adapted.trainable_parameters()) == 4 * 6 + 3 * (4 + 6)
    shared = adapted.parts[0].at("0").shared_PE
    before = shared.detach().clone()
    adapted.add_task("d", seed=9)
    assert torch.equal(shared, before)
    assert adapted.parts[0].at("0").position_TP.shape == (4, 4)


def test_distillation_is_the_divergence_and_the_distance():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    hidden = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    wanted = 0.0
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        p, q = torch.softmax(t / 2, -1), torch.softmax(s / 2, -1)
        wanted = wanted + (p * (p / q).log()).sum() / 12
    wanted = 0.5 * (wanted + (hidden[0] - hidden[1]).square().sum() / 72)
    came = PromptDistillation(0.5, 2.0)(student, teacher, hidden[0], hidden[1])
    torch.testing.assert_close(came, wanted)
    same = PromptDistillation()(student, student, hidden[0], hidden[0])
    assert abs(float(same)) < 1e-12


def test_distillation_sends_gradients_to_the_student_alone():
    student, teacher = (torch.randn(2, 3).requires_grad_() for _ in range(2))
    torch.autograd.backward(PromptDistillation()(student, teacher))
    assert student.grad is not None
    assert teacher.grad is None


def test_distilling_teachers_brings_mpt_to_what_they_give():
    """Prompts of three tasks that are of the form MPT can learn: it learns them."""
    base = words()
    base = nn.Sequential(base[0], nn.Linear(6, 6), nn.Tanh(), Mean(), base[1]).double()
    teachers = adapt(copy.deepcopy(base), PromptTuning(4, "normal", 1.0), TASKS)
    shared = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    for t in range(3):
        factors = torch.randn(2, 6, generator=torch.Generator().manual_seed(t)).double()
        teachers.parts[0].at("0").prompt_TPE.data[t] = (
            2 * shared * factors[0, :4, None] * factors[1]
        )
    student = adapt(base, MPT(4, std=0.5), TASKS)
    optimiser = torch.optim.Adam(student.trainable_parameters(), 0.03)
    losses = []
    with torch.no_grad(), teachers.tasks(INDEX_B):
        wanted = teachers(TOKENS)
    for _ in range(250):
        with student.tasks(INDEX_B):
            loss = PromptDistillation()(student(TOKENS), wanted)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


@pytest.mark.parametrize("given", [False, True])
def test_spt_is_its_loop(given):
    adapted = moved(adapt(words(), SPT(3, 7), TASKS))
    twin = copy.deepcopy(adapted)
    own_BE = torch.randn(4, 6, dtype=torch.float64)
    with adapted.tasks(INDEX_B, given={"query": own_BE} if given else None):
        ours = adapted(TOKENS)
    adapter, base = twin.parts[0].at("0"), twin.base
    rows = []
    for b, (tokens, task) in enumerate(zip(TOKENS, INDEX_B.tolist(), strict=True)):
        query = own_BE[b] if given else adapter.query_TE[task]
        ranked = sorted(range(7), key=lambda m: -float(query @ adapter.memory_ME[m].detach()))
        prompt = torch.stack([adapter.memory_ME[m] for m in ranked[:3]])
        rows.append(torch.cat([prompt, functional.embedding(tokens, base[0].weight)]))
    theirs = functional.linear(torch.stack(rows), base[1].weight, base[1].bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for out in (ours, theirs):
        torch.autograd.backward(out.square().sum())
    for mine, other in zip(adapted.parts.parameters(), twin.parts.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_a_query_is_the_mean_embedding_of_the_words_of_a_task():
    adapted = adapt(words(), SPT(3, 7), TASKS)
    adapter = adapted.parts[0].at("0")
    before = adapter.query_TE.clone()
    describe(adapted, {"b": torch.tensor([3, 5, 5])})
    entries = adapted.base[0].weight.detach()
    torch.testing.assert_close(adapter.query_TE[1], (entries[3] + 2 * entries[5]) / 3)
    assert torch.equal(adapter.query_TE[[0, 2]], before[[0, 2]])
    assert "query_TE" not in dict(adapter.named_parameters())


def test_tasks_with_near_queries_share_memories():
    """Twice the same words: the same prompts. Other words: others."""
    adapted = adapt(words(), SPT(2, 40, "normal", std=1.0), TASKS)
    describe(adapted, {"a": torch.tensor([3]), "b": torch.tensor([3]), "c": torch.tensor([9])})
    with torch.no_grad(), adapted.tasks(torch.tensor([0, 1, 2])):
        a, b, c = adapted(TOKENS[:1].repeat(3, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MPT(0), "length is 0"),
        (lambda: MPT(std=0), "std is 0"),
        (lambda: SPT(5, 4), "memories is 4"),
        (lambda: PromptDistillation(-1), "weight is -1"),
        (lambda: PromptDistillation()(torch.ones(2, 3), torch.ones(2, 4)), "one length"),
        (lambda: PromptDistillation()(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), "both"),
        (lambda: describe(adapt(words(), MPT(2), TASKS), {}), "no SPT adapter"),
        (lambda: describe(adapt(words(), SPT(2), TASKS), {"a": torch.ones(2)}), "int64"),
        (lambda: describe(adapt(words(), SPT(2), TASKS), {"x": torch.arange(2)}), "Unknown task"),
    ],
)
def test_wrong_use_is_answered(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_a_query_of_the_wrong_shape_is_answered():
    adapted = adapt(words(), SPT(2), TASKS)
    with (
        pytest.raises(UsageError, match=r"give an embedding of every row, \(4, 6\)"),
        adapted.tasks(INDEX_B, given={"query": torch.ones(4, 5)}),
    ):
        adapted(TOKENS)


def test_one_file_brings_back_prompts_and_queries(tmp_path):
    for method in (MPT(3), SPT(3, 7)):
        adapted = moved(adapt(words(), method, TASKS))
        if isinstance(method, SPT):
            describe(adapted, {"b": torch.tensor([3, 5])})
        save_adapted(tmp_path / "a", adapted)
        loaded = load_adapted(tmp_path / "a", words())
        with torch.no_grad(), adapted.tasks(INDEX_B), loaded.tasks(INDEX_B):
            assert torch.equal(adapted(TOKENS), loaded(TOKENS))
