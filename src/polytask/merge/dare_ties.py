"""DARE with TIES: drop a random part of every task vector, rescale the rest, then TIES.

Source: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as
    a Free Lunch", ICML 2024, https://arxiv.org/abs/2311.03099
Differs from the source: see `DARE` and `TIES`. mergekit's `dare_ties` does not trim (here:
    density=1) and sums those that agree instead of taking their mean.
Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.merge.base import Changes, Over, Place
from polytask.merge.checks import check_finite, check_seed, check_share, check_weights
from polytask.merge.dare import dropped
from polytask.merge.electing import Electing
from polytask.merge.steps import rescale


@dataclass(frozen=True)
class DareTies(Electing):
    """TIES, see there, on task vectors after dropping.

    drop: chance of an element to be dropped, in [0, 1). density: share of all elements, dropped
    ones among them, that trimming keeps. seed: of the draws.
    """

    order_free: ClassVar[bool] = False  # each position draws its own elements
    draws: ClassVar[bool] = True

    drop: float = 0.5
    density: float = 0.2
    scale: float = 1.0
    weights: tuple[float, ...] = ()
    over: Over = "model"
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("DareTies", "drop", self.drop, zero=True)
        check_share("DareTies", "density", self.density)
        check_finite("DareTies", "scale", self.scale)
        check_weights("DareTies", self.weights)
        check_seed("DareTies", self.seed)

    @property
    def form(self) -> Changes:
        """The task vectors after dropping."""
        return Changes(1 - self.drop, self.seed, over=1 - self.drop)

    def changes(self, base_P: Tensor, tuned_MP: Tensor, at: Place, stride: int = 1) -> Tensor:
        """Return the task vectors after dropping, (M, P)."""
        # The first ones, not every so many: so that no more are drawn than are looked at.
        part = slice(-(-base_P.numel() // stride))
        kept_MP = dropped(base_P[part], tuned_MP[:, part], self.drop, at, self.seed)
        return rescale(kept_MP, 1 - self.drop)


def dare_ties(
    base_P: Tensor,
    tuned_MP: Tensor,
    drop: float = 0.5,
    density: float = 0.2,
    scale: float = 1.0,
    weights: tuple[float, ...] = (),
    seed: int = 0,
    name: str = "",
) -> Tensor:
    """Return M stacked tensors merged into one, as if they were the whole model; see `DareTies`."""
    method = DareTies(drop, density, scale, weights, seed=seed)
    return method(base_P, tuned_MP, name)
