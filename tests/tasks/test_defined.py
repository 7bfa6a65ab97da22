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
CASES = {
    Binary(): (torch.randn(6, 1), torch.tensor([0.0, 1, 0, 1, 1, 0])),
    Multiclass(3): (torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 1, 0])),
    Multilabel(2): (torch.randn(4, 2), torch.tensor([[0.0, 1], [1, 0], [0, 0], [1, 1]])),
    Regression(1.0, 2.0): (torch.randn(6, 1), torch.arange(6.0)),
    SequenceLabels(3, BIO): (torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, 0], [1, 2, 1, 0]])),
    DenseLabels(3): (torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 1]]])),
    DenseRegression(): (torch.randn(1, 1, 2, 2), torch.arange(4.0).reshape(1, 2, 2)),
}
METRICS = [(kind, metric) for kind in CASES for metric in kind.metrics()]


def name(value: object) -> str:
    return value.name if isinstance(value, (Kind, Metric)) else ""


@pytest.mark.parametrize(("kind", "metric"), METRICS, ids=name)
def test_reset_forgets_and_nothing_is_nan(kind: Kind, metric: Metric) -> None:
    meter = metric.build()
    scores = kind.scores(*CASES[kind])
    meter.update(*scores)
    first = float(meter.compute())
    assert math.isfinite(first)
    meter.reset()
    meter.update(scores[0][:0], scores[1][:0])
    assert math.isnan(float(meter.compute()))
    meter.reset()
    meter.update(*scores)
    meter.update(scores[0][:0], scores[1][:0])
    assert float(copy.deepcopy(meter).compute()) == first


def test_importing_the_room_leaves_torchmetrics_alone() -> None:
    """It takes 0.7 s; asking for metrics without building one does not load it either."""
    code = (
        "import sys; from polytask.tasks import Binary, Regression;"
        "[k.metrics() for k in (Binary(), Regression())];"
        "heavy = {'torchmetrics', 'sklearn', 'scipy'};"
        "sys.exit(bool(heavy & {module.split('.')[0] for module in sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
