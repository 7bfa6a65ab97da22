"""Incremental rank-one updates: a new task adds a factor and rescales those of the tasks before.

    W_t = W_0 + sum_{u <= t} up_u diag(s_tu) down_u

The factors of earlier tasks are frozen; a task trains its own, the scales s_t that it puts on all
of them (1 on its own and 0 on others at first), and a bias.

Source: Hyder, Shao, Hou, Markopoulos, Prater-Bennette & Asif, "Incremental Task Learning with
    Incremental Rank Updates", ECCV 2022, https://arxiv.org/abs/2207.09074, and the authors' code
Differs from the source: it trains W_0 as the first task's factors, from scratch; here W_0 is the
    base's, frozen. up starts at 0, so the start is no change (the source draws both factors).
    Frozen means that rows of a task send gradients to its own factors alone: tasks trained
    together never train each other's, though what one learns moves those after it.
Shapes: B = rows of the batch, T = tasks, U = tasks a task may build on, R = rank of one task's
    factor, S = U * R, I, O = inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Rows, along_channels
from polytask.adapt.low_rank import (
    Factored,
    check_rank,
    draw,
    plus_up,
    product,
    reduced,
    reduced_by,
)
from polytask.errors import UsageError


@dataclass(frozen=True)
class IncrementalRank(Factored):
    """Adapts linear layers and convolutions without groups; zero change at the start.

    rank: of one task's factor. most: tasks that there may ever be; a row costs as
        much as a change of rank (most + 1) * rank.
    bias: train a bias for each task, where the layer has one.
    """

    rank: int = 1
    most: int = 64
    bias: bool = True

    def __post_init__(self) -> None:
        check_rank("IncrementalRank", self.rank)
        if type(self.most) is not int or self.most < 1:
            raise UsageError(f"IncrementalRank: most is {self.most!r}; give a whole number >= 1.")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's factors, scales and biases for T tasks, in the order they came."""
        return IncrementalAdapter(layer, self, tasks, generator)


class IncrementalAdapter(Adapter):
    """down_TRI, up_TRO, scale_TUR and bias_TO.

    scale_TUR: of the factor u tasks before a task's own, so that a task added has the same first
        row whatever its number: 1 at u = 0, and 0.
    """

    folds = True

    def __init__(
        self, layer: Layer, settings: IncrementalRank, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        self.per_task = ("down_TRI", "up_TRO", "scale_TUR")
        self.down_TRI, self.up_TRO = draw(layer, (tasks,), settings.rank, generator)
        self.scale_TUR = nn.Parameter(torch.zeros(tasks, settings.most, settings.rank))
        self.scale_TUR.data[:, 0] = 1.0
        self.has_bias = settings.bias and layer.bias is not None
        if self.has_bias:
            self.bias_TO = nn.Parameter(torch.zeros(tasks, layer.outputs))
            self.per_task = (*self.per_task, "bias_TO")
        self._check()

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        self._check()  # tasks may have been added
        own_BR, before_BS = self._scales(rows)
        # A task's own factor, then all of those before it, without a gradient.
        small = reduced(self.layer, x, self.down_TRI, rows)
        y = plus_up(y, _scaled(small, own_BR), rows.take(self.up_TRO, y, none=0.0))
        small = reduced_by(self.layer, x, self._all(self.down_TRI, x))
        y = plus_up(y, _scaled(small, before_BS), self._all(self.up_TRO, y))
        if self.has_bias:
            y = y + along_channels(rows.take(self.bias_TO, y, none=0.0), y)
        return y

    def _scales(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return each row's scales of its own factor, (B, R), and of all, 0 from its own on."""
        scale_BUR = rows.take(self.scale_TUR, self.scale_TUR, none=0.0)
        most = scale_BUR.shape[1]
        ago_BU = rows.at_B[:, None] - torch.arange(most, device=rows.at_B.device)
        at_BUR = ago_BU.clamp(min=0).unsqueeze(2).expand_as(scale_BUR)
        before_BUR = torch.where(ago_BU.unsqueeze(2) > 0, scale_BUR.gather(1, at_BUR), 0.0)
        return scale_BUR[:, 0], before_BUR.flatten(1)

    def _all(self, factor_TRX: Tensor, like: Tensor) -> Tensor:
        """Return every task's factor for every row, without a gradient: (B, S, ...).

        As many as there may ever be, so that a task added leaves the others' sums, and their bits.
        """
        whole = factor_TRX.detach().to(like.dtype)
        missing = whole.new_zeros(self.scale_TUR.shape[1] - len(whole), *whole.shape[1:])
        whole = torch.cat([whole, missing]).flatten(0, 1)
        return whole.expand(len(like), *whole.shape)

    def _check(self) -> None:
        tasks, most = self.scale_TUR.shape[:2]
        if tasks > most:
            raise UsageError(
                f"IncrementalRank: there are {tasks} tasks, and scales for {most}; give a larger "
                "`most` when the model is adapted."
            )

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros_like(weight_OI)
        for ago in range(task + 1):
            scale_R1 = self.scale_TUR[task, ago].detach().double().unsqueeze(1)
            up_RO = scale_R1 * self.up_TRO[task - ago].detach().double()
            total += product(self.layer, self.down_TRI[task - ago], up_RO)
        return total, self.bias_TO[task].detach().double() if self.has_bias else None


def _scaled(small: Tensor, scale_BS: Tensor) -> Tensor:
    """Return (B, N, S), or (B, n, S, P) of convolutions, times each row's scales."""
    return small * scale_BS.to(small.dtype).view(len(scale_BS), 1, -1, *[1] * (small.dim() - 3))
