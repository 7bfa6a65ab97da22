"""GradDrop and the trimmed mean: coordinate by coordinate, against the definition."""

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from polytask.balance import GradDrop, TrimmedMean
from polytask.balance.gradients import CHUNK
from polytask.errors import UsageError


def test_every_coordinate_keeps_one_sign_alone(signal):
    rows_KP = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1))
    direction_P = GradDrop(seed=3)(signal(rows_KP), {}).direction_P
    plus_P, minus_P = rows_KP.clamp(min=0).sum(0), rows_KP.clamp(max=0).sum(0)
    is_plus_P = direction_P > 0
    torch.testing.assert_close(direction_P, torch.where(is_plus_P, plus_P, minus_P))
    # Drawn with the probability the source gives: compare groups of like probability.
    chance_P = (1 + rows_KP.sum(0) / rows_KP.abs().sum(0)) / 2
    for low in (0.0, 0.25, 0.5, 0.75):
        group_P = (chance_P >= low) & (chance_P < low + 0.25)
        count = int(group_P.sum())
        expected, found = float(chance_P[group_P].mean()), float(is_plus_P[group_P].float().mean())
        assert abs(found - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_its_mean_over_draws_is_the_expectation(signal):
    rows_KP = torch.tensor([[3.0, -1, 2], [-1, -2, 0]])
    draws = [GradDrop()(signal(rows_KP, step), {}).direction_P for step in range(4000)]
    # First coordinate: 3 with the probability 3/4, else -1. The others have one sign.
    mean_P = torch.stack(draws).mean(0)
    assert mean_P.tolist() == pytest.approx([2.0, -3.0, 2.0], abs=4 * 3**0.5 / 4000**0.5)


def test_a_leak_lets_the_rest_through(signal):
    rows_KP = torch.randn(4, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    none_P, all_P = (GradDrop(leak)(signal(rows_KP), {}).direction_P for leak in (0.0, 1.0))
    torch.testing.assert_close(all_P, rows_KP.sum(0))
    some_P = GradDrop(0.25)(signal(rows_KP), {}).direction_P
    torch.testing.assert_close(some_P, 0.75 * none_P + 0.25 * all_P)


def test_draws_follow_from_the_seed_and_the_step(signal):
    rows_KP = torch.randn(3, CHUNK + 7, generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()
    one, same, step, seed = (
        GradDrop(seed=s)(signal(rows_KP, at), {}).direction_P
        for s, at in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    for other in (step, seed):
        for part in (slice(None, CHUNK), slice(CHUNK, None)):
            assert not torch.equal(one[part], other[part])


def test_hard_gradients_stay_finite_and_zeros_zero(rows_KP, signal):
    direction_P = GradDrop()(signal(rows_KP), {}).direction_P
    assert bool(torch.isfinite(direction_P).all())
    assert not bool(direction_P[(rows_KP == 0).all(0)].any())


@pytest.mark.parametrize("tasks", [5, 6])
@pytest.mark.parametrize("trim", [0, 1, 2])
def test_the_trimmed_mean_is_scipys(signal, tasks, trim):
    generator = torch.Generator().manual_seed(tasks)
    rows_KP = torch.randn(tasks, CHUNK + 3, generator=generator, dtype=torch.float64)
    update = TrimmedMean(trim)(signal(rows_KP), {})
    expected_P = trim_mean(rows_KP.numpy(), trim / tasks + 1e-9, axis=0)
    np.testing.assert_allclose(update.direction_P.numpy(), expected_P, rtol=1e-12, atol=1e-15)
    assert update.weights_K.tolist() == pytest.approx([1 / tasks] * tasks)


@pytest.mark.parametrize(("tasks", "kept"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_too_few_tasks_are_trimmed_less(signal, tasks, kept):
    rows_KP = torch.arange(1.0, tasks + 1)[:, None] ** 2
    middle_K = rows_KP[(tasks - kept) // 2 :][:kept]
    assert float(TrimmedMean(9)(signal(rows_KP), {}).direction_P) == float(middle_K.mean())


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match=r"leak is 2; give a number from 0 to 1"):
        GradDrop(2)
    with pytest.raises(UsageError, match="seed is -1"):
        GradDrop(seed=-1)
    with pytest.raises(UsageError, match="trim is -1; give an integer >= 0"):
        TrimmedMean(-1)
