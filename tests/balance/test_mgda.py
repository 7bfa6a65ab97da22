"""MGDA: two tasks in closed form, and what its shortest vector promises to each task."""

import pytest
import torch

from polytask.balance import MGDA, UPGrad


@pytest.mark.parametrize("seed", range(5))
def test_two_tasks_in_closed_form(signal, seed):
    # The nearest point of a segment to the origin: Sener & Koltun 2018, equation 6.
    generator = torch.Generator().manual_seed(seed)
    one_P, two_P = rows_KP = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    share = float(((two_P - one_P) @ two_P) / (two_P - one_P).square().sum())
    share = min(max(share, 0.0), 1.0)
    weights_K = MGDA()(signal(rows_KP), {}).weights_K
    assert weights_K.tolist() == pytest.approx([share, 1 - share], abs=1e-12)


def test_every_task_improves_at_least_by_the_square_of_the_update(rows_KP, signal):
    update_P = MGDA()(signal(rows_KP), {}).weights_K @ rows_KP
    norms_K = rows_KP.norm(dim=1)
    slack_K = rows_KP @ update_P - update_P @ update_P
    assert bool((slack_K >= -1e-9 * norms_K * norms_K.min()).all())


def test_nearly_parallel_gradients_are_solved_and_not_approached(signal):
    """Frank-Wolfe is still far off after its 250 steps here."""
    rows_KP = torch.tensor([[1.0, 1e-5], [1.0, -2e-5], [3.0, 0.0]], dtype=torch.float64)
    weights_K = MGDA()(signal(rows_KP), {}).weights_K
    torch.testing.assert_close(
        weights_K, torch.tensor([2 / 3, 1 / 3, 0], dtype=torch.float64), rtol=1e-4, atol=1e-9
    )


def test_a_stationary_point_stops_it(signal):
    rows_KP = torch.tensor([[1.0, 0], [-1, 1], [0, -2]], dtype=torch.float64)
    weights_K = MGDA()(signal(rows_KP), {}).weights_K
    torch.testing.assert_close(weights_K, torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64))
    assert float((weights_K @ rows_KP).abs().max()) < 1e-12
    assert float((UPGrad()(signal(rows_KP), {}).weights_K @ rows_KP).abs().max()) < 1e-12
