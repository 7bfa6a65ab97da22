"""Multilabel: single missing labels, label-wise averages, and what it refuses."""

import pytest
import torch
from sklearn import metrics as reference

from polytask.errors import DataError, UsageError
from polytask.tasks import Multilabel

NAN = float("nan")


def values(kind: Multilabel, *batches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    found = {}
    for metric in kind.metrics():
        meter = metric.build()
        for output, target in batches:
            meter.update(*kind.scores(output, target))
        found[metric.name] = float(meter.compute())
    return found


def test_metrics_equal_sklearn_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(120, 4, generator=generator)
    target = (torch.rand(120, 4, generator=generator) > 0.6).float()
    target[torch.rand(120, 4, generator=generator) < 0.3] = NAN
    target[:7] = NAN
    found = values(Multilabel(4), (output[:50], target[:50]), (output[50:], target[50:]))
    columns = []
    for m in range(4):
        there = ~target[:, m].isnan()
        columns.append(reference.roc_auc_score(target[there, m], output[there, m]))
    there = ~target.isnan()
    f1 = reference.f1_score(target[there], output[there] > 0)
    assert found["macro AUROC"] == pytest.approx(sum(columns) / 4, abs=1e-6)
    assert found["micro F1"] == pytest.approx(f1, abs=1e-6)


def test_a_label_of_one_class_is_left_out_of_the_average() -> None:
    """torchmetrics alone would count it as 0, and warn."""
    output = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 5.0]])
    target = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    assert values(Multilabel(2), (output, target))["macro AUROC"] == 1.0


def test_what_it_refuses() -> None:
    kind = Multilabel(2)
    with pytest.raises(DataError, match=r"'tags' \(multilabel\), label 1: expected both classes"):
        kind.fit(torch.tensor([[0.0, 1.0], [1.0, NAN]]), "tags")
    with pytest.raises(DataError, match=r"label 0: .* every label is missing"):
        kind.fit(torch.tensor([[NAN, 1.0], [NAN, 0.0]]), "tags")
    with pytest.raises(DataError, match=r"shape \(rows, 2\), got \(3, 5\)"):
        kind.check(torch.zeros(3, 5), "tags", "val")
    with pytest.raises(DataError, match=r"split test: .* got 7 in row 1"):
        kind.check(torch.tensor([[0.0, 1.0], [1.0, 7.0]]), "tags", "test")
    with pytest.raises(UsageError, match="at least one label; got 0"):
        Multilabel(0)
