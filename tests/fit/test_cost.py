"""The memory an update needs, counted, equals the closed form for a model that has one."""

from types import ModuleType

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, Equal, PCGrad
from polytask.fit import Feed, FitConfig, build_optimiser, train_step
from polytask.fit.cost import Memory
from polytask.mix import Proportional, Schedule
from polytask.share import HardSharing

ROWS, FEATURES = 20, 6


@pytest.mark.parametrize("method", [Equal(), PCGrad()])
def test_a_linear_model_needs_what_can_be_counted_by_hand(
    tiny: ModuleType, method: Equal | PCGrad
) -> None:
    suite = tiny.shared().only(["c"])
    model = HardSharing(nn.Linear(FEATURES, 5), {"c": nn.Linear(5, 1)})
    balancer = Balancer(method, model.shared_parameters(), tasks=("c",))
    optimiser = build_optimiser(model, balancer, FitConfig())
    schedule = Schedule(Proportional(), [len(suite.train[0])], ROWS, 0)
    fed, _ = Feed(suite.train, suite.tasks, schedule).step(0, schedule.start())
    memory = Memory("cpu")
    with memory.watch():
        train_step(model, balancer, optimiser, fed)
    shared, own = FEATURES * 5 + 5, 5 + 1
    # Weights, gradients, Adam's two moments; a step counter per tensor.
    weights = 4 * (shared + own) * 4 + 4 * 4
    rows = 4 * shared if method.needs != "losses" else 0
    # For the backward pass: the rows (weight's gradient), their features (head's gradient).
    saved = 4 * ROWS * (FEATURES + 5)
    found = memory.bytes(model, optimiser, balancer) - weights - rows
    # The loss keeps some more, a few numbers per row: masks and differences.
    assert saved <= found <= saved + ROWS * 24 + 64
    assert found - saved < saved


def test_what_the_balance_holds_of_the_tasks_gradients_counts(tiny: ModuleType) -> None:
    (one, watcher), (two, _) = (
        tiny.run(tiny.shared(missing=0.0), method, epochs=1) for method in ("equal", "pcgrad")
    )
    shared = sum(p.numel() for p in watcher.model.shared_parameters())
    assert one.cost.peak_memory is not None
    assert two.cost.peak_memory is not None
    held = 4 * shared * 4  # four tasks' gradients
    # The weighted sum of the losses keeps a few numbers that the other way does not.
    assert two.cost.peak_memory - one.cost.peak_memory == pytest.approx(held, abs=64)
    assert one.cost.shared_parameters == shared
    assert one.cost.parameters == sum(p.numel() for p in watcher.model.parameters())


def test_counting_changes_no_number(tiny: ModuleType) -> None:
    suite = tiny.shared()
    gradients = []
    for watched in (True, False):
        model = tiny.model(suite)
        balancer = Balancer(Equal(), model.shared_parameters(), tasks=suite.tasks.names)
        optimiser = build_optimiser(model, balancer, FitConfig())
        schedule = Schedule(Proportional(), [50], 10, 0)
        fed, _ = Feed(suite.train, suite.tasks, schedule).step(0, schedule.start())
        if watched:
            with Memory("cpu").watch():
                train_step(model, balancer, optimiser, fed)
        else:
            train_step(model, balancer, optimiser, fed)
        gradients.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert gradients[0].equal(gradients[1])
