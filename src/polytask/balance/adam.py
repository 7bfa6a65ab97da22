"""Adam as a pure function, for methods whose trained numbers are part of their state.

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    https://arxiv.org/abs/1412.6980, algorithm 1
"""

from __future__ import annotations

from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def adam_step(
    value: Tensor, mean: Tensor, square: Tensor, grad: Tensor, count: Tensor, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, mean and square after one step; nothing is changed in place.

    count: steps including this one, of each number or of all together.
    """
    mean = BETA_1 * mean + (1 - BETA_1) * grad
    square = BETA_2 * square + (1 - BETA_2) * grad.square()
    size = (square / (1 - BETA_2**count)).sqrt() + EPSILON
    return value - lr * mean / (1 - BETA_1**count) / size, mean, square
