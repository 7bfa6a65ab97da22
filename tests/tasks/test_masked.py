"""Masked losses: equal to torch's own on full data, and blind to what is missing, in every kind.

The properties run over all seven kinds, because the rule is one: a missing label adds exactly 0
to the sum, to the gradient and to the count.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polytask.tasks import (
    IGNORE,
    Binary,
    DenseLabels,
    DenseRegression,
    Kind,
    Multiclass,
    Multilabel,
    Regression,
    SequenceLabels,
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Binary(),
        Multiclass(4),
        Multilabel(3),
        Regression(mean=2.0, scale=3.0),
        SequenceLabels(4),
        DenseLabels(4),
        DenseRegression(mean=-1.0, scale=0.5),
    )
}
SHAPES = {
    "binary": ((), (1,)),
    "multiclass": ((), (4,)),
    "multilabel": ((3,), (3,)),
    "regression": ((), (1,)),
    "sequence labels": ((5,), (5, 4)),
    "dense labels": ((3, 2), (4, 3, 2)),
    "dense regression": ((3, 2), (1, 3, 2)),
}


def drawn(name: str, rows: int, seed: int, missing: float) -> tuple[Tensor, Tensor]:
    """Return (output, raw target) of a kind; each label is missing with this probability."""
    generator = torch.Generator().manual_seed(seed)
    of_target, of_output = SHAPES[name]
    output = 3 * torch.randn((rows, *of_output), generator=generator)
    shape = (rows, *of_target)
    if "regression" in name:
        target = 10 * torch.randn(shape, generator=generator)
    elif name in ("binary", "multilabel"):
        target = (torch.rand(shape, generator=generator) > 0.5).float()
    else:
        target = torch.randint(0, 4, shape, generator=generator)
    gone = torch.rand(shape, generator=generator) < missing
    target[gone] = torch.nan if target.is_floating_point() else IGNORE
    return output, target


def closed_form(name: str, output: Tensor, encoded: Tensor) -> Tensor:
    """Return torch's own loss, summed, for a target without missing labels."""
    if "regression" in name:
        return F.mse_loss(output.reshape(encoded.shape), encoded, reduction="sum")
    if name in ("binary", "multilabel"):
        logits = output.reshape(encoded.shape)
        return F.binary_cross_entropy_with_logits(logits, encoded, reduction="sum")
    if name == "sequence labels":
        return F.cross_entropy(output.movedim(2, 1), encoded, reduction="sum")
    return F.cross_entropy(output, encoded, reduction="sum")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_on_full_data(name: str, dtype: torch.dtype) -> None:
    output, target = drawn(name, rows=9, seed=0, missing=0.0)
    encoded = KINDS[name].encode(target)
    total, count = KINDS[name].loss(output.to(dtype), encoded)
    reference = encoded.to(dtype) if encoded.is_floating_point() else encoded
    torch.testing.assert_close(total, closed_form(name, output.to(dtype), reference))
    assert total.dtype == dtype
    assert count == encoded.numel()


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 12), seed=st.integers(0, 2**31), missing=st.sampled_from([0.0, 0.4, 0.9, 1])
)
def test_masking_rows_is_removing_them(name: str, rows: int, seed: int, missing: float) -> None:
    """Loss, count and gradient of what is left are the same, and exactly 0 for what is gone."""
    kind = KINDS[name]
    output, target = drawn(name, rows, seed, missing)
    encoded = kind.encode(target)
    there = kind.present(encoded)
    labelled = there.reshape(rows, -1).any(1)

    whole = output.clone().requires_grad_()
    total, count = kind.loss(whole, encoded)
    (gradient,) = torch.autograd.grad(total, whole)
    assert count == there.sum()
    assert not gradient[~labelled].any()
    if not labelled.any():
        assert total == 0
        return

    part = output[labelled].clone().requires_grad_()
    left, left_count = kind.loss(part, encoded[labelled])
    (left_gradient,) = torch.autograd.grad(left, part)
    torch.testing.assert_close(total, left)
    assert count == left_count
    torch.testing.assert_close(gradient[labelled], left_gradient)


@pytest.mark.parametrize("name", ["multilabel", "sequence labels", "dense labels",
                                  "dense regression"])  # fmt: skip
def test_single_missing_entries_have_no_gradient(name: str) -> None:
    """Within a row, too, only the labels that are there are learned from."""
    kind = KINDS[name]
    output, target = drawn(name, rows=6, seed=3, missing=0.5)
    encoded = kind.encode(target)
    there = kind.present(encoded)
    assert 0 < there.sum() < there.numel()
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(kind.loss(output, encoded)[0], output)
    if name == "multilabel":
        reached = gradient != 0
    else:
        reached = (gradient != 0).any(2 if name == "sequence labels" else 1)
    assert torch.equal(reached, there)


@pytest.mark.parametrize("name", ["binary", "multilabel", "regression", "dense regression"])
def test_gradient_is_finite_beside_nan(name: str) -> None:
    """0 * NaN is NaN: a NaN target multiplied away would still poison the gradient."""
    kind = KINDS[name]
    output, target = drawn(name, rows=20, seed=1, missing=0.5)
    assert target.isnan().any()
    output.requires_grad_()
    total = kind.loss(output, kind.encode(target))[0]
    (gradient,) = torch.autograd.grad(total, output)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    kind = KINDS[name]
    output, target = drawn(name, rows=300, seed=2, missing=0.2)
    encoded = kind.encode(target)
    half = output.to(dtype).requires_grad_()
    total = kind.loss(half, encoded)[0]
    assert total.dtype == torch.float32
    # What is left of the difference is the rounding of the outputs, not of the sum.
    torch.testing.assert_close(total, kind.loss(half.detach().float(), encoded)[0])
    (gradient,) = torch.autograd.grad(total, half)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_differences(name: str) -> None:
    kind = KINDS[name]
    output, target = drawn(name, rows=3, seed=5, missing=0.3)
    encoded = kind.encode(target)
    double = output.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: kind.loss(o, encoded)[0], double)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_outputs_are_not_hidden(name: str, value: float) -> None:
    """Masks take out missing labels, not a model that diverged: a loop must see its loss break."""
    kind = KINDS[name]
    output, target = drawn(name, rows=4, seed=0, missing=0.0)
    output[1] = value
    assert not kind.loss(output, kind.encode(target))[0].isfinite().all()
