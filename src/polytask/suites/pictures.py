"""What encoders of pictures share: statistics of the colours, and maps finer than their tokens.

Shapes: B = rows, C = channels of the picture, H, W = height and width of the tokens, S = sides of a
token's own square of features, F = channels of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import UsageError

MAP_STEP = 2
"""Pixels of the picture per feature of a "map", which is interpolated from there."""


def statistics(name: str, mean_C: Sequence[float], scale_C: Sequence[float]) -> list[Tensor]:
    """Return mean and scale of each channel, both (C, 1, 1), or raise UsageError.

    name: of the encoder, for the error.
    """
    if len(mean_C) != len(scale_C) or not mean_C or min(scale_C) <= 0:
        raise UsageError(
            f"{name}: give one mean and one scale > 0 per channel of the picture; got means "
            f"{list(mean_C)} and scales {list(scale_C)}."
        )
    return [torch.tensor(values_C)[:, None, None] for values_C in (mean_C, scale_C)]


def fine_map(squares_BXHW: Tensor, square: int, size: Sequence[int]) -> Tensor:
    """Return features of every pixel of pictures of a size, (B, F, *size), where each token has a
    square of them: X = F * S * S."""
    fine = functional.pixel_shuffle(squares_BXHW, square)
    return functional.interpolate(fine, size=tuple(size), mode="bilinear", align_corners=False)
