"""Proportional: every row of every stream equally often.

Source: the baseline; "examples-proportional mixing" without cap in Raffel et al., "Exploring the
    Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020,
    https://arxiv.org/abs/1910.10683, section 3.5.2
Differs from the source: no cap on a stream's size; see `Temperature`.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.mix.base import Now, State, Streams, Varies


@dataclass(frozen=True)
class Proportional:
    """Shares that are the streams' sizes over their sum."""

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = False

    def start(self, streams: Streams) -> State:
        """Return nothing: there is nothing to remember."""
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        rows_S = streams.sizes_S.to(torch.float64)
        return rows_S / rows_S.sum()
