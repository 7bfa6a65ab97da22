"""Task arithmetic: the base, moved by the scaled sum of the task vectors.

Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023,
    https://arxiv.org/abs/2212.04089
Differs from the source: nothing known. The source tunes `scale` on validation data; 0.3 is the
    value it and its followers settle on for eight tasks. Summed in float64 and rounded once.
    mergekit's `task_arithmetic` has scale 1 and weights that must be given.
Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.merge.base import Merge, Mixture, Place, State


@dataclass(frozen=True)
class TaskArithmetic(Merge):
    """theta_0 + scale * sum_m w_m tau_m. A negative scale unlearns.

    scale: of the sum. weights: one per model; 1 each where none are given.
    """

    scale: float = 0.3
    weights: tuple[float, ...] = ()

    def mixture(self, models: int, state: State) -> Mixture:
        """Return the sum of the task vectors, scaled and added to the base."""
        weights = self.weights or (1.0,) * models
        return Mixture(weights, base=-sum(weights), scale=self.scale)

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the moved base, (P,)."""
        return self.mixture(len(tuned_MP), state)(base_P, tuned_MP)


def task_arithmetic(
    base_P: Tensor, tuned_MP: Tensor, scale: float = 0.3, weights: tuple[float, ...] = ()
) -> Tensor:
    """Return base + scale * sum of task vectors, (P,); see `TaskArithmetic`."""
    return TaskArithmetic(scale, weights)(base_P, tuned_MP)
