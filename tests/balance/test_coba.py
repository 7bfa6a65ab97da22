"""CoBa: the paper's scores, written with numpy and scipy, and what they do to tasks."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from polytask.balance import Balancer, CoBa, Signal, State, coba
from polytask.errors import UsageError


def watch(method: CoBa, losses_NT: np.ndarray) -> list[State]:
    """Observe rows of losses, NaN where absent; return the states."""
    state, states = method.start(losses_NT.shape[1]), []
    for step, row in enumerate(torch.from_numpy(losses_NT)):
        index_K = (~row.isnan()).nonzero()[:, 0]
        state = method.observe(Signal(row[index_K], index_K, len(row), step), state)
        states.append(state)
    return states


def weights(method: CoBa, losses_NT: np.ndarray) -> np.ndarray:
    return np.stack([state["weights_T"].numpy() for state in watch(method, losses_NT)])


def slope(values: np.ndarray) -> float:
    at = np.flatnonzero(~np.isnan(values))
    return np.polyfit(at, values[at], 1)[0] if len(at) > 1 else 0.0


def over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return the ratio, 0 where both are 0, of which the paper says nothing."""
    return top / np.where(bottom > 0, bottom, 1)


def by_the_paper(losses_NT: np.ndarray, warmup: int, history: int, tau: float) -> np.ndarray:
    """Return every step's weights by the paper's formulas, all slopes remembered."""
    steps, tasks = losses_NT.shape
    first_T = np.array([column[~np.isnan(column)][0] for column in losses_NT.T])
    ratios = losses_NT / first_T
    slopes, worst, result = [], [], [np.full(tasks, 1 / tasks)] * (warmup - 1)
    for n in range(warmup, steps + 1):
        window = ratios[max(0, n - history) : n]
        slopes.append([slope(window[:, t]) for t in range(tasks)])
        worst.append(slope(np.nanmax(window, axis=1)))
        now, past = np.array(slopes[-1]), np.array(slopes[-history:])
        relative = softmax(over(tasks * now, np.abs(now).sum()))
        absolute = softmax(over(-len(past) * now, np.abs(past).sum(0)))
        every = np.array(worst)
        heights = softmax(over(-tau * len(every) * every, np.abs(every).sum()))
        factor = min(1.0, len(every) * heights[-1])
        weights = softmax(tasks * (factor * relative + (1 - factor) * absolute))
        least = 1 / (10 * tasks)
        if (weights < least).any():
            weights = weights * (1 - least * tasks) + least
        result.append(weights)
    return np.array(result)


def curves(steps: int, seed: int = 0) -> np.ndarray:
    """Return noisy losses: one falls fast, one slowly, one falls and then rises."""
    draw, time = np.random.default_rng(seed), np.arange(steps) / steps
    clean = [
        50 * np.exp(-5 * time),
        1 - 0.3 * time,
        0.01 * (1 - time + 1.5 * time**2 * (time > 0.5)),
    ]
    return np.stack(clean, 1) * np.exp(0.05 * draw.standard_normal((steps, 3)))


@pytest.mark.parametrize(("warmup", "history", "tau"), [(5, 10, 5.0), (10, 40, 1.0), (2, 2, 20.0)])
def test_weights_are_those_of_the_papers_formulas(warmup, history, tau):
    losses_NT = curves(80)
    found = weights(CoBa(warmup, history, tau), losses_NT)
    assert found == pytest.approx(by_the_paper(losses_NT, warmup, history, tau), rel=1e-8)
    assert found[: warmup - 1] == pytest.approx(1 / 3)
    assert not np.allclose(found[-1], 1 / 3, atol=0.02)


def test_steps_without_a_tasks_labels_are_left_out_of_its_slope():
    losses_NT = curves(60)
    losses_NT[::3, 0] = np.nan
    losses_NT[:7, 2] = np.nan
    found = weights(CoBa(5, 20), losses_NT)
    assert found == pytest.approx(by_the_paper(losses_NT, 5, 20, 5.0), rel=1e-8)


def test_a_step_without_any_label_is_no_observation():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(CoBa(), [leaf], ["a", "b"])
    balancer.observe({"a": None, "b": None})
    assert int(balancer.state["seen"]) == 0


def test_a_rising_task_loses_weight_and_a_slow_one_gains():
    time = np.linspace(0, 1, 60)[:, None]
    falling = weights(CoBa(10, 20), 1 - time * np.array([[0.9, 0.2]]))[12]
    assert falling[1] > falling[0]  # both fall: the slower one leads
    rising = np.where(time < 0.5, 1 - time, 0.5 + 2 * (time - 0.5)) * np.array([[1.0, 0.0]])
    rising[:, 1:] = 1 - 0.5 * time
    assert (weights(CoBa(10, 20), rising)[-10:, 0] < 0.5).all()


def test_no_weight_is_below_the_floor_and_all_sum_to_one():
    draw = np.random.default_rng(0)
    for tasks in (1, 2, 40):
        losses_NT = np.exp(draw.standard_normal((60, tasks)).cumsum(0) * 0.3)
        found = weights(CoBa(5, 10), losses_NT)
        assert found.sum(1) == pytest.approx(np.ones(60))
        assert (found >= 0.1 / tasks * (1 - 1e-12)).all()


def test_units_of_losses_change_nothing():
    losses_NT = curves(40)
    plain = weights(CoBa(5, 10), losses_NT)
    assert weights(CoBa(5, 10), losses_NT * [1e-10, 1.0, 1e15]) == pytest.approx(plain, rel=1e-7)


def test_losses_that_stand_still_are_weighed_alike():
    assert weights(CoBa(5, 10), np.ones((20, 4))) == pytest.approx(0.25)


def test_long_histories_of_the_maximum_are_thinned_out_and_hardly_change_a_weight(monkeypatch):
    losses_NT = curves(1500)
    whole = by_the_paper(losses_NT, 10, 20, 5.0)
    monkeypatch.setattr(coba, "SLOPES", 400)  # as many times the history as by default
    states = watch(CoBa(10, 20), losses_NT)
    found = np.stack([state["weights_T"].numpy() for state in states])
    assert found[:409] == pytest.approx(whole[:409], rel=1e-8)  # 400 slopes after 9 observations
    assert np.abs(found - whole).max() < 0.02
    assert {state["worst_S"].shape for state in states} == {(400,)}
    assert float(states[-1]["worst_counts_S"].sum()) == 1491  # none is forgotten


def test_a_loop_that_shows_no_validation_loss_is_told_so():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(CoBa(warmup=3, history=3), [leaf], ["a"])
    for _ in range(4):
        assert dict(balancer.backward({"a": leaf * 1})) == {"a": 1.0}
    with pytest.raises(UsageError, match=r"no validation loss in 4 updates; give those of a valid"):
        balancer.backward({"a": leaf * 1})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: CoBa(warmup=1), "warmup is 1; give at least 2"),
        (lambda: CoBa(history=50), "history is 50, less than the warmup of 100"),
        (lambda: CoBa(tau=0.0), "tau is 0.0; give a value > 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, text):
    with pytest.raises(UsageError, match=text):
        build()
