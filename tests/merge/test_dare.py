"""DARE's draws: an unbiased mean, the asked share, and nothing that depends on where one looks."""

import numpy as np
import pytest
import torch

from polytask.merge import DARE, TIES, DareTies, Place, dare
from polytask.merge.draws import kept


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 0.9])
def test_the_mean_over_ten_thousand_draws_is_the_task_vector(drop):
    """Within 4.5 standard errors for 60 elements; a rescale that is 3 % off fails at drop 0.5."""
    generator = torch.Generator().manual_seed(1)
    base_P = torch.randn(20, generator=generator, dtype=torch.float64)
    tuned_MP = base_P + torch.randn((3, 20), generator=generator, dtype=torch.float64)
    wanted_P = base_P + (tuned_MP - base_P).sum(0)
    # Every element of a tensor is drawn by itself: 10,000 rows are 10,000 draws.
    rows_NP, rows_MNP = base_P.expand(10_000, -1), tuned_MP[:, None].expand(-1, 10_000, -1)
    draws_NP = dare(rows_NP, rows_MNP, drop, 1.0)
    error_P = ((tuned_MP - base_P).square().sum(0) * drop / (1 - drop) / 10_000).sqrt()
    off_P = (draws_NP.mean(0) - wanted_P).abs()
    assert bool((off_P <= 4.5 * error_P + 1e-12).all())
    if drop:  # and they do vary as they should
        spread_P = draws_NP.std(0) / error_P / 100
        assert bool(((spread_P - 1).abs() < 0.08).all())


@pytest.mark.parametrize("drop", [0.25, 0.5, 0.99])
def test_what_is_kept_is_divided_by_exactly_the_chance_to_be_kept(drop):
    base_P = torch.zeros(1000, dtype=torch.float64)
    merged_P = dare(base_P, torch.full((1, 1000), 3.0, dtype=torch.float64), drop, 1.0)
    assert set(merged_P.tolist()) == {0.0, 3.0 / (1 - drop)}


def test_models_tensors_seeds_and_elements_draw_independently():
    like_MP = torch.zeros(2, 100_000)
    rows = [
        *kept(0.5, like_MP, Place("a"), 0),
        *kept(0.5, like_MP, Place("b"), 0),
        *kept(0.5, like_MP, Place("a"), 1),
    ]
    signs_RP = 2 * torch.stack(rows).to(torch.float64) - 1
    products_RR = signs_RP @ signs_RP.T / 100_000
    assert float((products_RR - torch.eye(6)).abs().max()) < 4.5 / np.sqrt(100_000)
    assert float((signs_RP[:, 1:] * signs_RP[:, :-1]).mean(1).abs().max()) < 4.5 / np.sqrt(1e5)
    assert float(signs_RP.mean(1).abs().max()) < 4.5 / np.sqrt(100_000)


@pytest.mark.parametrize("start", [0, 1, 2, 7, 65536, 70001])
@pytest.mark.parametrize("share", [0.3, 0.5, 129 / 2**16])
def test_draws_are_those_of_the_elements_wherever_a_piece_starts(start, share):
    whole_MP = kept(share, torch.zeros(2, 80_000), Place("w"), 5)
    part_MP = kept(share, torch.zeros(2, 501), Place("w", start), 5)
    assert torch.equal(part_MP, whole_MP[:, start : start + 501])
    chance = share * (1 - share) / 160_000
    assert abs(float(whole_MP.to(torch.float64).mean()) - share) < 4.5 * chance**0.5


@pytest.mark.parametrize(
    ("share", "drawn"),
    [
        (0.5, ["1110101000110001", "1100011000000011"]),  # 8 bits are enough
        (0.3, ["0001100000000100", "0001000010011100"]),  # 32 bits
    ],
)
def test_the_draws_are_the_same_on_every_machine(share, drawn):
    """Fixed values: a change here changes everybody's merges."""
    keep_MP = kept(share, torch.zeros(2, 16), Place("layer.weight"), 3)
    assert ["".join(map(str, row)) for row in keep_MP.to(torch.int8).tolist()] == drawn


def test_without_dropping_it_is_what_it_stands_on():
    generator = torch.Generator().manual_seed(2)
    base_P = torch.randn(500, generator=generator)
    tuned_MP = base_P + torch.randn((4, 500), generator=generator)
    assert torch.equal(DareTies(0.0, density=0.3)(base_P, tuned_MP), TIES(0.3)(base_P, tuned_MP))


def test_with_ties_it_is_ties_of_the_dropped_models():
    generator = torch.Generator().manual_seed(3)
    base_P = torch.randn(500, generator=generator, dtype=torch.float64)
    tuned_MP = base_P + torch.randn((3, 500), generator=generator, dtype=torch.float64)
    keep_MP = kept(0.4, tuned_MP, Place("w"), 9)
    dropped_MP = base_P + (tuned_MP - base_P) * keep_MP / (1 - 0.6)
    merged_P = DareTies(0.6, density=0.2, seed=9)(base_P, tuned_MP, "w")
    torch.testing.assert_close(merged_P, TIES(0.2)(base_P, dropped_MP), rtol=1e-12, atol=1e-12)


def test_infinity_is_not_dropped_in_silence():
    tuned_MP = torch.full((1, 64), torch.inf)
    merged_P = DARE().piece(torch.zeros(64), tuned_MP, Place(), {})
    assert not bool(merged_P.isfinite().any())
