"""TIES: trim the task vectors, elect a sign for every element, take the mean of those that agree.

Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
    https://arxiv.org/abs/2306.01708, algorithm 1, and the authors' code
Differs from the source: of P elements round(density * P) are kept, and those as large as the least
    of them; the authors' code keeps one more. As in their code, an element whose elected sum is 0
    takes the sign that most elements have. Changes that are exactly 0 count in no mean.
    mergekit's `ties` trims every tensor by itself (here: over="tensor"), keeps int(density * P)
    elements, drops some of equal size by their place, and gives elements of sum 0 the sign +.
    FusionBench's trims over the whole model, as the authors' code does.
Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.merge.base import Changes, Over, Place
from polytask.merge.checks import check_finite, check_share, check_weights
from polytask.merge.electing import Electing
from polytask.merge.steps import task_vectors


@dataclass(frozen=True)
class TIES(Electing):
    """theta_0 + scale * the mean of the trimmed task vectors that go in the elected direction.

    density: share of the elements kept of each task vector, in (0, 1].
    scale: of the merged task vector; the source searches 0.8 to 2.5.
    weights: one per model, multiplied before the election; the mean divides by the sizes of those
        that agree. Equal where none are given.
    over: what the share is of: the whole model, as in the source, or each tensor by itself.
    """

    density: float = 0.2
    scale: float = 1.0
    weights: tuple[float, ...] = ()
    over: Over = "model"

    def __post_init__(self) -> None:
        check_share("TIES", "density", self.density)
        check_finite("TIES", "scale", self.scale)
        check_weights("TIES", self.weights)

    @property
    def form(self) -> Changes:
        """The task vectors."""
        return Changes()

    def changes(self, base_P: Tensor, tuned_MP: Tensor, at: Place, stride: int = 1) -> Tensor:
        """Return the task vectors, (M, P)."""
        return task_vectors(base_P[::stride], tuned_MP[:, ::stride])


def ties(
    base_P: Tensor,
    tuned_MP: Tensor,
    density: float = 0.2,
    scale: float = 1.0,
    weights: tuple[float, ...] = (),
) -> Tensor:
    """Return M stacked tensors merged into one, as if they were the whole model; see `TIES`."""
    return TIES(density, scale, weights)(base_P, tuned_MP)
