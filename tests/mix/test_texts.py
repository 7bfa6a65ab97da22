"""Packing and padding: no token lost, none twice, no text sees another; and the mixed loss."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.mix import first_fit_decreasing, pack, pad, task_mean, token_batches

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)
FAST = settings(max_examples=60, deadline=None)


def texts_of(lengths: list[int]) -> list[torch.Tensor]:
    """Return texts in which no token comes twice, so that each can be told."""
    ends = itertools.accumulate(lengths)
    return [torch.arange(end - n, end) + 1 for n, end in zip(lengths, ends, strict=True)]


@FAST
@given(LENGTHS)
def test_first_fit_decreasing_is_what_its_name_says(lengths):
    capacity = 30
    naive: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row in naive:
            if sum(lengths[k] for k in row) + lengths[i] <= capacity:
                row.append(i)
                break
        else:
            naive.append([i])
    assert first_fit_decreasing(lengths, capacity) == naive


@FAST
@given(LENGTHS, st.integers(5, 40))
def test_every_token_is_packed_once_and_comes_back(lengths, capacity):
    texts = texts_of(lengths)
    tasks = [i % 3 for i in range(len(texts))]
    packed = pack(texts, capacity, tasks, longer="cut")
    there = packed.documents_RL >= 0
    assert sorted(packed.tokens_RL[there].tolist()) == list(range(1, sum(lengths) + 1))
    assert packed.tokens_RL[~there].eq(0).all()
    assert torch.equal(there, packed.tasks_RL >= 0)
    back = packed.unpack(packed.tokens_RL)
    assert all(torch.equal(one, other) for one, other in zip(texts, back, strict=True))
    for i, tasks_N in enumerate(packed.unpack(packed.tasks_RL)):
        assert tasks_N.eq(tasks[i]).all()
    for i, positions_N in enumerate(packed.unpack(packed.positions_RL)):
        assert positions_N.tolist() == [n % capacity for n in range(lengths[i])]
    # bounds: the rows end to end, cut where a piece or a filling begins
    documents = packed.documents_RL.flatten()
    bounds = packed.bounds.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == documents.numel()
    assert bounds == sorted(set(bounds))
    for start, end in itertools.pairwise(bounds):
        assert documents[start:end].unique().numel() == 1
        assert start // capacity == (end - 1) // capacity


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_lets_a_place_see_its_own_text_alone(causal):
    packed = pack(texts_of([3, 2, 4, 1]), 5)
    mask = packed.mask(causal=causal)
    rows, capacity = packed.tokens_RL.shape
    assert mask.shape == (rows, 1, capacity, capacity)
    for r, q, k in itertools.product(range(rows), range(capacity), range(capacity)):
        one, other = packed.documents_RL[r, q], packed.documents_RL[r, k]
        sees = (one == other and one >= 0 and (k <= q or not causal)) or q == k
        assert bool(mask[r, 0, q, k]) == bool(sees)


class Tiny(nn.Module):
    """A transformer's layer with positions, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.read, self.out = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, tokens, positions, mask):
        x = self.table(tokens) + self.places(positions)
        q, k, v = (part[:, None] for part in self.read(x).chunk(3, -1))
        return self.out(x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])


def test_a_transformer_gives_packed_texts_what_it_gives_each_alone():
    torch.manual_seed(0)
    model = Tiny().double()
    texts = texts_of([7, 3, 12, 1, 9, 9, 2])
    packed = pack(texts, 13)
    found = packed.unpack(model(packed.tokens_RL, packed.positions_RL, packed.mask()))
    for text, outputs in zip(texts, found, strict=True):
        n = len(text)
        alone = model(text[None], torch.arange(n)[None], torch.ones(n, n, dtype=torch.bool).tril())
        torch.testing.assert_close(outputs, alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: pack([], 5), "no text came"),
        (lambda: pack([torch.arange(6)], 5), "Text 0 has 6 tokens; a row of 5 takes 1 to 5"),
        (lambda: pack([torch.arange(0)], 5), r"text 0 has shape \(0,\); give one dim of 1 token"),
        (lambda: pack([torch.zeros(2, 2)], 5), r"text 0 has shape \(2, 2\)"),
        (lambda: pack([torch.arange(3)], 5, [0, 1]), "2 tasks came for 1 texts"),
        (lambda: pack([torch.arange(3)], 5, [-1]), "a task is -1; -1 is of filling"),
        (lambda: pack([torch.arange(3)], 5, longer="drop"), "longer is 'drop'; give 'refuse'"),
        (lambda: first_fit_decreasing([3, 0], 5), "Text 1 has 0 tokens"),
        (lambda: token_batches([3, 9], 8), "Text 1 has 9 tokens, 9 with padding; a batch takes 1"),
        (lambda: token_batches([3], 8, 0), "multiple is 0"),
        (lambda: pad([]), "no text came"),
        (lambda: pad([torch.arange(3)], multiple=0), "multiple is 0"),
        (lambda: task_mean(torch.ones(3), torch.zeros(2, dtype=torch.int64), 1), "give the task"),
        (lambda: task_mean(torch.ones(2), torch.tensor([0, 2]), 2), "not in -1 to 1, of 2 tasks"),
        (
            lambda: task_mean(torch.ones(1), torch.tensor([0]), 2, torch.tensor([1.0, -1.0])),
            "a weight >= 0 and a count for each of 2 tasks",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_padded_or_averaged_is_refused(make, text):
    with pytest.raises(UsageError, match=text):
        make()


@FAST
@given(LENGTHS, st.integers(30, 120), st.sampled_from([1, 4, 8]))
def test_batches_of_like_length_keep_the_budget_and_are_the_fewest(lengths, budget, multiple):
    budget = max(budget, -(-max(lengths) // multiple) * multiple)
    batches = token_batches(lengths, budget, multiple)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    wide = [-(-n // multiple) * multiple for n in lengths]
    assert all(max(wide[i] for i in batch) * len(batch) <= budget for batch in batches)
    # by dynamic programming over texts in order of length: fewest batches of neighbours
    ordered = sorted(wide)
    fewest = [0]
    for end in range(1, len(ordered) + 1):
        starts = [s for s in range(end) if ordered[end - 1] * (end - s) <= budget]
        fewest.append(1 + min(fewest[s] for s in starts))
    assert len(batches) == fewest[-1]


def test_texts_are_padded_to_a_multiple_behind_their_ends():
    texts = texts_of([3, 6, 1])
    padded, lengths_B = pad(texts, fill=-1, multiple=4)
    assert padded.shape == (3, 8)
    assert lengths_B.tolist() == [3, 6, 1]
    for row, text in zip(padded, texts, strict=True):
        assert torch.equal(row[: len(text)], text)
        assert row[len(text) :].eq(-1).all()
    features, _ = pad([torch.ones(2, 5), torch.ones(3, 5)])
    assert features.shape == (2, 3, 5)


def test_the_mixed_loss_is_its_formula_over_the_tasks_present():
    losses = torch.tensor([1.0, 3.0, 10.0, 99.0, float("inf")], requires_grad=True)
    tasks = torch.tensor([0, 0, 2, 2, -1])
    loss, means_T, counts_T = task_mean(losses, tasks, 4)
    assert loss.item() == pytest.approx((2 + 54.5) / 2)
    assert means_T.nan_to_num(nan=-1).tolist() == [2, -1, 54.5, -1]
    assert counts_T.tolist() == [2, 0, 2, 0]
    weights = torch.tensor([3.0, 100.0, 1.0, 0.0])
    loss, _, _ = task_mean(losses, tasks, 4, weights)
    assert loss.item() == pytest.approx((3 * 2 + 54.5) / 4)
    loss.backward()
    expected = [3 / 4 / 2, 3 / 4 / 2, 1 / 4 / 2, 1 / 4 / 2, 0]
    assert losses.grad.tolist() == pytest.approx(expected)


def test_micro_batches_with_the_counts_of_the_whole_add_up_to_it():
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(40, dtype=torch.float64, generator=draw)
    tasks = torch.randint(-1, 5, (40,), generator=draw)
    weights = torch.rand(5, dtype=torch.float64, generator=draw)
    whole, _, counts_T = task_mean(losses, tasks, 5, weights)
    parts = [
        task_mean(losses[at], tasks[at], 5, weights, counts_T)[0]
        for at in torch.randperm(40, generator=draw).split([1, 20, 19])
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1.0])])
def test_a_batch_of_nothing_has_loss_0_and_a_graph(weights):
    losses = torch.ones(2, requires_grad=True)
    tasks = torch.tensor([-1, -1] if weights is None else [0, 0])
    loss, _, _ = task_mean(losses, tasks, 2, weights)
    loss.backward()
    assert loss.item() == 0
    assert losses.grad.tolist() == [0, 0]
