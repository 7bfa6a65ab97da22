"""RegMean: closed forms, the objective it minimises, convolutions, and what it leaves averaged."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.merge.family import Family
from polytask.merge.regmean import RegMean, unfolded
from polytask.tasks import Regression, Task, TaskSet

from .families import FAMILIES, TASKS, cnn, inputs, moved

TWO = TaskSet([Task("x", Regression()), Task("y", Regression())])


class Linear(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=bias)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.layer(x))


def family_of(base, own=("head",)):
    return Family(base, {"x": moved(base, 1), "y": moved(base, 2)}, TWO, own=own)


def data_of(*shape, rows=40):
    generator = torch.Generator().manual_seed(0)
    return {
        t: torch.randn(rows, *shape, generator=generator, dtype=torch.float64) @ mix
        if len(shape) == 1
        else torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
        for t, mix in zip(("x", "y"), torch.randn(2, shape[-1], shape[-1], generator=generator,
                                                  dtype=torch.float64), strict=True)
    }  # fmt: skip


def test_a_linear_layer_has_the_closed_form():
    family, data = family_of(Linear().double()), data_of(4)
    merged = RegMean(diagonal=0.9)(family, data).shared
    grams, pulls = np.zeros((4, 4)), np.zeros((4, 3))
    for task, x in data.items():
        gram = x.numpy().T @ x.numpy() / len(x)
        gram = 0.9 * gram + 0.1 * np.diag(np.diag(gram))
        grams += gram
        pulls += gram @ family.shared(task)["layer.weight"].numpy().T
    expected = np.linalg.solve(grams, pulls).T
    np.testing.assert_allclose(merged["layer.weight"].numpy(), expected, rtol=1e-10)
    bias = (family.shared("x")["layer.bias"] + family.shared("y")["layer.bias"]) / 2
    torch.testing.assert_close(merged["layer.bias"], bias)


def objective(family, data, weight):
    """sum_t |X_t W^T - X_t W_t^T|^2, means over rows."""
    return sum(
        float((x @ (weight - family.shared(t)["layer.weight"]).T).square().sum()) / len(x)
        for t, x in data.items()
    )


def test_it_minimises_the_stated_objective():
    family, data = family_of(Linear(bias=False).double()), data_of(4)
    weight = RegMean(diagonal=1.0)(family, data).shared["layer.weight"]
    least = objective(family, data, weight)
    assert least < objective(family, data, family.mean()["layer.weight"])
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        nearby = weight + 1e-3 * torch.randn(weight.shape, generator=generator).double()
        assert objective(family, data, nearby) > least


def test_tasks_that_solved_one_regression_by_least_squares_give_the_pooled_solution():
    """With G = X^T X and W_t the least-squares fit on task t, the merge is the fit on all rows."""
    generator = torch.Generator().manual_seed(2)
    base = Linear(bias=False).double()
    tuned, data, targets = {}, data_of(4), {}
    for task, x in data.items():
        targets[task] = torch.randn(len(x), 3, generator=generator, dtype=torch.float64)
        tuned[task] = moved(base, 0)
        tuned[task].layer.weight.data = torch.linalg.lstsq(x, targets[task]).solution.T
    family = Family(base, tuned, TWO, own=["head"])
    merged = RegMean(diagonal=1.0)(family, data).shared["layer.weight"]
    x, y = torch.cat(list(data.values())), torch.cat([targets[t] for t in data])
    torch.testing.assert_close(merged, torch.linalg.lstsq(x, y).solution.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 3, (3, 2), dilation=(1, 2), padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 2, 1),
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
    ],
)
def test_unfolded_rows_times_the_weights_are_the_convolution(layer):
    layer = layer.double()
    torch.manual_seed(0)
    sides = (7, 6) if isinstance(layer, nn.Conv2d) else (9,)
    x = torch.randn(3, 4, *sides, dtype=torch.float64)
    rows = unfolded(layer, x)
    weight = layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1)
    got = (rows @ weight.mT).transpose(0, 1).flatten(1)  # (rows, channels)
    expected = (layer(x) - layer.bias.reshape(-1, *[1] * len(sides))).transpose(0, 1).flatten(1).T
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_module_is_merged_and_models_that_agree_stay_as_they_are(kind):
    family, data = FAMILIES[kind](), inputs(kind)
    merged = RegMean()(family, data)
    assert set(merged.shared) == set(family.names)
    assert merged.notes == ()
    same = Family(
        family.hooked("a"), dict.fromkeys(TASKS.names, family.hooked("a")), TASKS, own=["head"]
    )
    if kind == "cnn":
        again = RegMean()(same, data).shared
        for name, tensor in again.items():
            torch.testing.assert_close(tensor, family.shared("a")[name], rtol=1e-9, atol=1e-9)


def test_convolutions_are_solved_by_group():
    family, data = cnn(), inputs("cnn")
    merged = RegMean(diagonal=1.0)(family, data).shared["body.3.weight"]
    # The second convolution has two groups, of inputs known from the first layers.
    grams = {t: RegMean().grams(family, TASKS.named(t), data[t])["body.3.weight"] for t in data}
    assert grams["a"].shape == (2, 18, 18)
    for g in range(2):
        total = sum(grams[t][g] for t in data)
        pulled = sum(
            grams[t][g] @ family.shared(t)["body.3.weight"].reshape(2, 3, 18)[g].T for t in data
        )
        expected = torch.linalg.solve(total, pulled).T
        torch.testing.assert_close(merged.reshape(2, 3, 18)[g], expected, rtol=1e-6, atol=1e-8)


def test_inputs_that_are_never_active_keep_the_average():
    family, data = family_of(Linear().double()), data_of(4)
    for x in data.values():
        x[:, 2] = 0
    merged = RegMean(diagonal=1.0)(family, data).shared["layer.weight"]
    torch.testing.assert_close(merged[:, 2], family.mean()["layer.weight"][:, 2])


def test_fewer_rows_than_inputs_still_minimise():
    family = family_of(Linear(bias=False).double())
    data = {t: x[:1] for t, x in data_of(4).items()}
    weight = RegMean(diagonal=1.0)(family, data).shared["layer.weight"]
    assert objective(family, data, weight) < 1e-18  # two rows can be fitted exactly


def test_layers_that_do_not_run_as_modules_are_averaged_and_named():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.unused = nn.Linear(4, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))

    family, data = family_of(Attends().double()), data_of(3, 4)
    merged = RegMean()(family, data)
    said = " ".join(merged.notes)
    assert "attention.out_proj.weight was averaged" in said
    assert "unused.weight" in said
    torch.testing.assert_close(merged.shared["unused.weight"], family.mean()["unused.weight"])


def test_sequences_and_pictures_weigh_tasks_alike():
    x = torch.rand(2, 5, 4)
    assert unfolded(nn.Linear(4, 3), x).shape == (1, 10, 4)
    padded = functional.pad(torch.rand(1, 4, 3, 3), (1, 1, 1, 1))
    assert unfolded(nn.Conv2d(4, 2, 3), padded).shape == (1, 9, 36)


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match=r"diagonal 1.5"):
        RegMean(diagonal=1.5)
    with pytest.raises(UsageError, match="task 'x' has none"):
        RegMean()(family_of(Linear()), {"y": torch.rand(2, 4)})
