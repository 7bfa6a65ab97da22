"""BALD: rows on which the members of an ensemble are sure of different answers.

Source: Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", 2011,
    https://arxiv.org/abs/1112.5745; with dropout: Gal, Islam & Ghahramani, ICML 2017,
    https://arxiv.org/abs/1703.02910
Differs from the source: nothing known. For regression the variance over members, which is what the
    information goes up with when noise is the same everywhere.
Shapes: E = members, N = rows, C = classes, ... = positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.uncertain import probabilities, uncertainty


def bald(probability_ENC: Tensor) -> Tensor:
    """Return scores (N,): the information that a label would give about the member, in nats.

    probability_ENC: of E >= 2 members, or passes with dropout, (E, N, ..., C); (E, N) is the
        probability of a binary task's 1. The mean over positions.
    """
    _members(probability_ENC, "bald")
    each = probabilities(probability_ENC, "bald", rows_at=1)
    gained = uncertainty(each.mean(0), "entropy") - uncertainty(each, "entropy").mean(0)
    return gained.reshape(len(gained), -1).mean(1).clamp_min(0)


def disagreement(value_EN: Tensor) -> Tensor:
    """Return scores (N,) of a regression task: the variance over members, mean over positions."""
    _members(value_EN, "disagreement")
    value_EN = value_EN.detach().to("cpu", torch.float64)
    if not bool(value_EN.isfinite().all()):
        raise DataError("disagreement: a prediction is not finite.")
    variance = value_EN.var(0)
    return variance.reshape(len(variance), -1).mean(1)


def _members(given: Tensor, who: str) -> None:
    if given.ndim < 2 or len(given) < 2:
        raise UsageError(f"{who}: give predictions of at least 2 members, (E, N, ...).")
