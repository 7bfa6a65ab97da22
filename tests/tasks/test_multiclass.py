"""Multiclass: the classes train has are remembered, and metrics equal scikit-learn's."""

import pytest
import torch
from sklearn import metrics as reference

from polytask.errors import DataError, UsageError
from polytask.tasks import IGNORE, Multiclass


def test_metrics_equal_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = Multiclass(6)
    output = torch.randn(150, 6, generator=generator)
    output[:, 5] = -9  # neither predicted nor, below, a label: no part of the macro average
    target = torch.randint(0, 5, (150,), generator=generator)
    target[::4] = IGNORE
    there = target != IGNORE
    predicted, labels = output.argmax(1)[there], target[there]
    found = {}
    for metric in kind.metrics():
        meter = metric.build()
        for rows in (slice(0, 40), slice(40, None)):
            meter.update(*kind.scores(output[rows], target[rows]))
        found[metric.name] = float(meter.compute())
    assert list(found) == ["accuracy", "macro F1"]
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    macro = reference.f1_score(labels, predicted, average="macro")
    assert found["macro F1"] == pytest.approx(macro, abs=1e-6)


def test_a_class_train_never_saw_is_refused() -> None:
    kind = Multiclass(4, names=("ant", "bee", "cat", "dog"))
    kind.check(torch.tensor([3]), "animal", "test")  # not fitted: any class of the range is fine
    fitted = kind.fit(torch.tensor([0, 1, 1, IGNORE, 2]), "animal")
    assert fitted.seen == (0, 1, 2)
    fitted.check(torch.tensor([2, 0, IGNORE]), "animal", "test")
    text = r"'animal' \(multiclass\), split test: class 3 \('dog'\) occurs in 2 rows but never in"
    with pytest.raises(DataError, match=text):
        fitted.check(torch.tensor([3, 0, 3]), "animal", "test")
    refitted = fitted.fit(torch.tensor([2, 3]), "animal")
    assert refitted.seen == (2, 3)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (torch.tensor([1, 1, IGNORE]), r"two classes in train, but every label is class 1; add"),
        (torch.tensor([IGNORE]), r"every label is missing; give"),
        (torch.tensor([0, 4]), r"split train: expected classes 0 to 3, .* got 4 in row 1; recode"),
        (torch.tensor([0, -1]), r"got -1 in row 1"),
        (torch.tensor([0.0, 1.0]), r"expected an integer target .* got torch.float32; convert"),
    ],
)
def test_train_targets_that_teach_nothing_are_refused(target: torch.Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Multiclass(4).fit(target, "animal")


def test_constructor_ranges() -> None:
    with pytest.raises(UsageError, match="at least 2 classes; got 1"):
        Multiclass(1)
    with pytest.raises(UsageError, match="of 3 classes needs as many names, or none; got 2"):
        Multiclass(3, names=("a", "b"))
