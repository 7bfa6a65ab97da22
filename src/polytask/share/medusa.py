"""Medusa: heads that attend to the scales of a generic network, so that a new task trains alone.

Source: Spencer, Bowden & Hadfield, "Medusa: Universal Feature Learning via Attentional
    Multitasking", CVPR Workshops 2022, https://arxiv.org/abs/2204.05698
Differs from the source: the abstract alone was read. It says that a task masks the backbone's
    features and that an attention over scales combines what is left; the equations below were
    worked out from that. A task's mask is that of `masks`, and the attention is a softmax over
    scales at every position. The scales are those the encoder names.
Shapes: B = rows of the batch, S = scales, C, H, W = channels, height and width of the last one,
    R = B * H * W positions, A = asked tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.between import Seen
from polytask.share.experts import Stacked, product
from polytask.share.masks import Masks, mask
from polytask.share.pictures import PictureModel
from polytask.share.staged import (
    Channels,
    Decoder,
    Stage,
    picture,
    positions,
    resized,
    side_by_side,
    staged,
)
from polytask.tasks import TaskSet


class Medusa(Decoder):
    """h_t = sum_s softmax_s(v_ts g_ts) g_ts, where g_ts = up(U_ts (mask_ts(F_s) * F_s)).

    F_s are the encoder's features at scale s, U_ts a linear map to the channels of the last one,
    up brings it to that one's size, and v_ts g_ts is a number per position.

    All but the encoder is a task's own. So the features stay generic, and a task added later is
    trained by its `task_parameters` alone, with the encoder as it is: nothing of the other tasks
    changes, and nothing is trained again. Freeze the encoder for that
    (`model.encoder.requires_grad_(False)`), and its backward pass is spared too.

    tasks: their names. at: positions of the scales among the encoder's stages. channels: of these
    stages, before and after. reduction: a mask has this many times fewer channels between its
    layers than the scale has.
    """

    def __init__(
        self, tasks: Sequence[str], at: Sequence[int], channels: Channels, *, reduction: int = 1
    ) -> None:
        super().__init__(at, channels)
        if not tasks or reduction < 1:
            raise UsageError(
                f"Medusa: give at least one task and a reduction of at least 1; got {len(tasks)} "
                f"tasks and reduction {reduction}."
            )
        self.masks = nn.ModuleList(Masks(c, 0, max(1, c // reduction), c) for _, c in channels)
        self.scales = nn.ModuleList(nn.ModuleDict() for _ in channels)
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
        told = staged(encoder, "Medusa")
        channels = tuple(told.stage_channels[at] for at in told.scales)
        trunk = Medusa(tasks.names, told.scales, channels, reduction=reduction)
        return PictureModel.build(encoder, trunk, tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked: Stacked = {}
        for s, (masks, of_tasks) in enumerate(self._levels()):
            stacked |= masks.stack(f"mask_{s}", tasks)
            stacked |= side_by_side(f"scale_{s}", [of_tasks[key(task)] for task in tasks])
        return stacked

    @staticmethod
    def mix(stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None) -> Tensor:
        last = stages[-1][1]
        given, scores = [], []
        for s, (_, features) in enumerate(stages):
            masked_ARC = mask(stacked, f"mask_{s}", features) * positions(features)
            parts = (stacked[f"scale_{s}_{n}"] for n in ("weight", "bias"))
            rows = product(masked_ARC, *parts)
            rows = positions(resized(picture(rows, features), last)).view(
                len(rows), -1, last.shape[1]
            )
            given.append(rows)
            scores.append((rows * stacked[f"scale_{s}_score"]).sum(-1))
        weights_SAR = torch.stack(scores).softmax(0)
        if seen is not None:
            seen["weights_RAS"] = weights_SAR.permute(2, 1, 0)
        return (weights_SAR[..., None] * torch.stack(given)).sum(0)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return what each task takes of each scale, positions of the last one as rows."""
        names = tuple(f"stage {at}" for at in self.positions)
        return [Gate(0, tuple(tasks), names, (None,) * len(names), seen["weights_RAS"])]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return none: all that is shared is the encoder."""
        return []

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's masks and of its attention."""
        found: list[nn.Parameter] = []
        for masks, of_tasks in self._levels():
            found += [*masks.parameters_of(task), *of_tasks[key(task)].parameters()]
        return found

    def add_task(self, task: str) -> None:
        last = self.channels[-1][1]
        for (masks, of_tasks), (_, channels) in zip(self._levels(), self.channels, strict=True):
            masks.add(task)
            of_tasks[key(task)] = Scale(channels, last)
        self._tasks = (*self._tasks, task)

    def _levels(self) -> list[tuple[Masks, nn.ModuleDict]]:
        return [
            (masks, of_tasks)
            for masks, of_tasks in zip(self.masks, self.scales, strict=True)
            if isinstance(masks, Masks) and isinstance(of_tasks, nn.ModuleDict)
        ]


class Scale(nn.Module):
    """The parameters of one task at one scale: U, its bias, and v, which begins at 0: all scales
    alike."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.score = nn.Parameter(torch.zeros(1, outputs))
