"""SLERP: from one model to another along the arc between them, tensor by tensor.

Source: Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985,
    doi:10.1145/325334.325242; for models, as in mergekit.
Differs from the source: nothing known. In a straight line where the arc is not determined or too
    flat to divide by: where |cos| > 0.9995, as in mergekit and FusionBench, and where a tensor is
    all 0, which mergekit takes to stand at a right angle to every other. Summed in float64 and
    rounded once; mergekit computes in float32, so that a tensor near the limit may go the other
    way. With its `base_model` for the first, mergekit's t is this one.
Shapes: M = tuned models, here 2; P = elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.angles import Angles, cosine

STRAIGHT = 0.9995
"""From this |cosine| on, a straight line."""


@dataclass(frozen=True)
class SLERP(Angles):
    """The first model at t = 0, the second at t = 1; (a, b) at t is (b, a) at 1 - t.

    t: in [0, 1].
    """

    needs_base: ClassVar[bool] = False
    order_free: ClassVar[bool] = False
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    t: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise UsageError(f"SLERP: t is {self.t}; give a number from 0 to 1.")

    def mix(self, gram_MM: Tensor) -> tuple[float, tuple[float, ...]]:
        """Return 0 for the base, and the two models' factors."""
        cos = cosine(gram_MM.tolist(), 0, 1)
        empty = float(gram_MM[0, 0]) == 0 or float(gram_MM[1, 1]) == 0
        if empty or abs(cos) > STRAIGHT:
            return 0.0, (1 - self.t, self.t)
        angle = math.acos(cos)
        of = [math.sin(part * angle) / math.sin(angle) for part in (1 - self.t, self.t)]
        return 0.0, tuple(of)


def slerp(tuned_MP: Tensor, t: float = 0.5) -> Tensor:
    """Return two stacked tensors merged into one, (P,); see `SLERP`."""
    return SLERP(t)(None, tuned_MP)
