"""Decoders: trunks that read the stages of an encoder of pictures.

What a decoder gives each task has the shape of the encoder's last stage, and the encoder finishes
it as it finishes its own.

An encoder shows its stages by four names (see `Staged`); `UNet`, `ConvNet` and `ViT` of the suites
do.

Shapes: B = rows of the batch, C = channels of a stage, H, W = its height and width, R = B * H * W
positions, A = asked tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import Features, shows
from polytask.share.between import Seen
from polytask.share.experts import Stacked, own
from polytask.share.pictures import PictureTrunk, Run

Stage = tuple[Tensor, Tensor]
"""A stage's features before its last block and after it, of one height and width."""

Channels = tuple[tuple[int, int], ...]
"""Of each stage, the channels before its last block and after it."""


class Staged(Protocol):
    """An encoder of pictures whose stages can be seen.

    stage_channels: of each stage, in running order. scales: the stages, by position, whose
        results are worth reading together: as a rule the last of each size, the last one of all
        included. width: channels of the features it ends with.
    """

    stage_channels: Channels
    scales: tuple[int, ...]
    width: int

    def stages(self, inputs: Tensor) -> Sequence[Stage]:
        """Return every stage's features. Where a stage is a single block, both are its result."""

    def finish(self, last: Tensor, size: Sequence[int]) -> Features:
        """Return the features that a result of the last stage ends as, for pictures of a size."""


STAGED = ("stage_channels", "scales", "width", "stages", "finish")


def staged(encoder: nn.Module, reader: str) -> Staged:
    """Return the encoder; UsageError where it does not show its stages."""
    if shows(encoder, STAGED):
        return cast(Staged, encoder)
    raise UsageError(
        f"{reader} reads the stages of an encoder of pictures, and {type(encoder).__name__} shows "
        f"none; give one with {', '.join(STAGED)}, such as "
        "polytask.suites.dense_encoders.UNet, or take another sharing."
    )


class Decoder(PictureTrunk):
    """Stages of a picture -> (A, R, C): the last stage's features for each asked task.

    positions: which of the encoder's stages it reads, in running order, the last one included.
    channels: of these stages.

    Raises UsageError where they are not of such an order.
    """

    def __init__(self, positions: Sequence[int], channels: Channels) -> None:
        super().__init__()
        if not positions or list(positions) != sorted(set(positions)):
            raise UsageError(
                f"{type(self).__name__}: give the positions of at least one stage, each once and "
                f"in running order; got {tuple(positions)}."
            )
        if len(positions) != len(channels):
            raise UsageError(
                f"{type(self).__name__}: give the channels of each stage it reads; got "
                f"{len(channels)} for {len(positions)} stages."
            )
        self.positions, self.channels = tuple(positions), tuple(channels)

    @staticmethod
    @abstractmethod
    def mix(stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None) -> Tensor:
        """Return (A, R, C) for the tasks that were stacked, R the positions of the last stage.

        seen: takes what `gates` and `penalties` need, where somebody asks for it.
        """

    @property
    def run(self) -> Run:
        return partial(_run, mix=self.mix, at=self.positions)

    def fit_to(self, encoder: nn.Module) -> int:
        name, told = type(self).__name__, staged(encoder, type(self).__name__)
        last = len(told.stage_channels) - 1
        if self.positions[-1] != last:
            raise UsageError(
                f"{name} reads the stages {self.positions}, but {type(encoder).__name__} ends "
                f"with stage {last}; let it read that one last."
            )
        there = tuple(told.stage_channels[at] for at in self.positions)
        if there != self.channels:
            raise UsageError(
                f"{name} was made for stages of the channels {self.channels}, but those of "
                f"{type(encoder).__name__} have {there}."
            )
        return told.width


class Mix(Protocol):
    """`Decoder.mix`."""

    def __call__(
        self, stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None
    ) -> Tensor: ...


def _run(
    encoder: nn.Module,
    stacked: Stacked,
    pictures: Tensor,
    seen: Seen | None,
    *,
    mix: Mix,
    at: Sequence[int],
) -> Features:
    shown = cast(Staged, encoder)  # `staged` has seen to that
    every = shown.stages(pictures)
    stages = [every[position] for position in at]
    given_ARC = mix(stacked, stages, seen)
    return shown.finish(picture(given_ARC, stages[-1][1]), pictures.shape[-2:])


def positions(x_BCHW: Tensor) -> Tensor:
    """Return every position as a row, (R, C); free where channels are last in memory."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def picture(rows_ARC: Tensor, like_BCHW: Tensor) -> Tensor:
    """Return rows of positions as pictures (A * B, C, H, W), of the same height and width."""
    height, width = like_BCHW.shape[-2:]
    return rows_ARC.reshape(-1, height, width, rows_ARC.shape[-1]).permute(0, 3, 1, 2)


def resized(x_BCHW: Tensor, like: Tensor) -> Tensor:
    """Return the picture in another's height and width: interpolated up, the largest of each
    window down."""
    size = like.shape[-2:]
    if x_BCHW.shape[-2:] == size:
        return x_BCHW
    if x_BCHW.shape[-2] > size[0] or x_BCHW.shape[-1] > size[1]:
        return largest(x_BCHW, size)
    return functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def largest(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Return the largest of each window, where `size` windows cover the picture.

    Of n windows over m positions the i-th goes from i * m / n, rounded down, to (i + 1) * m / n,
    rounded up.
    """
    if not torch.compiler.is_exporting():
        return functional.adaptive_max_pool2d(x_BCHW, list(size))
    # The same from operators that ONNX knows, one side after the other.
    for dim, few in zip((-2, -1), size, strict=True):
        many = x_BCHW.shape[dim]
        first_F = torch.arange(few, device=x_BCHW.device)
        begin_F, end_F = first_F * many // few, ((first_F + 1) * many + few - 1) // few
        inside_FK = begin_F[:, None] + torch.arange(-(-many // few) + 1, device=x_BCHW.device)
        # A shorter window repeats its last position.
        inside_FK = torch.minimum(inside_FK, end_F[:, None] - 1)
        every = x_BCHW.index_select(dim, inside_FK.flatten())
        x_BCHW = torch.unflatten(every, dim, inside_FK.shape).amax(dim)
    return x_BCHW


def side_by_side(name: str, modules: Sequence[nn.Module]) -> Stacked:
    """Return the parameters of modules of one form, stacked on dim 0, by "<name>_<parameter>"."""
    return {
        f"{name}_{parameter}": torch.stack([own(module, parameter) for module in modules])
        for parameter, _ in modules[0].named_parameters(recurse=False)
    }
