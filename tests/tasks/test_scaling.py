"""Regression: scaling learned on train and undone in metrics, which equal scikit-learn's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from polytask.errors import DataError, UsageError
from polytask.tasks import DenseRegression, Regression

NAN = float("nan")


def values(
    kind: Regression | DenseRegression, output: torch.Tensor, target: torch.Tensor
) -> dict[str, float]:
    found = {}
    for metric in kind.metrics():
        meter = metric.build()
        for rows in (slice(0, 3), slice(3, None)):
            meter.update(*kind.scores(output[rows], target[rows]))
        found[metric.name] = float(meter.compute())
    return found


def test_fit_learns_mean_and_population_deviation() -> None:
    kind = Regression().fit(torch.tensor([1.0, 3.0, NAN, 5.0]), "y")
    assert kind.mean == 3.0
    assert kind.scale == pytest.approx(math.sqrt(8 / 3))
    encoded = kind.encode(torch.tensor([3.0, NAN]))
    assert encoded[0] == 0
    assert encoded[1].isnan()


@settings(max_examples=30, deadline=None)
@given(
    mean=st.sampled_from([0.0, -3.0, 1990.0, 1e6]),
    scale=st.sampled_from([1e-6, 0.01, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_metrics_equal_sklearn_in_any_unit(mean: float, scale: float, seed: int) -> None:
    """Large means cancel in float32, and torchmetrics takes small sums of squares for 0."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    target = mean + scale * normal[0]
    target[::7] = NAN
    kind = Regression(unit="kelvin").fit(target, "y")
    output = kind.encode(mean + scale * (normal[0] + 0.5 * normal[1]))[:, None]
    output = torch.where(output.isnan(), 0.0, output)
    there = ~target.isnan()
    labels = target[there]
    # The model's float32 output, in the target's unit again.
    predicted = output[:, 0].double()[there] * kind.scale + kind.mean
    found = values(kind, output, target)
    rmse = reference.root_mean_squared_error(labels, predicted)
    assert found["RMSE"] == pytest.approx(rmse, rel=1e-6)
    mae = reference.mean_absolute_error(labels, predicted)
    assert found["MAE"] == pytest.approx(mae, rel=1e-6)
    assert found["R2"] == pytest.approx(reference.r2_score(labels, predicted), abs=1e-4)
    explained = reference.explained_variance_score(labels, predicted)
    assert found["explained variance"] == pytest.approx(explained, abs=1e-4)
    assert [m.unit for m in kind.metrics()] == ["kelvin", "kelvin", "fraction", "fraction"]
    assert [m.direction for m in kind.metrics()] == ["min", "min", "max", "max"]


def test_equal_labels_in_a_split_have_no_variance_to_explain() -> None:
    found = values(Regression(), torch.zeros(4, 1), torch.full((4,), 0.1))
    assert found["RMSE"] == pytest.approx(0.1)
    assert math.isnan(found["R2"])
    assert math.isnan(found["explained variance"])


def test_dense_regression_is_measured_per_pixel() -> None:
    target = torch.arange(48.0).reshape(4, 3, 4)
    target[1, 2] = NAN
    kind = DenseRegression().fit(target, "depth")
    there = ~target.isnan()
    assert kind.mean == pytest.approx(float(target[there].mean()))
    output = kind.encode(target.nan_to_num(0.0)).unsqueeze(1) + 0.25
    found = values(kind, output, target)
    assert list(found) == ["RMSE", "MAE"]
    assert found["RMSE"] == pytest.approx(0.25 * kind.scale, rel=1e-5)
    assert found["MAE"] == pytest.approx(0.25 * kind.scale, rel=1e-5)


@pytest.mark.parametrize("kind", [Regression(), DenseRegression()])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        (torch.tensor([0.1, 0.1, NAN]), r"'y' \(.*\): .* all 2 of train are 0.1; there is nothing"),
        (torch.tensor([NAN, NAN]), r"every label is missing; give"),
        (torch.tensor([1.0, float("inf")]), r"1 labels are infinite, the first in row 1; correct"),
        (torch.tensor([1, 2]), r"floating-point target with NaN .* got torch.int64; convert"),
    ],
)
def test_train_targets_that_teach_nothing_are_refused(
    kind: Regression | DenseRegression, target: torch.Tensor, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        kind.fit(target, "y")


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.0), (0.0, -1.0), (0.0, NAN), (NAN, 1.0)])
def test_constructor_ranges(mean: float, scale: float) -> None:
    with pytest.raises(UsageError, match="finite scale > 0; got mean"):
        Regression(mean, scale)
