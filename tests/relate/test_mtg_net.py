"""MTG-Net learns gains that depend on who is in a group, and says where it does not know."""

from itertools import combinations

import pytest
import torch

from polytask.errors import DataError, UsageError
from polytask.relate import Gains, MTGNet, cover

NAMES = tuple("abcdef")


def table():
    """Return all groups of six tasks: pairs help or hurt, and three of a kind hurt all."""
    generator = torch.Generator().manual_seed(0)
    pair_TT = torch.randn(6, 6, generator=generator).fill_diagonal_(0)
    groups = [g for size in range(2, 7) for g in combinations(range(6), size)]
    member_GT = torch.tensor([[t in g for t in range(6)] for g in groups])
    gain_GT = member_GT.float() @ pair_TT / (member_GT.sum(1, keepdim=True) - 1)
    return Gains(NAMES, member_GT, gain_GT.double())


def test_it_predicts_groups_it_has_not_seen_from_half_of_them():
    every = table()
    seen = torch.rand(len(every), generator=torch.Generator().manual_seed(1)) < 0.6
    random = torch.get_rng_state()
    net = MTGNet(NAMES, seed=3, ensemble=2, steps=200).fit(every.only(seen))
    assert torch.equal(torch.get_rng_state(), random)
    found = net.predict(every.member_GT[~seen])
    there = every.member_GT[~seen]
    truth, guess = every.gain_GT[~seen][there], found.gain_GT[there]
    assert float(torch.corrcoef(torch.stack([truth, guess]))[0, 1]) > 0.8
    spread_G = net.spread(every.member_GT)
    assert float(spread_G[~seen].mean()) > float(spread_G[seen].mean())
    best = cover(every, 3).score
    chosen = every.measured(cover(net.predict(every.member_GT), 3))
    assert float(chosen.mean()) > 0.8 * best


def test_the_seed_alone_decides_what_is_learned():
    every = table()
    same = [MTGNet(NAMES, seed=seed, steps=3).fit(every).predict(every.member_GT).gain_GT
            for seed in (1, 1, 2)]  # fmt: skip
    assert torch.equal(same[0].nan_to_num(), same[1].nan_to_num())
    assert not torch.equal(same[0].nan_to_num(), same[2].nan_to_num())


def test_outsiders_do_not_matter_and_a_task_alone_gains_nothing():
    net = MTGNet(NAMES, ensemble=2)
    member_GT = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        before = net(member_GT)
        for network in net.networks:
            network.embedding[2:] += 1
        assert torch.equal(net(member_GT)[:, 0], before[:, 0])
    assert not before[:, 1].any()
    assert not before[:, 0, 2:].any()


def test_missing_gains_are_not_learned_from():
    every = table()
    holes = every.gain_GT.clone()
    holes[::2, 0] = torch.nan
    net = MTGNet(NAMES, steps=5, ensemble=1).fit(Gains(NAMES, every.member_GT, holes))
    assert net.predict(every.member_GT).gain_GT[every.member_GT].isfinite().all()
    assert not net.spread(every.member_GT).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MTGNet(NAMES, width=33), UsageError, "2 heads do not divide"),
        (lambda: MTGNet(NAMES, ensemble=0), UsageError, "ensemble is 0"),
        (lambda: MTGNet(NAMES[:5]).fit(table()), UsageError, "it is of the tasks"),
        (lambda: MTGNet(NAMES).fit(Gains(NAMES, torch.eye(6), torch.zeros(6, 6))), DataError,
         "no gain of a group of two"),
    ],
)  # fmt: skip
def test_wrong_use_is_answered(call, error, message):
    with pytest.raises(error, match=message):
        call()
