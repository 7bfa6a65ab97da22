"""GradVac: weights from the Gramian against the source's algorithm run on the gradients."""

import numpy as np
import pytest
import torch

from polytask.balance import GradVac
from polytask.errors import UsageError


def on_rows(rows_KP: torch.Tensor, goals_KK: torch.Tensor, beta: float, step: int) -> torch.Tensor:
    """Return algorithm 1 of the source; move the goals in place. The order is GradVac's, seed 4."""
    tasks = len(rows_KP)
    keys = np.random.default_rng((4, step)).random((tasks, tasks))
    total_P = torch.zeros_like(rows_KP[0])
    for i in range(tasks):
        turned_P = rows_KP[i].clone()
        for j in np.argsort(keys[i]).tolist():
            if j == i:
                continue
            length, other = turned_P.norm(), rows_KP[j].norm()
            cosine = turned_P @ rows_KP[j] / (length * other)
            goal = goals_KK[i, j].clone()
            if cosine < goal:
                sine, goal_sine = (1 - cosine**2).sqrt(), (1 - goal**2).sqrt()
                turned_P += (
                    length * (goal * sine - cosine * goal_sine) / (other * goal_sine) * rows_KP[j]
                )
            goals_KK[i, j] = (1 - beta) * goal + beta * cosine
        total_P += turned_P
    return total_P


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_it_is_the_sources_algorithm_step_after_step(signal, beta, scale):
    method = GradVac(beta, seed=4)
    state, goals_KK = method.start(5), torch.zeros(5, 5, dtype=torch.float64)
    turned = 0
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        rows_KP = scale * torch.randn(5, 7, generator=generator, dtype=torch.float64)
        update = method(signal(rows_KP, step), state)
        state = update.state
        expected_P = on_rows(rows_KP, goals_KK, beta, step)
        torch.testing.assert_close(
            update.weights_K @ rows_KP, expected_P, rtol=1e-9, atol=1e-9 * scale
        )
        turned += int((expected_P - rows_KP.sum(0)).norm() > 1e-3 * scale)
    torch.testing.assert_close(state["goals_TT"], goals_KK, rtol=1e-8, atol=1e-10)
    assert turned == 12


def test_a_turned_gradient_meets_its_goal(signal):
    method = GradVac()
    rows_KP = torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64)
    state = {"goals_TT": torch.full((2, 2), 0.6, dtype=torch.float64)}
    # (1, 0) + w (0, 2) has the cosine 0.6 with (0, 2): w = 3 / 8; the other way round w = 3 / 2.
    weights_K = method(signal(rows_KP), state).weights_K
    assert weights_K.tolist() == pytest.approx([1 + 1.5, 1 + 0.375])


def test_goals_of_absent_tasks_wait(signal):
    method = GradVac(beta=0.5)
    rows_KP = torch.tensor([[1.0, 1], [1, 0]], dtype=torch.float64)
    goals_TT = method(signal(rows_KP, at=(0, 2), tasks=3), method.start(3)).state["goals_TT"]
    half = 0.5 * 0.5**0.5
    expected_TT = torch.tensor([[0, 0, half], [0, 0, 0], [half, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(goals_TT, expected_TT)


@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_hard_gradients_give_finite_weights_for_many_steps(rows_KP, signal, beta):
    method = GradVac(beta)
    state = method.start(len(rows_KP))
    for step in range(30):
        update = method(signal(rows_KP if step % 2 else -rows_KP.flip(0), step), state)
        state = update.state
        assert bool(torch.isfinite(update.weights_K).all())
        assert float(state["goals_TT"].abs().max()) <= 1


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match=r"beta is 1.5; give a number from 0 to 1"):
        GradVac(1.5)
    with pytest.raises(UsageError, match="seed is -1; give an integer >= 0"):
        GradVac(seed=-1)
