"""Kinds of tasks: heads, losses, missing labels, metrics.

Shapes: B = rows of the target given, L = positions, H, W = height and width.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.tasks import IGNORE, Kind


def check_kind(kind: Kind, target: Tensor, width: int = 8, seed: int = 0) -> None:
    """Return nothing if `kind` keeps the contract of `polytask.tasks.Kind` on this target.

    kind: not fitted yet. target: a raw target as a training split has it, 4 rows or more, at least
        two rows with a label in each half. width: channels of the features its head is tried on.
    seed: of the features and the head; the caller's random state is left as it was.

    Raises AssertionError that names the broken rule, and UsageError where the target is too small
    to try the rules on.
    """
    fitted = _check_fit(kind, target)
    encoded = _check_encode(fitted, target)
    half = len(target) // 2
    if half < 2 or not all(
        bool(fitted.present(part).any()) for part in (encoded[:half], encoded[half:])
    ):
        raise UsageError(
            f"check_kind needs 4 rows or more with labels in both halves; got {len(target)} rows."
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        output = fitted.head(width)(_features(fitted, target, width))
    _expect(len(output) == len(target), f"the head returns {len(output)} rows of {len(target)}")
    _check_loss(fitted, output, target, half)
    if fitted.stacks:
        _check_stacks(fitted, output, encoded)
    _check_metrics(fitted, output, target, half)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a kind is broken: {otherwise}.")


def _near(value: Tensor, reference: Tensor) -> bool:
    return torch.allclose(value, reference, rtol=1e-4, atol=1e-6)


def _check_fit(kind: Kind, target: Tensor) -> Kind:
    _expect(dataclasses.is_dataclass(kind), "it is no dataclass")
    fitted = kind.fit(target, "checked")
    _expect(type(fitted) is type(kind), f"fit returns a {type(fitted).__name__}")
    _expect(fitted.fit(target, "checked") == fitted, "a second fit learns something else")
    _expect(hash(fitted) == hash(fitted), "it cannot be hashed; its fields must be frozen")
    fitted.check(target, "checked", "train")
    return fitted


def _check_encode(kind: Kind, target: Tensor) -> Tensor:
    before = target.clone()
    encoded = kind.encode(target)
    present = kind.present(encoded)
    _expect(torch.equal(target.nan_to_num(), before.nan_to_num()), "encode changes its argument")
    _expect(len(encoded) == len(target), "encode changes the number of rows")
    _expect(present.dtype == torch.bool, f"present returns {present.dtype}, not bool")
    _expect(present.shape == encoded.shape, "present differs in shape from the encoded target")
    gone = kind.present(kind.encode(_erased(target, slice(None))))
    _expect(not bool(gone.any()), "present finds labels where all are missing")
    return encoded


def _check_loss(kind: Kind, output: Tensor, target: Tensor, half: int) -> None:
    encoded = kind.encode(target)
    whole, count = kind.loss(output, encoded)
    labels = kind.present(encoded)
    expected = labels.sum(0) if kind.stacks else labels.sum()
    _expect(whole.shape == count.shape == expected.shape, "the loss's sum has the wrong shape")
    _expect(torch.equal(count.long(), expected), "the loss's count is not that of labels present")
    _expect(bool(whole.isfinite().all()), "the loss of finite outputs is not finite")

    first, second = (kind.loss(output[r], encoded[r]) for r in (slice(half), slice(half, None)))
    added = _near(first[0] + second[0], whole)
    _expect(added, "the losses of two halves do not add up to that of all rows; return a sum")

    leaf = output.clone().requires_grad_()
    partly = kind.encode(_erased(target, slice(half, None)))
    total, count = kind.loss(leaf, partly)
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    _expect(_near(total, first[0]), "rows without a label change the loss of the others")
    _expect(torch.equal(count, first[1]), "rows without a label are counted")
    _expect(not bool(gradient[half:].any()), "rows without a label have a gradient")
    _expect(bool(gradient[:half].any()), "rows with labels have no gradient")

    nothing, none = kind.loss(leaf, kind.encode(_erased(target, slice(None))))
    (gradient,) = torch.autograd.grad(nothing.sum(), leaf)
    _expect(not bool(nothing.any()) and not bool(none.any()), "no label at all is not a loss of 0")
    _expect(not bool(gradient.any()), "no label at all has a gradient")

    reduced = kind.loss(output.bfloat16(), encoded)[0]
    _expect(reduced.dtype == torch.float32, f"bfloat16 outputs are summed in {reduced.dtype}")


def _check_stacks(kind: Kind, output: Tensor, encoded: Tensor) -> None:
    _expect(output.shape == (len(encoded), 1), "it stacks, but its head does not return (B, 1)")
    _expect(encoded.ndim == 1, "it stacks, but its encoded target is not (B,)")
    side = kind.loss(torch.cat([output, -output], 1), torch.stack([encoded, encoded.flip(0)], 1))
    alone = [kind.loss(output, encoded), kind.loss(-output, encoded.flip(0))]
    for at, name in ((0, "sums"), (1, "counts")):
        same = _near(side[at], torch.stack([one[at] for one in alone]))
        _expect(same, f"the loss's {name} of two columns are not those of each alone")


def _check_metrics(kind: Kind, output: Tensor, target: Tensor, half: int) -> None:
    metrics = kind.metrics()
    _expect(len(metrics) > 0, "it has no metric")
    names = [metric.name for metric in metrics]
    _expect(len(set(names)) == len(names), f"two of its metrics share a name: {names}")

    nothing = kind.scores(output, _erased(target, slice(None)))
    _expect(len(nothing[0]) == len(nothing[1]) == 0, "scores keep rows that have no label")
    # Rows without a label must not reach a metric, whatever the model says of them.
    partly = _erased(target, slice(half, None))
    unlabelled = output.new_zeros(output.shape)
    count = unlabelled[half:].numel()
    # Uneven, so that it moves the most probable class as well as the mean.
    unlabelled[half:] = torch.linspace(-5.0, 25.0, count).reshape(unlabelled[half:].shape)
    for metric in metrics:
        _expect(metric.direction in ("max", "min"), f"{metric.name} has no direction")
        _expect(bool(metric.unit), f"{metric.name} has no unit")
        _expect(metric.build() is not metric.build(), f"{metric.name} is not built anew")
        values = []
        for shift in (0, unlabelled, -unlabelled):
            meter = metric.build()
            meter.update(*kind.scores(output + shift, partly))
            meter.update(*nothing)
            value = meter.compute()
            _expect(value.ndim == 0, f"{metric.name} is no scalar")
            values.append(float(value))
        same = len(set(values)) == 1 or all(map(math.isnan, values))
        _expect(same, f"{metric.name} depends on outputs whose labels are missing")
        meter = metric.build()
        meter.update(*nothing)
        _expect(bool(meter.compute().isnan()), f"{metric.name} of no labels is not NaN")


def _features(kind: Kind, target: Tensor, width: int) -> Tensor:
    rows, rest = len(target), tuple(target.shape[1:])
    shapes = {
        "row": (rows, width),
        "sequence": (rows, *rest[:1], width),
        "map": (rows, width, *rest),
    }
    return torch.randn(shapes[kind.reads])


def _erased(target: Tensor, rows: slice) -> Tensor:
    """Return a copy of the raw target without the labels of these rows."""
    erased = target.long() if target.dtype == torch.bool else target.clone()
    erased[rows] = torch.nan if erased.is_floating_point() else IGNORE
    return erased
