"""TALL masks: for each task, the elements of the summed task vectors that this task needs.

Source: Wang et al., "Localizing Task Information for Improved Model Merging and Compression",
    ICML 2024, https://arxiv.org/abs/2405.07813, and the authors' code
Differs from the source: nothing known. The source chooses `threshold` for each task from 0.2 to
    0.6 on validation data. FusionBench's `tall_mask` compares |theta_0 - tau_t| instead of
    |theta_0 - theta_t|: its masks are not those of the source. mergekit has none.
Shapes: M = tuned models, one per task; P = elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.base import Merge, Place, State
from polytask.merge.checks import check_finite
from polytask.merge.steps import mask, moved, task_vectors, weighted_sum


def tall_masks(tau_MP: Tensor, threshold: float = 0.4, scale: float = 1.0) -> Tensor:
    """Return which elements each task needs, (M, P) of bool.

    Those where |theta_0 - theta_t| > threshold * |theta_MTL - theta_t|. tau_MP: task vectors.
    scale: of their sum, in theta_MTL.
    """
    summed_P = scale * weighted_sum(tau_MP)
    return tau_MP.abs() > threshold * (summed_P - tau_MP).abs()


def check_threshold(method: str, threshold: float) -> None:
    """Raise UsageError unless a threshold is >= 0 and finite."""
    if not 0 <= threshold < float("inf"):
        raise UsageError(f"{method}: threshold is {threshold}; give a number >= 0 (default 0.4).")


@dataclass(frozen=True)
class TallMasks(Merge):
    """The model to serve one task with: theta_0 + mask_t * scale * sum of task vectors.

    Only the sum and one bit per element and task must be stored, see `tall_masks`.
    task: position of the task among the models. threshold: >= 0; larger keeps fewer elements.
    """

    order_free: ClassVar[bool] = False  # `task` is a position

    task: int = 0
    threshold: float = 0.4
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.task < 0:
            raise UsageError(f"TallMasks: task is {self.task}; give a position >= 0.")
        check_threshold("TallMasks", self.threshold)
        check_finite("TallMasks", "scale", self.scale)

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the task's piece, (P,)."""
        if self.task >= len(tuned_MP):
            raise UsageError(
                f"TallMasks: task is {self.task}, and {len(tuned_MP)} models came; give a "
                f"position from 0 to {len(tuned_MP) - 1}."
            )
        tau_MP = task_vectors(base_P, tuned_MP)
        keep_MP = tall_masks(tau_MP, self.threshold, self.scale)
        return moved(base_P, mask(weighted_sum(tau_MP), keep_MP[self.task]), self.scale)
