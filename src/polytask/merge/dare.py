"""DARE: drop a random part of every task vector, rescale the rest, then task arithmetic.

Source: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as
    a Free Lunch", ICML 2024, https://arxiv.org/abs/2311.03099
Differs from the source: nothing known. What is left is divided by exactly 1 - drop, so that its
    mean over draws is the task vector. Draws depend on the seed, the tensor's name, the model's
    position and the element's index alone.
    mergekit's `dare_linear` rescales by a ratio of L1 norms before and after the draw instead, and
    draws from one stream for all tensors; FusionBench also divides by 1 - drop, and draws from
    one stream.
Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.merge.base import Changes, Merge, Moved, Place, State
from polytask.merge.checks import check_finite, check_seed, check_share, check_weights
from polytask.merge.draws import kept
from polytask.merge.steps import mask, moved, rescale, task_vectors, weighted_sum


def dropped(base_P: Tensor, tuned_MP: Tensor, drop: float, at: Place, seed: int) -> Tensor:
    """Return the task vectors, (M, P), a share `drop` of them set to 0; not yet rescaled."""
    tau_MP = task_vectors(base_P, tuned_MP)
    if drop == 0:
        return tau_MP
    return mask(tau_MP, kept(1 - drop, tau_MP, at, seed), out=tau_MP)


@dataclass(frozen=True)
class DARE(Merge):
    """theta_0 + scale * sum_m w_m tau_m, each tau after dropping.

    drop: chance of an element to be dropped, in [0, 1). scale: of the sum; the source takes 0.3 to
    1. weights: one per model; 1 each where none are given. seed: of the draws.
    """

    order_free: ClassVar[bool] = False  # each position draws its own elements
    draws: ClassVar[bool] = True

    drop: float = 0.5
    scale: float = 0.3
    weights: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("DARE", "drop", self.drop, zero=True)
        check_finite("DARE", "scale", self.scale)
        check_weights("DARE", self.weights)
        check_seed("DARE", self.seed)

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged piece, (P,)."""
        kept_MP = dropped(base_P, tuned_MP, self.drop, at, self.seed)
        merged_P = rescale(weighted_sum(kept_MP, self.weights), 1 - self.drop)
        return moved(base_P, merged_P, self.scale)

    def formed(self, models: int, state: State) -> Moved:
        """Return the same for the kernels."""
        changes = Changes(1 - self.drop, self.seed)
        return Moved(changes, self.weights, self.scale, over=1 - self.drop)


def dare(
    base_P: Tensor,
    tuned_MP: Tensor,
    drop: float = 0.5,
    scale: float = 0.3,
    weights: tuple[float, ...] = (),
    seed: int = 0,
    name: str = "",
) -> Tensor:
    """Return M stacked tensors merged into one, (P,); name: of the tensor, for the draws."""
    return DARE(drop, scale, weights, seed)(base_P, tuned_MP, name)
