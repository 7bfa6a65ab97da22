"""MoCo: the source's loop written out, with tasks absent, and a run cut in two."""

import pytest
import torch
from scipy.optimize import minimize

from polytask.balance import Balancer, MoCo
from polytask.errors import RunError, UsageError


def onto_simplex(point_K: torch.Tensor) -> torch.Tensor:
    """Return the nearest point of the simplex, by a general solver."""
    goal = point_K.numpy()
    found = minimize(
        lambda x: ((x - goal) ** 2).sum(),
        torch.full_like(point_K, 1 / len(goal)).numpy(),
        jac=lambda x: 2 * (x - goal),
        bounds=[(0, 1)] * len(goal),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        options={"ftol": 1e-15},
    )
    return torch.from_numpy(found.x)


def test_it_is_the_sources_algorithm_step_after_step(signal):
    method = MoCo(beta=0.4, beta_decay=0.6, gamma=0.05, gamma_decay=0.3, rho=0.2)
    state = method.start(3)
    average_KP, weights_K = torch.zeros(3, 5, dtype=torch.float64), torch.full((3,), 1 / 3).double()
    for n in range(1, 8):
        generator = torch.Generator().manual_seed(n)
        rows_KP = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        update = method(signal(rows_KP, n - 1), state)
        state = update.state
        average_KP = average_KP - 0.4 / n**0.6 * (average_KP - rows_KP)
        slope_K = (average_KP @ average_KP.T + 0.2 * torch.eye(3)) @ weights_K
        weights_K = onto_simplex(weights_K - 0.05 / n**0.3 * slope_K)
        torch.testing.assert_close(update.weights_K, weights_K, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(update.direction_P, weights_K @ average_KP, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state["average_TP"], average_KP)


def test_an_absent_task_keeps_its_average_and_its_weight(signal):
    method = MoCo()
    rows_KP = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = method(signal(rows_KP), method.start(3)).state
    update = method(signal(rows_KP[[0, 2]] * 2, 1, at=(0, 2)), first)
    for name in ("weights_T", "average_TP"):
        assert torch.equal(update.state[name][1], first[name][1])
        assert not torch.equal(update.state[name][0], first[name][0])
    assert float(update.state["weights_T"].sum()) == pytest.approx(1)
    assert float(update.weights_K.sum()) == pytest.approx(1)


def test_a_task_whose_weight_is_nought_may_come_alone(signal):
    method = MoCo()
    state = {
        "weights_T": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "average_TP": torch.zeros(2, 2, dtype=torch.float64),
    }
    update = method(signal(torch.ones(1, 2, dtype=torch.float64), at=(1,)), state)
    assert update.weights_K.tolist() == [1.0]
    assert update.direction_P.tolist() == [0.5, 0.5]
    assert update.state["weights_T"].tolist() == [1.0, 0.0]


def test_a_resumed_run_goes_on_bit_for_bit_though_its_state_grew(toy):
    def steps(balancer, model, count):
        for _ in range(count):
            model.zero_grad(set_to_none=True)
            balancer.backward(model.losses(inputs, targets))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad

    model, inputs, targets = toy(3)
    whole = Balancer(MoCo(), model.shared(), list(targets))
    steps(whole, model, 5)

    again, *_ = toy(3)
    first = Balancer(MoCo(), again.shared(), list(targets))
    steps(first, again, 2)
    second = Balancer(MoCo(), again.shared(), list(targets))
    second.load_state_dict(first.state_dict())
    steps(second, again, 3)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert all(
        torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items()
    )
    saved = whole.state_dict()
    saved["state.weights_T"] = torch.ones(2)
    with pytest.raises(RunError, match=r"'state.weights_T' has shape \(2,\), expected \(3,\)"):
        second.load_state_dict(saved)


def test_wrong_settings_are_refused():
    for settings in ({"beta": 0.0}, {"beta": 1.5}, {"gamma": -1.0}):
        with pytest.raises(UsageError, match=r"give beta in \(0, 1\] and gamma > 0"):
            MoCo(**settings)
    for name in ("beta_decay", "gamma_decay", "rho"):
        with pytest.raises(UsageError, match=rf"MoCo: {name} is -1; give a number >= 0"):
            MoCo(**{name: -1})
