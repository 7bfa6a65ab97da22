"""Sparse experts: grouped into blocks they give what every expert on every row gives."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.share.sparse import (
    SparseExperts,
    block_of,
    cv_squared,
    run_all,
    run_chosen,
    slots,
)


def choices(kind: str, rows: int, number: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    if kind == "random":
        return torch.rand(rows, number, generator=generator).topk(k, 1).indices
    # All rows to the same experts: the others' blocks are empty.
    return torch.arange(number)[-k:].expand(rows, k)


@pytest.mark.parametrize("kind", ["random", "the same"])
@pytest.mark.parametrize(
    ("rows", "number", "k"), [(1, 4, 1), (7, 5, 2), (50, 3, 3), (300, 16, 4), (129, 1, 1)]
)
def test_chosen_experts_give_what_all_experts_give_there(kind, rows, number, k):
    torch.manual_seed(0)
    experts = SparseExperts(number, 6, k, ratio=2).double()
    rows_XD = torch.randn(rows, 6).double().requires_grad_()
    chosen_XJ = choices(kind, rows, number, k)
    stacked = experts.stack("e")
    ours = run_chosen(stacked, "e", rows_XD, chosen_XJ)
    at = chosen_XJ[..., None].expand(-1, -1, 6)
    plain = run_all(stacked, "e", rows_XD).gather(1, at)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    scale = torch.randn(ours.shape).double()
    inputs = [rows_XD, *experts.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * scale).sum(), inputs),
        torch.autograd.grad((plain * scale).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("counts", [(0, 0, 9), (5, 0, 3, 8), (1, 1, 1, 1, 1), (16, 32), (0,)])
def test_every_pair_has_a_place_of_its_own_in_a_block_of_its_expert(counts, block):
    expert_Y = torch.cat([torch.full((c,), e) for e, c in enumerate(counts)])
    expert_Y = expert_Y[torch.randperm(len(expert_Y), generator=torch.Generator().manual_seed(1))]
    slot_Y, expert_N = slots(expert_Y, len(counts), block)
    assert len(expert_N) == sum(counts) // block + len(counts)
    assert len(set(slot_Y.tolist())) == sum(counts)
    assert torch.equal(expert_N[slot_Y // block], expert_Y)
    assert not len(slot_Y) or int(slot_Y.max()) < len(expert_N) * block


@pytest.mark.parametrize("pairs", [64, 768, 6144, 100_000])
def test_what_is_filled_up_is_little(pairs):
    block = block_of(pairs, 16)
    assert 8 <= block <= 64
    assert 16 * block <= max(pairs / 4, 16 * 8)


def test_unevenness():
    assert cv_squared(torch.tensor([2.0, 2.0, 2.0])) == 0
    assert cv_squared(torch.tensor([5.0])) == 0
    assert float(cv_squared(torch.tensor([1.0, 3.0]))) == pytest.approx(2 / 4)


def test_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match="k is 0; give from 1 to the number of experts, 3"):
        SparseExperts(3, 4, 0)
    with pytest.raises(UsageError, match="width and ratio must be at least 1; got 4 and 0"):
        SparseExperts(3, 4, 1, ratio=0)
