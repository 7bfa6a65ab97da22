"""Encoders of pictures that give features for every pixel.

Shapes: B = rows, C = channels of the picture, H, W = its height and width, D = width of the
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.suites.pictures import statistics

GROUP = 8
"""Channels that GroupNorm normalises together. Never BatchNorm, for the reason in `encoders`."""


class UNet(nn.Module):
    """Features of every pixel: bytes (B, C, H, W) -> {"map": (B, D, H, W)}; D = channels[0].

    Source: Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597.
    Differs from the source: made for processors without an accelerator. The first convolution
    already halves the picture and the last features are interpolated up to it, so that no
    convolution runs at full size; GroupNorm; padded convolutions; bilinear steps up.

    mean_C, scale_C: of the training pictures, in the unit of the input (0 to 255 for bytes).
    channels: of each halving, from fine to coarse, multiples of 8. H and W may be any size: a
    step up goes to the size that its step down came from.

    Its stages can be seen, as sharing by stages asks: every step down and up, in this order.
    """

    mean_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        mean_C: Sequence[float],
        scale_C: Sequence[float],
        channels: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        mean_C11, scale_C11 = statistics("UNet", mean_C, scale_C)
        if len(channels) < 2 or any(c < GROUP or c % GROUP for c in channels):
            raise UsageError(
                f"UNet: channels must be at least two multiples of {GROUP}; got {list(channels)}."
            )
        self.register_buffer("mean_C11", mean_C11)
        self.register_buffer("scale_C11", scale_C11)
        self.down = nn.ModuleList(
            nn.Sequential(_block(before, after, stride=2), _block(after, after))
            for before, after in zip((len(mean_C), *channels), channels, strict=False)
        )
        coarse_first = channels[::-1]
        self.up = nn.ModuleList(
            _block(below + beside, beside) for below, beside in pairwise(coarse_first)
        )
        self.width = channels[0]
        steps_up = [(below + beside, beside) for below, beside in pairwise(coarse_first)]
        self.stage_channels = (*((c, c) for c in channels), *steps_up)
        # The way up has seen more than the way down has at the same size.
        self.scales = tuple(range(len(channels) - 1, len(self.stage_channels)))

    def forward(self, pictures_BCHW: Tensor) -> dict[str, Tensor]:
        return self.finish(self.stages(pictures_BCHW)[-1][1], pictures_BCHW.shape[-2:])

    def stages(self, pictures_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the features before the last convolution of each step, and after it."""
        x = (pictures_BCHW.float() - self.mean_C11) / self.scale_C11
        # Channels last: a fifth less time for these convolutions on a CPU, and no more elsewhere.
        x = x.contiguous(memory_format=torch.channels_last)
        seen = []
        for down in self.down:
            assert isinstance(down, nn.Sequential)
            before = down[0](x)
            x = down[1](before)
            seen.append((before, x))
        finer_last = [after for _, after in seen[:-1]]
        for up, finer in zip(self.up, reversed(finer_last), strict=True):
            before = torch.cat([_sized(x, finer.shape[-2:]), finer], dim=1)
            x = up(before)
            seen.append((before, x))
        return seen

    def finish(self, last_BDHW: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """Return the features of every pixel of pictures of this size."""
        return {"map": _sized(last_BDHW, size)}


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(after // GROUP, after),
        nn.ReLU(),
    )


def _sized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
