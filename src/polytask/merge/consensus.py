"""Consensus task arithmetic: the summed task vectors where at least two tasks need them.

Source: Wang et al., "Localizing Task Information for Improved Model Merging and Compression",
    ICML 2024, https://arxiv.org/abs/2405.07813, section 5, and the authors' code
Differs from the source: nothing known. The source tunes `threshold` per task and `scale` on
    validation data; one threshold serves all tasks here. mergekit and FusionBench have no such
    merge.
Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.base import Merge, Place, State
from polytask.merge.checks import check_finite
from polytask.merge.steps import mask, moved, task_vectors, weighted_sum
from polytask.merge.tall_masks import check_threshold, tall_masks


@dataclass(frozen=True)
class Consensus(Merge):
    """theta_0 + scale * sum of task vectors, where at least `agree` TALL masks agree.

    agree: >= 0. 1 leaves out what no task needs, 2 what one alone needs as well; 0 is task
        arithmetic. threshold: of the masks, see `tall_masks`. scale: of the masked sum.
    """

    agree: int = 2
    threshold: float = 0.4
    scale: float = 0.3

    def __post_init__(self) -> None:
        if self.agree < 0:
            raise UsageError(f"Consensus: agree is {self.agree}; give a number of tasks >= 0.")
        check_threshold("Consensus", self.threshold)
        check_finite("Consensus", "scale", self.scale)

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged piece, (P,)."""
        tau_MP = task_vectors(base_P, tuned_MP)
        keep_P = tall_masks(tau_MP, self.threshold).sum(0) >= self.agree
        return moved(base_P, mask(weighted_sum(tau_MP), keep_P), self.scale)


def consensus(
    base_P: Tensor,
    tuned_MP: Tensor,
    agree: int = 2,
    threshold: float = 0.4,
    scale: float = 0.3,
) -> Tensor:
    """Return M stacked tensors merged into one, (P,); see `Consensus`."""
    return Consensus(agree, threshold, scale)(base_P, tuned_MP)
