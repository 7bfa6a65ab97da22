"""Uniform: every stream equally often, whatever its size.

Source: the baseline; "equal mixing" in Raffel et al., "Exploring the Limits of Transfer Learning
    with a Unified Text-to-Text Transformer", JMLR 2020, https://arxiv.org/abs/1910.10683,
    section 3.5.2
Differs from the source: nothing known.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """Shares of 1 / S."""

    def __call__(self, sizes_S: Tensor, step: int) -> Tensor:
        """Return shares of shape (S,), float64."""
        return torch.full((len(sizes_S),), 1 / len(sizes_S), dtype=torch.float64)
