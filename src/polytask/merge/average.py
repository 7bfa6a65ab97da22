"""Average: the weighted mean of the tuned models' parameters.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482
    (the uniform soup); McMahan et al., AISTATS 2017, for weights.
Differs from the source: nothing known. Summed in float64 and rounded once. mergekit's `linear`
    and FusionBench's `simple_average` sum in the files' dtype, or round at every model.
Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.base import Merge, Mixture, Place, State


@dataclass(frozen=True)
class Average(Merge):
    """sum_m w_m theta_m / sum_m w_m.

    weights: one per model, whose sum is not 0; equal where none are given.
    """

    needs_base: ClassVar[bool] = False

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and not abs(sum(self.weights)) > 0:
            raise UsageError(
                f"Average: the weights {self.weights} sum to {sum(self.weights)}; a mean divides "
                "by their sum. Give weights whose sum is not 0, or use task-arithmetic."
            )

    def mixture(self, models: int, state: State) -> Mixture:
        """Return the weighted sum, over the sum of the weights."""
        weights = self.weights or (1.0,) * models
        return Mixture(weights, over=sum(weights))

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the mean, (P,)."""
        return self.mixture(len(tuned_MP), state)(base_P[:0], tuned_MP)


def average(tuned_MP: Tensor, weights: tuple[float, ...] = ()) -> Tensor:
    """Return the weighted mean of M stacked tensors, (P,); see `Average`."""
    return Average(weights)(None, tuned_MP)
