"""RLW: softmax of normal numbers, one draw per step, the same for every micro-batch of it."""

import math

import numpy as np
import pytest
import torch

from polytask.balance import RLW, Balancer
from polytask.errors import UsageError


def test_weights_sum_to_one_and_their_logarithms_are_normal(weigh):
    steps = [[1.0] * 8] * 500
    weights = np.array(weigh(RLW(seed=3), steps))
    assert weights.sum(1) == pytest.approx(np.ones(500))
    # log w_i - log w_j = z_i - z_j is normal with variance 2, whatever the normaliser.
    gaps = np.diff(np.log(weights), axis=1)
    assert gaps.mean() == pytest.approx(0.0, abs=0.1)
    assert gaps.var() == pytest.approx(2.0, rel=0.1)
    assert (np.abs(gaps) < math.sqrt(2)).mean() == pytest.approx(0.6827, abs=0.03)


def test_every_step_and_every_seed_has_its_own_draw(weigh):
    draws = [tuple(w) for seed in range(3) for w in weigh(RLW(seed), [[1.0, 1.0]] * 4)]
    assert len(set(draws)) == 12
    assert weigh(RLW(1), [[1.0, 1.0]] * 4) == weigh(RLW(1), [[5.0, 0.1]] * 4)


def test_an_absent_task_takes_its_weight_along(weigh):
    whole, part = weigh(RLW(), [[1.0, 1.0, 1.0]])[0], weigh(RLW(), [[1.0, math.nan, 1.0]])[0]
    assert [part[0], part[2]] == [whole[0], whole[2]]


def test_micro_batches_of_one_update_share_the_draw():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(RLW(), [leaf], ["a", "b"])
    first = dict(balancer.backward({"a": leaf * 1, "b": leaf * 1}, accumulate=True))
    assert dict(balancer.backward({"a": leaf * 1, "b": leaf * 1})) == first
    assert dict(balancer.backward({"a": leaf * 1, "b": leaf * 1})) != first


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="RLW: seed is -1; give an integer >= 0"):
        RLW(-1)
