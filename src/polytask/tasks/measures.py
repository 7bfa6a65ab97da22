"""Builders of metrics: each returns a fresh torchmetrics object, NaN where it has no value.

torchmetrics takes 0.7 s to import, so every builder imports what it needs when it is called.
Arguments are not validated a second time: `Kind.check` has seen the targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from polytask.tasks.base import IGNORE

if TYPE_CHECKING:
    from torchmetrics import Metric as TorchMetric


def auroc() -> TorchMetric:
    """Return the area under the ROC curve of probabilities (N,); NaN unless both classes occur."""
    from torchmetrics.classification import BinaryAUROC

    from polytask.tasks.defined import Defined

    return Defined(BinaryAUROC(validate_args=False), differing=True)


def average_precision() -> TorchMetric:
    """Return the average precision of probabilities (N,); NaN unless both classes occur."""
    from torchmetrics.classification import BinaryAveragePrecision

    from polytask.tasks.defined import Defined

    return Defined(BinaryAveragePrecision(validate_args=False), differing=True)


def binary_accuracy() -> TorchMetric:
    """Return the share of rows on the right side of probability 0.5."""
    from torchmetrics.classification import BinaryAccuracy

    from polytask.tasks.defined import Defined

    return Defined(BinaryAccuracy(validate_args=False))


def accuracy(classes: int) -> TorchMetric:
    """Return the share of labels predicted right; -100 in the target is left out."""
    from torchmetrics.classification import MulticlassAccuracy

    from polytask.tasks.defined import Defined

    return Defined(
        MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE, validate_args=False)
    )


def macro_f1(classes: int) -> TorchMetric:
    """Return F1 averaged over the classes that occur among labels or predictions."""
    from torchmetrics.classification import MulticlassF1Score

    from polytask.tasks.defined import Defined

    return Defined(
        MulticlassF1Score(classes, average="macro", ignore_index=IGNORE, validate_args=False)
    )


def mean_iou(classes: int) -> TorchMetric:
    """Return intersection over union averaged over the classes that occur.

    Both are counted over all pixels of the split, not per picture; a class that is neither in the
    labels nor in the predictions is left out of the average.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    from polytask.tasks.defined import Defined

    return Defined(MulticlassJaccardIndex(classes, average="macro", validate_args=False))


def macro_auroc(labels: int) -> TorchMetric:
    """Return AUROC averaged over the labels that have both values; NaN where none has."""
    from polytask.tasks.defined import MeanOverColumns

    return MeanOverColumns([auroc() for _ in range(labels)])


def micro_f1(labels: int) -> TorchMetric:
    """Return F1 of probabilities (N, labels) at 0.5, all labels pooled; -100 is left out."""
    from torchmetrics.classification import MultilabelF1Score

    from polytask.tasks.defined import Defined

    return Defined(
        MultilabelF1Score(labels, average="micro", ignore_index=IGNORE, validate_args=False)
    )


def span_f1(names: tuple[str, ...]) -> TorchMetric:
    """Return the F1 of whole spans, for class names in BIO form."""
    from polytask.tasks.span_f1 import SpanF1

    return SpanF1(names)


def rmse() -> TorchMetric:
    """Return the root of the mean squared error, summed in float64."""
    from torchmetrics.regression import MeanSquaredError

    from polytask.tasks.defined import Defined

    return Defined(MeanSquaredError(squared=False).set_dtype(torch.float64))


def mae() -> TorchMetric:
    """Return the mean absolute error, summed in float64."""
    from torchmetrics.regression import MeanAbsoluteError

    from polytask.tasks.defined import Defined

    return Defined(MeanAbsoluteError().set_dtype(torch.float64))


def explained_variance(mean: float, scale: float) -> TorchMetric:
    """Return 1 - variance of the error / variance of the label; NaN where labels do not differ."""
    from torchmetrics.regression import ExplainedVariance

    from polytask.tasks.defined import Defined

    return Defined(
        ExplainedVariance().set_dtype(torch.float64), differing=True, mean=mean, scale=scale
    )


def r2(mean: float, scale: float) -> TorchMetric:
    """Return 1 - mean squared error / variance of the label; NaN where labels do not differ."""
    from torchmetrics.regression import R2Score

    from polytask.tasks.defined import Defined

    return Defined(R2Score().set_dtype(torch.float64), differing=True, mean=mean, scale=scale)
