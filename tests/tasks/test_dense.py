"""DenseLabels: mean IoU over the classes that occur, pooled over all pixels of a split."""

import pytest
import torch
from sklearn import metrics as reference

from polytask.errors import DataError
from polytask.tasks import IGNORE, DenseLabels


def test_metrics_equal_sklearn_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = DenseLabels(6)
    output = torch.randn(7, 6, 5, 4, generator=generator)
    output[:, 5] = -9  # class 5 neither occurs nor is predicted
    target = torch.randint(0, 5, (7, 5, 4), generator=generator)
    target[torch.rand(7, 5, 4, generator=generator) < 0.2] = IGNORE
    found = {}
    for metric in kind.metrics():
        meter = metric.build()
        for rows in (slice(0, 2), slice(2, None)):
            meter.update(*kind.scores(output[rows], target[rows]))
        found[metric.name] = float(meter.compute())
    there = target != IGNORE
    predicted, labels = output.argmax(1)[there], target[there]
    assert list(found) == ["mean IoU", "pixel accuracy"]
    iou = reference.jaccard_score(labels, predicted, average="macro")
    assert found["mean IoU"] == pytest.approx(iou, abs=1e-6)
    assert found["pixel accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))


def test_small_integers_are_taken() -> None:
    kind = DenseLabels(3)
    target = torch.tensor([[[0, 1], [2, IGNORE]]], dtype=torch.int16)
    assert kind.fit(target, "scene") == kind
    assert kind.encode(target).dtype == torch.int64
    assert kind.present(kind.encode(target)).sum() == 3


def test_what_it_refuses() -> None:
    kind = DenseLabels(3)
    with pytest.raises(DataError, match=r"'scene' \(dense labels\), .* got 3 in row 1; recode"):
        kind.check(torch.tensor([[[0]], [[3]]]), "scene", "val")
    with pytest.raises(DataError, match="every label is class 2"):
        kind.fit(torch.full((2, 3, 3), 2), "scene")
    fitted = kind.fit(torch.tensor([[[0, 1]]]), "scene")
    fitted.check(torch.tensor([[[2]]]), "scene", "test")  # unseen in train: counts in the score
