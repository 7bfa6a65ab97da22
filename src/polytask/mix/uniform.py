"""Uniform: every stream equally often, whatever its size.

Source: the baseline; "equal mixing" in Raffel et al., "Exploring the Limits of Transfer Learning
    with a Unified Text-to-Text Transformer", JMLR 2020, https://arxiv.org/abs/1910.10683,
    section 3.5.2
Differs from the source: nothing known.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.mix.base import Now, State, Streams, Varies


@dataclass(frozen=True)
class Uniform:
    """Shares of 1 / S."""

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = False

    def start(self, streams: Streams) -> State:
        """Return nothing: there is nothing to remember."""
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        return torch.full((len(streams),), 1 / len(streams), dtype=torch.float64)
