"""Values of given ranks are those of a sort, over hard inputs, however they come."""

import pytest
import torch

from polytask.merge.ranks import STRIDE, Ranks

KINDS = {
    "normal": lambda x_RP: x_RP,
    "mostly zero": lambda x_RP: x_RP * (x_RP > 2.3),
    "all equal": lambda x_RP: x_RP * 0 + 2,
    "few values": lambda x_RP: x_RP.round(),
    "all sizes": lambda x_RP: x_RP * 10.0 ** (12 * torch.linspace(-3, 3, x_RP.shape[1])),
    "sorted": lambda x_RP: x_RP.sort(1).values,
    "infinite": lambda x_RP: torch.where(x_RP > 1.5, torch.inf, x_RP),
    "beyond the sample": lambda x_RP: (
        x_RP * (1 + 1e6 * (torch.arange(x_RP.shape[1]) % STRIDE == 7))
    ),
}


def streamed(ranks, values_RP, asked, pieces):
    state = ranks.begin(len(values_RP), len(asked), values_RP.dtype)
    passes = 0
    while not ranks.settled(state):
        sums, stride = ranks.blank(state), ranks.stride(state)
        for piece_RP in values_RP.chunk(pieces, 1):
            ranks.look(piece_RP[:, ::stride], piece_RP.shape[1], state, sums)
        state = ranks.settle(state, sums, asked)
        passes += 1
        assert passes <= 8
    return ranks.values(state), passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("elements", [1, 2, 100, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_a_sort(kind, elements, signed, keeps, dtype):
    generator = torch.Generator().manual_seed(elements)
    values_RP = KINDS[kind](torch.randn((2, elements), generator=generator, dtype=dtype))
    values_RP = values_RP.to(dtype) + 0.0 if signed else values_RP.to(dtype).abs()
    asked = (1, max(1, elements // 5), max(1, elements // 2), elements)
    sorted_RP = values_RP.sort(1, descending=True).values
    wanted_RK = sorted_RP[:, [rank - 1 for rank in asked]]
    ranks = Ranks(signed, keeps)
    assert torch.equal(streamed(ranks, values_RP, asked, 3)[0], wanted_RK)
    state, sums = ranks.begin(2, len(asked), dtype), ranks.blank(ranks.begin(2, len(asked), dtype))
    ranks.look_whole(values_RP, sums, asked)
    assert torch.equal(ranks.values(ranks.settle(state, sums, asked)), wanted_RK)


@pytest.mark.parametrize(("elements", "most"), [(100_000, 3), (20_000_000, 2)])
def test_few_passes_are_enough_and_the_larger_the_fewer(elements, most):
    generator = torch.Generator().manual_seed(0)
    sizes_RP = torch.randn((1, elements), generator=generator).abs_()
    found_RK, passes = streamed(Ranks(), sizes_RP, (elements // 5,), 40)
    assert passes <= most
    assert int((sizes_RP[0] >= found_RK[0, 0]).sum()) == elements // 5


def test_kept_values_save_a_pass_until_they_are_too_many():
    """A tensor of ordinary size needs two; where the sample misled, the count takes over."""
    generator = torch.Generator().manual_seed(1)
    sizes_RP = torch.randn((2, 700_000), generator=generator).abs_()
    asked = (70_001, 210_000)
    wanted_RK = sizes_RP.sort(1, descending=True).values[:, [rank - 1 for rank in asked]]
    for keeps, most in ((True, 2), (False, 4)):
        found_RK, passes = streamed(Ranks(keeps=keeps), sizes_RP, asked, 7)
        assert torch.equal(found_RK, wanted_RK)
        assert passes <= most
    unseen_P = torch.arange(700_000) % STRIDE > 0  # the sample takes them for rare
    misled_RP = torch.where(unseen_P, 1.0 + sizes_RP * 1e-6, sizes_RP)
    wanted_RK = misled_RP.sort(1, descending=True).values[:, [rank - 1 for rank in asked]]
    found_RK, passes = streamed(Ranks(keeps=True), misled_RP, asked, 1)
    assert torch.equal(found_RK, wanted_RK)
    assert passes > 2


def test_values_that_are_no_number_count_as_the_largest():
    values_RP = torch.tensor([[1.0, torch.nan, torch.inf, 2.0]])
    found_RK, _ = streamed(Ranks(), values_RP, (1, 2, 3), 1)
    assert found_RK[0, 0].isnan()
    assert found_RK[0, 1:].tolist() == [torch.inf, 2.0]
