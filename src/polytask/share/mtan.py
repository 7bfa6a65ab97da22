"""MTAN: one convolutional network, and per task and stage a soft mask over its features.

Source: Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    https://arxiv.org/abs/1803.10704
Differs from the source: GroupNorm instead of BatchNorm, in the masks and in the blocks between
    them, for the reason in `masks`. Any encoder that shows its stages instead of SegNet or ResNet;
    a stage whose size differs from the one before is met by pooling or interpolating. As in the
    authors' code the blocks between stages are shared by all tasks, and the last stage has none.
Shapes: B = rows of the batch, C = channels of a stage, N = of the next one, H, W = height and
    width, R = B * H * W positions, A = asked tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.between import Seen
from polytask.share.experts import Stacked
from polytask.share.masks import Masks, group_norm, groups_of, mask
from polytask.share.pictures import PictureModel
from polytask.share.staged import (
    Channels,
    Decoder,
    Stage,
    picture,
    positions,
    resized,
    staged,
)
from polytask.tasks import TaskSet


class MTAN(Decoder):
    """a_t^s = mask_t^s([u^s, f^s(a_t^(s-1))]) * p^s, over all stages s of the encoder.

    u and p are a stage's features before its last block and after it, f a residual block that
    tasks share, brought to the size of the stage.

    tasks: their names. channels: of each stage, before and after. reduction: a mask has this many
    times fewer channels between its layers than the stage has.
    """

    def __init__(self, tasks: Sequence[str], channels: Channels, *, reduction: int = 1) -> None:
        super().__init__(range(len(channels)), channels)
        if not tasks or reduction < 1:
            raise UsageError(
                f"MTAN: give at least one task and a reduction of at least 1; got {len(tasks)} "
                f"tasks and reduction {reduction}."
            )
        befores = [0, *(after for _, after in channels[1:])]
        self.masks = nn.ModuleList(
            Masks(u, before, max(1, p // reduction), p)
            for (u, p), before in zip(channels, befores, strict=True)
        )
        self.blocks = nn.ModuleList(
            Residual(p, following) for (_, p), (_, following) in pairwise(channels)
        )
        self._tasks: tuple[str, ...] = ()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module, width: int, tasks: TaskSet, *, reduction: int = 1
    ) -> PictureModel:
        """Return the model on an encoder of pictures that shows its stages.

        reduction: a mask has this many times fewer channels between its layers.
        """
        channels = staged(encoder, "MTAN").stage_channels
        return PictureModel.build(encoder, MTAN(tasks.names, channels, reduction=reduction), tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked: Stacked = {}
        for s, masks in enumerate(self._masks()):
            stacked |= masks.stack(f"mask_{s}", tasks)
        for name, parameter in self.blocks.named_parameters():
            stacked[f"block_{name.replace('.', '_')}"] = parameter
        return stacked

    @staticmethod
    def mix(stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None) -> Tensor:
        before_ARN: Tensor | None = None
        for s, (u_BCHW, p_BCHW) in enumerate(stages):
            mask_ARC = mask(stacked, f"mask_{s}", u_BCHW, before_ARN)
            given_ARC = mask_ARC * positions(p_BCHW)
            if s == len(stages) - 1:
                break
            refined = residual(stacked, f"block_{s}", picture(given_ARC, p_BCHW))
            rows = positions(resized(refined, stages[s + 1][0]))
            before_ARN = rows.view(len(given_ARC), -1, rows.shape[-1])
        return given_ARC

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the blocks between stages."""
        return list(self.blocks.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's masks."""
        return [p for masks in self._masks() for p in masks.parameters_of(task)]

    def add_task(self, task: str) -> None:
        for masks in self._masks():
            masks.add(task)
        self._tasks = (*self._tasks, task)

    def _masks(self) -> list[Masks]:
        return [masks for masks in self.masks if isinstance(masks, Masks)]


class Residual(nn.Module):
    """The parameters of a bottleneck block, from C to N channels: 1x1 to a quarter of N, 3x3, 1x1,
    beside a 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = max(1, outputs // 4)
        for name, i, o, side in (
            ("narrow", inputs, inner, 1),
            ("around", inner, inner, 3),
            ("widen", inner, outputs, 1),
            ("beside", inputs, outputs, 1),
        ):
            self.add_module(name, nn.Conv2d(i, o, side, padding=side // 2, bias=False))
            self.add_module(f"{name}_norm", nn.GroupNorm(groups_of(o), o))


def residual(stacked: Stacked, name: str, x_BCHW: Tensor) -> Tensor:
    """Return what the block `name` makes of a picture, (B, N, H, W); see `Residual`."""

    def layer(part: str, x: Tensor) -> Tensor:
        weight = stacked[f"{name}_{part}_weight"]
        y = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        gain, shift = (stacked[f"{name}_{part}_norm_{n}"] for n in ("weight", "bias"))
        return group_norm(y, gain, shift)

    inner = layer("around", layer("narrow", x_BCHW).relu_()).relu_()
    return (layer("widen", inner) + layer("beside", x_BCHW)).relu_()
