"""Alternating: one stream per step, in turn.

Source: Akbari et al., "Alternating Gradient Descent and Mixture-of-Experts for Integrated
    Multimodal Perception", NeurIPS 2023, https://arxiv.org/abs/2305.06324
Differs from the source: evidence is the abstract. The turns are fixed; the source also adds
    objectives on the way (`Curriculum` inside `Unmixed` does). See `Programs` for what it says of
    compiling.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Now, State, Streams, Varies


@dataclass(frozen=True)
class Alternating:
    """The share 1 of the stream whose turn it is.

    turns: steps in a row of each stream, in their order, whole numbers >= 0 and not all 0; None:
        one each.
    """

    varies: ClassVar[Varies] = "by step"
    observes: ClassVar[bool] = False

    turns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.turns is not None and not (min(self.turns, default=0) >= 0 and any(self.turns)):
            raise UsageError(
                f"Alternating: turns are {self.turns}; give whole numbers >= 0, not all 0."
            )

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where the turns are for another number of streams."""
        if self.turns is not None:
            streams.each(self.turns, "Alternating", "turns")
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        ends = list(accumulate(self.turns or (1,) * len(streams)))
        at = now.step % ends[-1]
        shares_S = torch.zeros(len(streams), dtype=torch.float64)
        shares_S[next(s for s, end in enumerate(ends) if at < end)] = 1.0
        return shares_S
