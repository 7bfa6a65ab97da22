"""The checker for plug-in kinds: passes every kind of ours, and catches each way to break one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.tasks import (
    IGNORE,
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
from polytask.testing import check_kind

NAN = float("nan")
GENERATOR = torch.Generator().manual_seed(0)


def classes(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape, generator=GENERATOR)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


CASES: dict[str, tuple[Kind, Tensor]] = {
    "binary": (Binary(), (numbers(12) > 0).float()),
    "binary from integers": (Binary(), (numbers(12) > 0).int()),
    "binary from bools": (Binary(), numbers(12) > 0),
    "multiclass": (Multiclass(3), classes(12)),
    "multilabel": (Multilabel(2), (numbers(12, 2) > 0).float()),
    "regression": (Regression(), 1990 + 5 * numbers(12)),
    "regression in float64": (Regression(), 1990 + 5 * numbers(12).double()),
    "token labels": (SequenceLabels(3), classes(8, 5)),
    "spans": (SequenceLabels(3, ("O", "B-x", "I-x")), classes(8, 5)),
    "dense labels": (DenseLabels(3), classes(6, 3, 4)),
    "dense regression": (DenseRegression(), numbers(6, 3, 4)),
}


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_keeps_the_contract(case: str, missing: float) -> None:
    kind, target = CASES[case]
    gone = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < missing
    if gone.any():  # a bool cannot be missing; such a target becomes integers
        target = target.long() if target.dtype == torch.bool else target.clone()
        target[gone] = NAN if target.is_floating_point() else IGNORE
    check_kind(kind, target, width=8)


@dataclass(frozen=True)
class FillsZeros(Regression):
    """The classic: a missing label becomes 0 and is learned."""

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        error = (output.float().reshape(encoded.shape) - encoded.nan_to_num()).square()
        return error.sum(0), (~encoded.isnan()).sum(0)


@dataclass(frozen=True)
class MultipliesNaN(Regression):
    """NaN times a mask of 0 is NaN."""

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        there = ~encoded.isnan()
        error = (output.float().reshape(encoded.shape) - encoded).square() * there
        return error.sum(0), there.sum(0)


@dataclass(frozen=True)
class Averages(Regression):
    """A mean has the wrong denominator as soon as batches are added."""

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        total, count = super().loss(output, encoded)
        return total / count.clamp(min=1), count


@dataclass(frozen=True)
class CountsRows(Regression):
    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        total, count = super().loss(output, encoded)
        return total, torch.full_like(count, len(encoded))


@dataclass(frozen=True)
class MixesColumns(Regression):
    """Stacks by name only: the columns' losses are pooled."""

    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        total, count = super().loss(output, encoded)
        return total.mean() + 0 * total, count


@dataclass(frozen=True)
class SumsInHalf(Multiclass):
    def loss(self, output: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(output, encoded, ignore_index=IGNORE, reduction="sum")
        return total, (encoded != IGNORE).sum()


@dataclass(frozen=True)
class KeepsMissing(Binary):
    """Scores with the missing labels as negatives."""

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return output.reshape(target.shape).sigmoid(), target.nan_to_num().long()


@dataclass(frozen=True)
class LooksAtAllRows(Binary):
    """Scores against the mean of all rows, so that unlabelled ones reach the metric."""

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return super().scores(output - output.mean(), target)


@dataclass(frozen=True)
class NoUnit(Binary):
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(replace(metric, unit="") for metric in super().metrics())


@dataclass(frozen=True)
class WideHead(Binary):
    def head(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 1), nn.Flatten(0))


@dataclass(frozen=True)
class LearnsMore(Regression):
    def fit(self, target: Tensor, task: str) -> Any:
        return replace(super().fit(target, task), mean=self.mean + 1.0)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (FillsZeros(), "rows without a label change the loss"),
        (MultipliesNaN(), "rows without a label change the loss"),
        (Averages(), "do not add up"),
        (CountsRows(), "no label at all is not a loss of 0|rows without a label are counted"),
        (MixesColumns(), "sums of two columns are not those of each alone"),
        (LearnsMore(), "a second fit learns something else"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_regressions_are_caught(kind: Kind, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_kind(kind, numbers(12))


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (KeepsMissing(), "scores keep rows that have no label"),
        (LooksAtAllRows(), "depends on outputs whose labels are missing"),
        (NoUnit(), "AUROC has no unit"),
        (WideHead(), r"its head does not return \(B, 1\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_binaries_are_caught(kind: Kind, rule: str) -> None:
    target = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0])
    with pytest.raises(AssertionError, match=rule):
        check_kind(kind, target)


def test_sums_in_half_precision_are_caught() -> None:
    with pytest.raises(AssertionError, match=r"summed in torch\.bfloat16"):
        check_kind(SumsInHalf(3), classes(12))


@pytest.mark.parametrize(
    "lose", [lambda t: t[:3], lambda t: torch.cat([t[:6], torch.full((6,), NAN)])]
)
def test_a_target_too_small_to_tell_is_refused(lose: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UsageError, match="4 rows or more with labels in both halves; got"):
        check_kind(Regression(), lose(numbers(12)))
