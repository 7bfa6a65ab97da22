"""CAGrad: its update and its worst case prove each other right, on hard gradients too."""

import pytest
import torch

from polytask.balance import MGDA, CAGrad
from polytask.errors import UsageError


@pytest.mark.parametrize("c", [0.0, 0.2, 0.4, 0.9])
def test_no_direction_of_the_ball_is_better_for_the_task_worst_off(rows_KP, signal, c):
    """For every w of the simplex, g_w g_0 + c |g_0| |g_w| bounds from above what can be had."""
    tasks = len(rows_KP)
    weights_K = CAGrad(c)(signal(rows_KP), {}).weights_K
    update_P, mean_P = weights_K @ rows_KP, rows_KP.mean(0)
    radius = c * float(mean_P.norm())
    longest = float(rows_KP.norm(dim=1).max())
    assert float((update_P - mean_P).norm()) <= radius + 1e-9 * longest
    cases_NK = [MGDA()(signal(rows_KP), {}).weights_K, *torch.eye(tasks, dtype=torch.float64)]
    worst_K = weights_K - 1 / tasks
    if c and float(worst_K.sum()) > 0:
        cases_NK.append(worst_K / worst_K.sum())
    bound = min(
        float(case_K @ rows_KP @ mean_P + radius * (case_K @ rows_KP).norm()) for case_K in cases_NK
    )
    had = float((rows_KP @ update_P).min())
    assert had >= bound - 1e-9 * longest * float(mean_P.norm())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tasks", [2, 5, 40])
def test_random_gradients_of_unlike_length(signal, seed, tasks):
    generator = torch.Generator().manual_seed(seed)
    scale_K1 = torch.exp(2 * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
    rows_KP = torch.randn(tasks, tasks + 5, generator=generator, dtype=torch.float64) * scale_K1
    weights_K = CAGrad(0.5)(signal(rows_KP), {}).weights_K
    mean_P, update_P = rows_KP.mean(0), weights_K @ rows_KP
    worst_K = weights_K - 1 / tasks
    worst_P = (worst_K / worst_K.sum()) @ rows_KP
    radius = 0.5 * float(mean_P.norm())
    bound = float(worst_P @ mean_P + radius * worst_P.norm())
    assert float((rows_KP @ update_P).min()) == pytest.approx(bound, rel=1e-6, abs=1e-9)
    assert float((update_P - mean_P).norm()) == pytest.approx(radius, rel=1e-9)


KINDS = {
    "random": lambda rows_KP: rows_KP,
    "times 1e15": lambda rows_KP: rows_KP * 1e15,
    "in conflict": lambda rows_KP: rows_KP - 0.9 * rows_KP.mean(0),
    "in agreement": lambda rows_KP: rows_KP.abs(),
    "of half the rank": lambda rows_KP: rows_KP[:, : len(rows_KP) // 2],
    "one twice": lambda rows_KP: torch.cat([rows_KP[:-1], rows_KP[:1]]),
    "two opposed": lambda rows_KP: torch.cat([rows_KP[:-1], -2 * rows_KP[:1]]),
}


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("tasks", [2, 3, 8, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_that_can_be_had_is_had_to_ten_digits(signal, kind, tasks, c):
    """Update and worst case bound each other: by duality both are right where they meet."""
    generator = torch.Generator().manual_seed(tasks)
    rows_KP = torch.randn(tasks, 2 * tasks + 6, generator=generator, dtype=torch.float64)
    rows_KP = KINDS[kind](rows_KP)
    weights_K = CAGrad(c)(signal(rows_KP), {}).weights_K
    mean_P, update_P = rows_KP.mean(0), weights_K @ rows_KP
    radius = c * float(mean_P.norm())
    assert float((update_P - mean_P).norm()) <= radius * (1 + 1e-10)
    worst_K = weights_K - 1 / tasks
    cases_NK = [MGDA()(signal(rows_KP), {}).weights_K]
    if float(worst_K.sum()) > 0 and float(worst_K.min()) >= -1e-12:
        cases_NK.append(worst_K.clamp(min=0) / worst_K.clamp(min=0).sum())
    bound = min(
        float(case_K @ rows_KP @ mean_P + radius * (case_K @ rows_KP).norm()) for case_K in cases_NK
    )
    length = float(rows_KP.norm(dim=1).max() * (mean_P.norm() + radius))
    assert abs(bound - float((rows_KP @ update_P).min())) <= 1e-10 * length


def test_at_a_stationary_face_the_step_does_not_vanish(signal):
    """Two opposed gradients and one at right angles: the third can improve and hurt nobody."""
    rows_KP = torch.tensor([[1.0, 0], [-1, 0], [0, 3]], dtype=torch.float64)
    update_P = CAGrad(0.4)(signal(rows_KP), {}).weights_K @ rows_KP
    torch.testing.assert_close(update_P, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("c", [-0.1, 1.0, float("nan")])
def test_a_radius_outside_its_range_is_refused(c):
    with pytest.raises(UsageError, match=r"CAGrad: c is .*; give a number in \[0, 1\)"):
        CAGrad(c)
