"""AdaMerging: its gradient against finite differences, its steps by hand, ++ against the text."""

import numpy as np
import pytest
import torch

from polytask.merge.adamerging import AdaMerging
from polytask.merge.batches import Draw
from polytask.merge.classes import entropy
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.rounds import Rounds
from polytask.merge.selected import selected

from .families import FAMILIES, ROWS, TASKS, inputs, mlp


def summed_entropy(family, data, merged):
    return sum(
        float(entropy(task, family.output(task.name, merged, data[task.name]), "test"))
        for task in TASKS
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("level", ["task", "layer"])
def test_gradient_of_the_summed_entropy_is_that_of_finite_differences(kind, level):
    family, data = FAMILIES[kind](), inputs(kind)
    coefficients = Coefficients(family.base, family.deltas, 0.3, level)
    lam = coefficients.values.double().requires_grad_()
    rounds = Rounds(family, data, Draw(ROWS, 0))

    def of_task(task, shared, batch):
        return entropy(task, family.output(task.name, shared, batch), "test")

    total = pull(coefficients.merge(lam), rounds.losses(0, of_task))
    assert float(total) == pytest.approx(
        summed_entropy(family, data, coefficients.merge(lam.detach())), rel=1e-12
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        step = torch.randn(lam.shape, generator=generator, dtype=torch.float64)
        up, down = (
            summed_entropy(family, data, coefficients.merge(lam.detach() + sign * 1e-5 * step))
            for sign in (1, -1)
        )
        assert float((lam.grad * step).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-5)


def test_the_first_round_moves_every_coefficient_by_the_learning_rate():
    """Adam's first step, in the direction that lowers the entropy."""
    family, data = mlp(), inputs("mlp")
    merged = AdaMerging(level="task", rounds=1, batch_size=ROWS, learning_rate=0.01)(family, data)
    lam = merged.learned["coefficients"]
    torch.testing.assert_close((lam - 0.3).abs(), torch.full((3,), 0.01), rtol=1e-3, atol=1e-6)
    start = Coefficients(family.base, family.deltas, 0.3, "task")
    before = summed_entropy(family, data, start.merge(start.values))
    assert merged.losses[0] == pytest.approx(before)
    assert summed_entropy(family, data, merged.shared) < before


def test_entropy_falls_and_coefficients_stay_in_their_range():
    family, data = mlp(), inputs("mlp")
    merged = AdaMerging(rounds=100, learning_rate=0.05)(family, data)
    lam = merged.learned["coefficients"]
    assert lam.shape == (len(family.names), 3)
    assert float(lam.min()) >= 0
    assert float(lam.max()) <= 1
    assert float(lam.max()) == 1 or float(lam.min()) == 0  # some reached it
    assert merged.losses[-1] < merged.losses[0]


def test_merged_tensors_are_base_plus_coefficients_times_task_vectors():
    family, data = mlp(), inputs("mlp")
    merged = AdaMerging(rounds=3)(family, data)
    lam = merged.learned["coefficients"].double()
    for i, name in enumerate(family.names):
        expected = family.base[name].clone()
        for t, task in enumerate(TASKS.names):
            expected += lam[i, t] * (family.shared(task)[name] - family.base[name])
        torch.testing.assert_close(merged.shared[name], expected)


def test_plus_keeps_what_ties_keeps():
    """The equations in numpy: trim each over the whole model, elect, keep what agrees."""
    deltas = mlp().deltas
    flat = np.concatenate([d.flatten(1).numpy() for d in deltas.values()], 1)
    kept = round(0.2 * flat.shape[1])
    trimmed = np.zeros_like(flat)
    for row, out in zip(flat, trimmed, strict=True):
        top = np.argsort(-np.abs(row))[:kept]
        out[top] = row[top]
    sign = np.sign(trimmed.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    expected = np.where(np.sign(trimmed) == sign, trimmed, 0)
    found = selected(deltas, 0.2)
    got = np.concatenate([d.flatten(1).numpy() for d in found.values()], 1)
    np.testing.assert_array_equal(got, expected)
    everything = selected({"w": torch.tensor([[1.0, -2.0], [3.0, 1.0]])}, 1.0)["w"]
    assert everything.tolist() == [[1.0, -2.0], [3.0, 0.0]]
