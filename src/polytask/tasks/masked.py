"""Losses over the labels that are there, shared by all kinds.

A missing label adds exactly 0 to the loss and to its gradient: it is taken out before anything is
computed from it, because 0 * NaN is NaN.

All of it is computed in float32 at least; float64 stays float64. Half-precision outputs keep too
few digits for a sum over rows.

Shapes: B = rows (any leading size), C = classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.tasks.base import IGNORE


def full(output: Tensor) -> Tensor:
    """Return the output in float32, or float64 where it came so."""
    return output if output.dtype in (torch.float32, torch.float64) else output.float()


def squared_error(output: Tensor, encoded: Tensor) -> Tensor:
    """Return the squared error of each entry, 0 where missing.

    output: as many entries as encoded, in any shape. encoded: NaN where missing.
    """
    there = ~encoded.isnan()
    difference = torch.where(there, full(output).reshape(encoded.shape) - encoded, 0.0)
    return difference.square()


def binary_cross_entropy(output: Tensor, encoded: Tensor) -> Tensor:
    """Return the cross entropy of each entry, 0 where missing.

    output: logits, as many entries as encoded, in any shape. encoded: 0, 1, or NaN where missing.
    """
    there = ~encoded.isnan()
    logits = full(output).reshape(encoded.shape)
    # The weight is part of torch's own operation; it costs less than a product or a `where` after.
    return F.binary_cross_entropy_with_logits(
        logits,
        torch.where(there, encoded, 0.0).to(logits.dtype),
        weight=there.to(logits.dtype),
        reduction="none",
    )


def cross_entropy(output: Tensor, encoded: Tensor) -> Tensor:
    """Return the summed cross entropy over the labels that are there.

    output: logits (B, C) or (B, C, ...). encoded: int64 (B,) or (B, ...), -100 where missing.
    """
    return F.cross_entropy(full(output), encoded, ignore_index=IGNORE, reduction="sum")
