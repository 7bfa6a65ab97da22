"""Metrics keep torchmetrics' life: reset, copies, and states that a sync between processes adds."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from polytask.tasks import (
    Binary,
    DenseLabels,
    DenseRegression,
    Kind,
    Metric,
    Multiclass,
    Multilabel,
    Regression,
    SequenceLabels,
)

BIO = ("O", "B-x", "I-x")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CASES = {
    Binary(): (randn(6, 1), torch.tensor([0.0, 1, 0, 1, 1, 0])),
    Multiclass(3): (randn(6, 3), torch.tensor([0, 1, 2, 1, 1, 0])),
    Multilabel(2): (randn(4, 2), torch.tensor([[0.0, 1], [1, 0], [0, 0], [1, 1]])),
    Regression(1.0, 2.0): (randn(6, 1), torch.arange(6.0)),
    SequenceLabels(3, BIO): (randn(2, 4, 3), torch.tensor([[0, 1, 2, 0], [1, 2, 1, 0]])),
    DenseLabels(3): (randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 1]]])),
    DenseRegression(): (randn(1, 1, 2, 2), torch.arange(4.0).reshape(1, 2, 2)),
}
METRICS = [(kind, metric) for kind in CASES for metric in kind.metrics()]


def name(value: object) -> str:
    return value.name if isinstance(value, (Kind, Metric)) else ""


@pytest.mark.parametrize(("kind", "metric"), METRICS, ids=name)
def test_reset_forgets_and_nothing_is_nan(kind: Kind, metric: Metric) -> None:
    meter = metric.build()
    output, target = CASES[kind]
    scores = kind.scores(output, target)
    meter.update(*scores)
    first = float(meter.compute())
    assert math.isfinite(first)
    meter.reset()
    meter.update(scores[0][:0], scores[1][:0])
    assert math.isnan(float(meter.compute()))
    meter.update(*kind.scores(-output, target))  # what the next reset must forget
    meter.reset()
    meter.update(*scores)
    meter.update(scores[0][:0], scores[1][:0])
    assert float(copy.deepcopy(meter).compute()) == first


def test_small_errors_after_a_large_one_are_not_lost() -> None:
    """In float32, 1 added to 1e8 is 1e8: an early outlier would swallow the rest of a split."""
    meter = Regression().metrics()[0].build()
    meter.update(torch.tensor([1e4]), torch.tensor([0.0]))
    for _ in range(1000):
        meter.update(torch.tensor([1.0]), torch.tensor([0.0]))
    assert float(meter.compute()) == pytest.approx(math.sqrt((1e8 + 1000) / 1001), rel=1e-9)


def test_importing_the_room_leaves_torchmetrics_alone() -> None:
    """It takes 0.7 s; asking for metrics without building one does not load it either."""
    code = (
        "import sys; from polytask.tasks import Binary, Regression;"
        "[k.metrics() for k in (Binary(), Regression())];"
        "heavy = {'torchmetrics', 'sklearn', 'scipy'};"
        "sys.exit(bool(heavy & {module.split('.')[0] for module in sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
