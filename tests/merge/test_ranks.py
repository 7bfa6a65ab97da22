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
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("elements", [1, 2, 100, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_a_sort(kind, elements, signed, dtype):
    generator = torch.Generator().manual_seed(elements)
    values_RP = KINDS[kind](torch.randn((2, elements), generator=generator, dtype=dtype))
    values_RP = values_RP.to(dtype) + 0.0 if signed else values_RP.to(dtype).abs()
    asked = (1, max(1, elements // 5), max(1, elements // 2), elements)
    sorted_RP = values_RP.sort(1, descending=True).values
    wanted_RK = sorted_RP[:, [rank - 1 for rank in asked]]
    ranks = Ranks(signed)
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


def test_values_that_are_no_number_count_as_the_largest():
    values_RP = torch.tensor([[1.0, torch.nan, torch.inf, 2.0]])
    found_RK, _ = streamed(Ranks(), values_RP, (1, 2, 3), 1)
    assert found_RK[0, 0].isnan()
    assert found_RK[0, 1:].tolist() == [torch.inf, 2.0]
