"""Decoders: what stands between the stages of an encoder of pictures and the tasks' heads.

A trunk sees the features an encoder ends with; a decoder sees them on the way as well. What it
gives each task has the shape of the encoder's last stage, and the encoder finishes it as it
finishes its own: so a decoder works for heads of pixels and of rows alike.

An encoder shows its stages by four names (see `Staged`); `UNet`, `ConvNet` and `ViT` of the suites
do.

Shapes: B = rows of the batch, C = channels of a stage, H, W = its height and width, R = B * H * W
positions, A = asked tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share import heads as run_heads
from polytask.share.base import Features, Inputs, Trace, key
from polytask.share.between import Alone, Between, BetweenModel, Seen, pick
from polytask.share.experts import Stacked, own
from polytask.tasks import TaskSet

Stage = tuple[Tensor, Tensor]
"""A stage's features before its last block and after it, of one height and width."""

Channels = tuple[tuple[int, int], ...]
"""Of each stage, the channels before its last block and after it."""


@runtime_checkable
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


def staged(encoder: nn.Module, reader: str) -> Staged:
    """Return the encoder; UsageError where it does not show its stages."""
    if isinstance(encoder, Staged):
        return encoder
    raise UsageError(
        f"{reader} reads the stages of an encoder of pictures, and {type(encoder).__name__} shows "
        "none; give one with stage_channels, scales, width, stages and finish, such as "
        "polytask.suites.dense_encoders.UNet, or take another sharing."
    )


class Decoder(Between):
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


class StagedModel(BetweenModel):
    """A model of a staged encoder, a decoder, and one head per task.

    heads: task -> module that takes features as the encoder's own. Their order is axis T, and
        they are the decoder's tasks. reads: task -> the name of the feature it reads, where the
        encoder gives a mapping; a task not named reads "row".

    Raises UsageError where encoder, decoder and heads do not fit.
    """

    trunk: Decoder

    def __init__(
        self,
        encoder: nn.Module,
        trunk: Decoder,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
    ) -> None:
        name = type(trunk).__name__
        told = staged(encoder, name)
        super().__init__(encoder, trunk, heads, reads, told.width)
        last = len(told.stage_channels) - 1
        if trunk.positions[-1] != last:
            raise UsageError(
                f"{name} reads the stages {trunk.positions}, but {type(encoder).__name__} ends "
                f"with stage {last}; let it read that one last."
            )
        there = tuple(told.stage_channels[at] for at in trunk.positions)
        if there != trunk.channels:
            raise UsageError(
                f"{name} was made for stages of the channels {trunk.channels}, but those of "
                f"{type(encoder).__name__} have {there}."
            )

    @classmethod
    def build(cls, encoder: nn.Module, trunk: Decoder, tasks: TaskSet) -> Self:
        """Return the model whose heads are those of the tasks' kinds."""
        width = staged(encoder, type(trunk).__name__).width
        heads = {task.name: task.kind.head(width) for task in tasks}
        return cls(encoder, trunk, heads, {task.name: task.kind.reads for task in tasks})

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the penalties and the use of experts.
        """
        asked = tuple(dict.fromkeys(self._asked(tasks)))
        if not asked:
            return {}
        seen: Seen | None = None if trace is None else {}
        features = decoded(
            self.encoder,
            self.trunk.mix,
            self.trunk.positions,
            self.trunk.stack(asked),
            inputs,
            seen,
        )
        outputs: dict[str, Tensor] = {}
        for read, names in self._readers(asked).items():
            at = [asked.index(task) for task in names]
            heads = {task: self.heads[key(task)] for task in names}
            outputs |= finished(heads, features, read, at, len(asked), self.encoder)
        outputs = {task: outputs[task] for task in asked}
        if trace is not None and seen is not None:
            trace.gates += self.trunk.gates(asked, seen)
            trace.penalties |= self.trunk.penalties(asked, seen, outputs)
        return outputs

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        It holds what the task needs and nothing else, and computes the same bits.
        """
        (name,) = self._asked((task,))
        return Extracted(self, name)


class Extracted(Alone):
    """One task's part of a `StagedModel`: inputs -> the task's output."""

    def __init__(self, model: StagedModel, task: str) -> None:
        super().__init__(model, task)
        self._mix, self._positions = type(model.trunk).mix, model.trunk.positions

    def forward(self, inputs: Inputs) -> Tensor:
        features = decoded(self.encoder, self._mix, self._positions, self.stacked, inputs, None)
        return finished({"": self.head}, features, self._read, [0], 1, self.encoder)[""]


class Mix(Protocol):
    """`Decoder.mix`."""

    def __call__(
        self, stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None
    ) -> Tensor: ...


def decoded(
    encoder: nn.Module,
    mix: Mix,
    positions: Sequence[int],
    stacked: Stacked,
    inputs: Inputs,
    seen: Seen | None,
) -> Features:
    """Return the encoder's features, made from what the decoder gives each task, (A * B, ...)."""
    assert isinstance(encoder, Staged)
    if not isinstance(inputs, Tensor):
        raise UsageError(
            f"{type(encoder).__name__} reads pictures, one tensor; got a mapping of "
            f"{', '.join(map(repr, inputs))}."
        )
    every = encoder.stages(inputs)
    stages = [every[at] for at in positions]
    given_ARC = mix(stacked, stages, seen)
    return encoder.finish(picture(given_ARC, stages[-1][1]), inputs.shape[-2:])


def finished(
    heads: Mapping[str, nn.Module],
    features: Features,
    read: str,
    at: Sequence[int],
    tasks: int,
    encoder: nn.Module,
) -> dict[str, Tensor]:
    """Return the heads' outputs. at: where each head's task stands among the `tasks` that ran."""
    feature = pick(features, read, next(iter(heads)), encoder)
    every = feature.reshape(tasks, -1, *feature.shape[1:])
    mine = every if len(at) == tasks else every[list(at)]
    return run_heads.each(heads, mine, _as_it_is, apart=mine.ndim != 3)


def _as_it_is(x: Tensor) -> Tensor:
    return x


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
        return functional.adaptive_max_pool2d(x_BCHW, list(size))
    return functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def side_by_side(name: str, modules: Sequence[nn.Module]) -> Stacked:
    """Return the parameters of modules of one form, stacked on dim 0, by "<name>_<parameter>"."""
    return {
        f"{name}_{parameter}": torch.stack([own(module, parameter) for module in modules])
        for parameter, _ in modules[0].named_parameters(recurse=False)
    }
