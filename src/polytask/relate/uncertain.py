"""uncertain: rows that a task's model is unsure of: entropy, margin, or least confidence.

Source: Settles, "Active Learning Literature Survey", 2009, University of Wisconsin TR 1648, and
    the works it names
Differs from the source: sequences and maps count with the mean over their positions.
Shapes: N = rows, C = classes, ... = positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError


def uncertain(
    probability_NC: Tensor, *, form: Literal["entropy", "margin", "least-confidence"] = "entropy"
) -> Tensor:
    """Return scores (N,), 0 where the model is sure.

    probability_NC: (N, ..., C), sums to 1 over C; (N,) is the probability of a binary task's 1.
    form: entropy in nats; 1 less the gap between the two most probable classes; or 1 less the
        largest probability.
    """
    each = uncertainty(probabilities(probability_NC, "uncertain"), form)
    return each.reshape(len(each), -1).mean(1)


def uncertainty(probability: Tensor, form: str) -> Tensor:
    """Return the uncertainty of every position: (..., C) -> (...)."""
    if form == "entropy":
        entropy: Tensor = torch.special.entr(probability).sum(-1)
        return entropy
    if form == "margin":
        top = probability.topk(2, dim=-1).values
        return 1 - (top[..., 0] - top[..., 1])
    if form == "least-confidence":
        return 1 - probability.amax(-1)
    raise UsageError(
        f"uncertain: form is {form!r}; give 'entropy', 'margin' or 'least-confidence'."
    )


def probabilities(given: Tensor, who: str, rows_at: int = 0) -> Tensor:
    """Return (..., C), a binary task's last dimension made of both classes; or raise DataError."""
    given = given.detach().to("cpu", torch.float64)
    if given.ndim == rows_at + 1:
        given = torch.stack([1 - given, given], -1)
    if given.shape[-1] < 2:
        raise UsageError(f"{who}: probabilities are of {given.shape[-1]} class; give two or more.")
    inside = bool(((given >= -1e-6) & (given <= 1 + 1e-6)).all())  # NaN is inside nothing
    if not inside or not torch.allclose(given.sum(-1), torch.ones(()).double(), atol=1e-3):
        raise DataError(f"{who}: probabilities do not lie in [0, 1] or do not sum to 1.")
    return given.clamp(0, 1)
