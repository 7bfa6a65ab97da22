"""expected-gradient-length: rows whose label would change a task's head most, whatever it is.

Source: Settles, Craven & Ray, "Multiple-Instance Active Learning", NeurIPS 2007
Differs from the source: of the last linear layer alone, where the expectation has a closed form:
    sum_y p_y |p - e_y| * sqrt(|x|^2 + 1).
Shapes: N = rows, F = features, C = classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.uncertain import probabilities


def expected_gradient_length(
    features_NF: Tensor, probability_NC: Tensor, *, bias: bool = True
) -> Tensor:
    """Return scores (N,): the mean length of the head's gradient over labels as the model expects.

    features_NF: what the task's linear head reads. probability_NC: what it answers, after softmax;
        (N,) is the probability of a binary task's 1, whose head has one output. bias: of the head.
    """
    single = probability_NC.ndim == 1
    p_NC = probabilities(probability_NC, "expected_gradient_length")
    if features_NF.ndim != 2 or p_NC.ndim != 2 or len(features_NF) != len(p_NC):
        raise UsageError(
            f"expected_gradient_length: features {tuple(features_NF.shape)} and probabilities "
            f"{tuple(probability_NC.shape)}; give (N, F) and (N, C)."
        )
    size_N = (features_NF.detach().to("cpu", torch.float64).square().sum(1) + float(bias)).sqrt()
    if single:  # one output: |p - y| once, not once for each of two outputs
        return 2 * p_NC[:, 0] * p_NC[:, 1] * size_N
    # |p - e_y|^2 = |p|^2 - 2 p_y + 1
    apart_NC = (p_NC.square().sum(1, keepdim=True) - 2 * p_NC + 1).clamp_min(0).sqrt()
    return (p_NC * apart_NC).sum(1) * size_N
