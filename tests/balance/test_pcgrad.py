"""PCGrad: weights from the Gramian against the source's algorithm run on the gradients."""

import numpy as np
import pytest
import torch

from polytask.balance import PCGrad
from polytask.errors import UsageError


def on_rows(rows_KP: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Return algorithm 1 of the source, on full gradients, in the order PCGrad draws."""
    tasks = len(rows_KP)
    keys = np.random.default_rng((seed, step)).random((tasks, tasks))
    total_P = torch.zeros_like(rows_KP[0])
    for i in range(tasks):
        projected_P = rows_KP[i].clone()
        for j in np.argsort(keys[i]).tolist():
            product = projected_P @ rows_KP[j]
            if j != i and product < 0:
                projected_P -= product / (rows_KP[j] @ rows_KP[j]) * rows_KP[j]
        total_P += projected_P
    return total_P


def test_it_is_the_sources_algorithm(rows_KP, signal):
    for step in range(5):
        weights_K = PCGrad(seed=4)(signal(rows_KP, step), {}).weights_K
        expected_P = on_rows(rows_KP, seed=4, step=step)
        scale = float(rows_KP.abs().max()) or 1.0
        difference = (weights_K @ rows_KP - expected_P).abs().max()
        assert float(difference) <= 1e-10 * scale


def test_two_tasks_in_conflict_by_hand(signal):
    # g1 = (1, 0), g2 = (-1, 1): product -1; g1' = (1/2, 1/2), g2' = (0, 1); sum (1/2, 3/2)
    rows_KP = torch.tensor([[1.0, 0], [-1, 1]], dtype=torch.float64)
    weights_K = PCGrad()(signal(rows_KP), {}).weights_K
    assert weights_K.tolist() == [2.0, 1.5]
    assert (weights_K @ rows_KP).tolist() == [0.5, 1.5]


def test_without_conflict_it_is_the_plain_sum(signal):
    rows_KP = torch.rand(5, 8, dtype=torch.float64)
    assert PCGrad()(signal(rows_KP), {}).weights_K.tolist() == [1.0] * 5


def test_two_tasks_may_change_places(signal):
    rows_KP = torch.tensor([[3.0, 1, 0], [-2, 1, 5]], dtype=torch.float64)
    one_K = PCGrad()(signal(rows_KP), {}).weights_K
    other_K = PCGrad()(signal(rows_KP.flip(0)), {}).weights_K
    torch.testing.assert_close(one_K, other_K.flip(0), rtol=1e-14, atol=0)


def test_the_order_changes_with_the_step_and_the_seed(signal):
    generator = torch.Generator().manual_seed(2)
    rows_KP = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weights = [PCGrad(seed)(signal(rows_KP, step), {}).weights_K for seed, step in
               ((0, 0), (0, 1), (1, 0), (0, 0))]  # fmt: skip
    assert not torch.allclose(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    assert torch.equal(weights[0], weights[3])


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="seed is -1; give an integer >= 0"):
        PCGrad(seed=-1)
