"""Binary: what it refuses, and metrics equal to scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from polytask.errors import DataError
from polytask.tasks import Binary

NAN = float("nan")


def values(output: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    found = {}
    for metric in Binary().metrics():
        meter = metric.build()
        meter.update(*Binary().scores(output, target))
        found[metric.name] = float(meter.compute())
    return found


def test_metrics_equal_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    output = 2 * torch.randn(200, 1, generator=generator)
    target = (torch.rand(200, generator=generator) > 0.7).float()
    target[::5] = NAN
    there = ~target.isnan()
    logits, labels = output.squeeze(1)[there].numpy(), target[there].numpy()
    found = values(output, target)
    assert list(found) == ["AUROC", "average precision", "accuracy"]
    assert found["AUROC"] == pytest.approx(reference.roc_auc_score(labels, logits), abs=1e-6)
    assert found["average precision"] == pytest.approx(
        reference.average_precision_score(labels, logits), abs=1e-6
    )
    assert found["accuracy"] == pytest.approx(np.mean((logits > 0) == labels), abs=1e-6)
    assert [m.direction for m in Binary().metrics()] == ["max"] * 3


@pytest.mark.parametrize("shift", [0.5, 30.0])
def test_logits_are_always_read_as_logits(shift: float) -> None:
    """torchmetrics takes values in 0 to 1 for probabilities, and float32 ties at logits of 17."""
    output = shift + torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    found = values(output, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert found["AUROC"] == 0.75
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_in_a_split_is_no_score(label: float) -> None:
    found = values(torch.randn(4, 1), torch.full((4,), label))
    assert np.isnan(found["AUROC"])
    assert np.isnan(found["average precision"])
    assert 0 <= found["accuracy"] <= 1


def test_integers_and_bools_are_taken() -> None:
    kind = Binary()
    encoded = kind.encode(torch.tensor([0, 1, -100]))
    assert torch.equal(encoded.isnan(), torch.tensor([False, False, True]))
    assert torch.equal(encoded[:2], torch.tensor([0.0, 1.0]))
    assert torch.equal(kind.encode(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
    assert kind.fit(torch.tensor([0, 1, -100]), "x") == kind


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ([1.0, 1.0, NAN], r"Task 'toxic' \(binary\): .*both classes .* all 2 labels are 1; add"),
        ([NAN, NAN], r"Task 'toxic' \(binary\): .* every label is missing; give"),
        ([0.0, 1.0, 0.5], r"'toxic' \(binary\), split train: expected 0, 1 .* got 0.5 in row 2"),
        ([0.0, 1.0, float("inf")], r"split train: .* got inf in row 2; recode"),
    ],
)
def test_train_targets_that_teach_nothing_are_refused(target: list[float], text: str) -> None:
    with pytest.raises(DataError, match=text):
        Binary().fit(torch.tensor(target), "toxic")


def test_other_splits_may_hold_one_class() -> None:
    Binary().check(torch.tensor([0.0, 0.0, NAN]), "toxic", "test")
    with pytest.raises(DataError, match=r"split test: expected 0, 1 or missing \(NaN\), got 2"):
        Binary().check(torch.tensor([0.0, 2.0]), "toxic", "test")
