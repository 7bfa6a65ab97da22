"""DWA: the source's weights epoch by epoch, with labels missing too."""

import math

import pytest
import torch

from polytask.balance import DWA, Balancer, Signal
from polytask.errors import RunError, UsageError


def run(method: DWA, epochs: list[list[list[float]]]) -> list[list[float]]:
    """Feed losses[epoch][step][task], NaN where absent; return the weights of each epoch."""
    state = method.start(len(epochs[0][0]))
    weights, step = [], 0
    for epoch, steps in enumerate(epochs):
        for losses in steps:
            losses_T = torch.tensor(losses, dtype=torch.float64)
            index_K = torch.nonzero(~losses_T.isnan())[:, 0]
            signal = Signal(losses_T[index_K], index_K, len(losses), step, epoch)
            update = method(signal, state)
            state, step = update.state, step + 1
        weights.append(state["weights_T"].tolist())
    return weights


def softmax(*rates: float, temperature: float = 2.0) -> list[float]:
    powers = [math.exp(rate / temperature) for rate in rates]
    return [len(rates) * power / sum(powers) for power in powers]


def test_weights_follow_the_ratio_of_the_last_two_epochs():
    epochs = [[[1.0, 8.0], [3.0, 8.0]], [[1.0, 4.0]], [[0.5, 4.0]], [[9.0, 9.0]]]
    weights = run(DWA(), epochs)
    assert weights[:2] == [[1.0, 1.0], [1.0, 1.0]]  # no two epochs are over yet
    assert weights[2] == pytest.approx(softmax(1 / 2, 4 / 8))
    assert weights[3] == pytest.approx(softmax(0.5 / 1, 4 / 4))
    hot = run(DWA(temperature=0.5), epochs)[3]
    assert hot == pytest.approx(softmax(0.5, 1.0, temperature=0.5))


@pytest.mark.parametrize("tasks", [1, 2, 8, 40])
def test_it_is_the_authors_rule_whatever_the_losses_units(tasks):
    """Means over epochs e - 1 and e - 2, from the third epoch on; as in LibMTL too."""
    draw = torch.Generator().manual_seed(tasks)
    unit_T = torch.logspace(-10, 15, tasks, dtype=torch.float64)
    losses_EST = torch.randn(6, 3, tasks, generator=draw, dtype=torch.float64).exp() * unit_T
    weights = run(DWA(), losses_EST.tolist())
    mean_ET = losses_EST.mean(1)
    for epoch in range(6):
        expected_T = torch.ones(tasks, dtype=torch.float64)
        if epoch > 1:
            rate_T = mean_ET[epoch - 1] / mean_ET[epoch - 2]
            expected_T = tasks * torch.softmax(rate_T / 2.0, dim=0)
        assert weights[epoch] == pytest.approx(expected_T.tolist(), rel=1e-10)


def test_means_are_over_the_steps_that_have_the_task():
    absent = math.nan
    epochs = [[[1.0, 2.0], [absent, 4.0]], [[absent, 6.0], [2.0, absent]], [[1.0, 1.0]]]
    assert run(DWA(), epochs)[2] == pytest.approx(softmax(2 / 1, 6 / 3))


def test_a_task_without_labels_in_an_epoch_has_the_rate_one():
    absent = math.nan
    epochs = [[[1.0, 2.0]], [[absent, 1.0]], [[3.0, 4.0]], [[3.0, 2.0]], [[1.0, 1.0]]]
    weights = run(DWA(), epochs)
    assert weights[2] == pytest.approx(softmax(1, 1 / 2))
    assert weights[3] == pytest.approx(softmax(1, 4 / 1))
    assert weights[4] == pytest.approx(softmax(3 / 3, 2 / 4))


def test_the_engine_counts_the_epochs():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(DWA(), [leaf], ["a", "b"], steps_per_epoch=2)
    ratios = []
    for step in range(6):
        a, b = (1.0, 4.0) if step < 2 else (1.0, 1.0)
        ratios.append(list(balancer.backward({"a": leaf * a, "b": leaf * b}).values()))
    assert ratios[:4] == [[1.0, 1.0]] * 4
    assert ratios[4:] == [pytest.approx(softmax(1.0, 0.25))] * 2


def test_a_negative_mean_loss_names_the_task():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(DWA(), [leaf], ["left", "right"], steps_per_epoch=1)
    balancer.backward({"left": leaf, "right": leaf * -0.5})
    with pytest.raises(
        RunError, match=r"mean loss of task 'right' over epoch 0 is -0.5; .*none may be negative"
    ):
        balancer.backward({"left": leaf * 1, "right": leaf * 1})


def test_without_the_length_of_an_epoch_it_is_refused():
    with pytest.raises(UsageError, match=r"DWA compares epochs; give Balancer\(..., steps_per_ep"):
        Balancer(DWA(), [])


@pytest.mark.parametrize("temperature", [0, -2, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UsageError, match=r"temperature is .*; give a value > 0"):
        DWA(temperature)
