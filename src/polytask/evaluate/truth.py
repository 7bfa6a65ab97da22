"""Predicted probabilities against true ones: what simulated data can tell and labels cannot.

Shapes: N = rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError

BINS = 20


@dataclass(frozen=True)
class AgainstTruth:
    """How predicted probabilities p differ from true ones q, over the rows that were given.

    predicted, true: means of p and of q.
    error: mean |p - q|. calibration: the same after averaging within bins of p, so that a p that
        is right on average for the rows it is given to has none; at most `error`.
    excess: mean log loss above that of q itself, in nats: the mean of KL(q || p). Infinite where
        p rules out what can happen.
    """

    rows: int
    predicted: float
    true: float
    error: float
    calibration: float
    excess: float

    @property
    def bias(self) -> float:
        """Mean of p - q; above 0 where too much is promised."""
        return self.predicted - self.true

    @property
    def ratio(self) -> float:
        """Mean of p over mean of q; 1 where there is no bias."""
        return self.predicted / self.true if self.true else float("inf")


def against_truth(predicted_N: Tensor, true_N: Tensor, *, bins: int = BINS) -> AgainstTruth:
    """Return how these probabilities differ from the true ones.

    bins: for `calibration`; rows sorted by p fall into as many bins of (nearly) equal size. Rows
        of equal p are never parted, so a constant p has one bin.

    Raises UsageError for unequal shapes, no rows, or values outside 0 and 1.
    """
    if predicted_N.ndim != 1 or predicted_N.shape != true_N.shape or not len(true_N) or bins < 1:
        raise UsageError(
            "against_truth: give two vectors of one length and bins >= 1; got shapes "
            f"{tuple(predicted_N.shape)} and {tuple(true_N.shape)}, bins {bins}."
        )
    p_N, q_N = predicted_N.detach().double().cpu(), true_N.detach().double().cpu()
    for name, value_N in (("predicted", p_N), ("true", q_N)):
        if not bool(((value_N >= 0) & (value_N <= 1)).all()):
            raise UsageError(
                f"against_truth: {name} probabilities must lie in 0 to 1; got "
                f"{float(value_N.min()):g} to {float(value_N.max()):g}. Apply a sigmoid to logits."
            )
    difference_N = p_N - q_N
    # By the last of equal values, so that they share a bin.
    last_N = torch.searchsorted(p_N.sort().values, p_N, right=True) - 1
    bin_N = last_N * bins // len(p_N)
    off = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_N, difference_N)
    excess_N = torch.xlogy(q_N, q_N) - torch.xlogy(q_N, p_N)
    excess_N += torch.xlogy(1 - q_N, 1 - q_N) - torch.xlogy(1 - q_N, 1 - p_N)
    return AgainstTruth(
        rows=len(p_N),
        predicted=float(p_N.mean()),
        true=float(q_N.mean()),
        error=float(difference_N.abs().mean()),
        calibration=float(off.abs().sum() / len(p_N)),
        excess=float(excess_N.mean()),
    )
