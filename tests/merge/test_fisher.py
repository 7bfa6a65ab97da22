"""Fisher merging: its information against a loop over rows and classes, its average by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.family import Family
from polytask.merge.fisher import Fisher
from polytask.tasks import DenseLabels, Multiclass, SequenceLabels, Task, TaskSet

from .families import FAMILIES, TASKS, WITH_REGRESSION, inputs, mlp, moved


def looped(family, task, rows, probabilities):
    """The definition: mean over rows of sum_c p_c (d log p_c / d theta)^2, one row at a time."""
    leaves = {n: t.clone().requires_grad_() for n, t in family.shared(task).items()}
    total = {n: torch.zeros_like(t) for n, t in leaves.items()}
    for row in rows:
        output = family.output(task, leaves, row[None])
        for p in probabilities(output):
            grads = torch.autograd.grad(
                p.log(), list(leaves.values()), retain_graph=True, allow_unused=True
            )
            for name, g in zip(leaves, grads, strict=True):
                if g is not None:
                    total[name] += p.detach() * g**2
    return {n: t / len(rows) for n, t in total.items()}


PROBABILITIES = {
    "a": lambda z: torch.softmax(z[0], 0),
    "b": lambda z: torch.cat([1 - torch.sigmoid(z[0]), torch.sigmoid(z[0])]),
    "c": lambda z: torch.cat([1 - torch.sigmoid(z[0]), torch.sigmoid(z[0])]),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("task", TASKS.names)
def test_information_is_the_expectation_over_rows_and_classes(kind, task):
    family, rows = FAMILIES[kind](), inputs(kind, 5)[task]
    found = Fisher(batch_size=2).information(family, TASKS.named(task), rows)
    expected = looped(family, task, rows, PROBABILITIES[task])
    assert set(found) == set(family.names)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


def test_a_module_without_batched_gradients_is_looped_over_with_the_same_result():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(3, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    base = Recurrent().double()
    tasks = TaskSet([Task("a", Multiclass(3))])
    family = Family(base, {"a": moved(base, 1)}, tasks, own=["head"])
    rows = torch.rand(4, 6, 3, dtype=torch.float64)
    found = Fisher(batch_size=3).information(family, tasks[0], rows)
    expected = looped(family, "a", rows, PROBABILITIES["a"])
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


def test_merged_tensors_are_the_weighted_average():
    family, data = mlp(), inputs("mlp")
    fisher = Fisher(batch_size=8)
    merged = fisher(family, data)
    infos = [
        {n: f.numpy() for n, f in fisher.information(family, t, data[t.name], i).items()}
        for i, t in enumerate(TASKS)
    ]
    norms = [np.sqrt(sum((f**2).sum() for f in info.values())) for info in infos]
    for name in family.names:
        weights = [(info[name] + 1e-6) / norm for info, norm in zip(infos, norms, strict=True)]
        tuned = [family.shared(t)[name].numpy() for t in TASKS.names]
        expected = sum(w * x for w, x in zip(weights, tuned, strict=True)) / sum(weights)
        np.testing.assert_allclose(merged.shared[name].numpy(), expected, rtol=1e-9)
    assert merged.learned["weight/a"].item() == pytest.approx(1 / norms[0], rel=1e-6)


def test_equal_information_is_the_plain_average():
    family, data = mlp(), inputs("mlp")
    merged = Fisher(floor=1e12, normalise=False)(family, data)
    for name, mean in family.mean().items():
        torch.testing.assert_close(merged.shared[name], mean, rtol=1e-9, atol=1e-12)


def test_drawn_labels_agree_with_the_expectation_in_the_mean():
    family, rows = mlp(), inputs("mlp", 6)["a"]
    exact = Fisher().information(family, TASKS[0], rows)
    drawn = Fisher(draws=500).information(family, TASKS[0], rows)
    for name in exact:
        assert float((drawn[name] - exact[name]).norm() / exact[name].norm()) < 0.2


def test_a_regression_is_a_normal_of_variance_one():
    family = mlp(WITH_REGRESSION)
    rows = inputs("mlp", 5)["a"]
    found = Fisher().information(family, WITH_REGRESSION[1], rows)
    leaves = {n: t.clone().requires_grad_() for n, t in family.shared("price").items()}
    for name in found:
        total = 0
        for row in rows:
            out = family.output("price", leaves, row[None]).sum()
            total = total + torch.autograd.grad(out, leaves[name])[0] ** 2
        torch.testing.assert_close(found[name], total / len(rows))
    drawn = Fisher(draws=300).information(family, WITH_REGRESSION[1], rows)
    for name in found:
        assert float((drawn[name] - found[name]).norm() / found[name].norm()) < 0.2


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_positions_of_a_row_add_up():
    torch.manual_seed(0)
    base = Positions().double()
    tasks = TaskSet([Task("tags", SequenceLabels(3))])
    family = Family(base, {"tags": moved(base, 1)}, tasks, own=["head"])
    rows = torch.rand(3, 5, 3, dtype=torch.float64)
    found = Fisher().information(family, tasks[0], rows)
    expected = looped(family, "tags", rows, lambda z: torch.softmax(z[0], 1).flatten())
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


def test_what_would_take_too_many_gradients_says_what_to_do():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(1, 2, 1)
            self.head = nn.Conv2d(2, 4, 1)

        def forward(self, x):
            return self.head(self.body(x))

    tasks = TaskSet([Task("segments", DenseLabels(4))])
    base = Pixels()
    family = Family(base, {"segments": moved(base, 1)}, tasks, own=["head"])
    data = {"segments": torch.rand(2, 1, 20, 20)}
    with pytest.raises(UsageError, match=r"400 places and 4 classes, 1600 gradients; give draws=1"):
        Fisher()(family, data)
    assert torch.isfinite(Fisher(draws=1)(family, data).shared["body.weight"]).all()


def test_bad_settings_and_missing_data_are_refused():
    with pytest.raises(UsageError, match="Fisher: examples 0"):
        Fisher(examples=0)
    with pytest.raises(UsageError, match="task 'c' has none"):
        Fisher()(mlp(), {t: x for t, x in inputs("mlp").items() if t != "c"})
    with pytest.raises(UsageError, match="data for 'd'"):
        Fisher()(mlp(), inputs("mlp") | {"d": torch.rand(1, 4)})
