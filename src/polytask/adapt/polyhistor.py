"""Polyhistor: bottlenecks of every task and layer from small factors that tasks or layers share.

    change(y) = gelu(y D^T + b) U + c
    Polyhistor:       D = P_layer M_task Q_layer
    Polyhistor-Lite:  D = (P M_task Q) kron S_layer,    and U in the same way

A layer's hypernetwork is decomposed into two factors, P and Q, around a small matrix of the task.
In Lite P and Q make one template kernel for all layers, which a scaling kernel S of each layer
brings to its size: layers of several widths, as those of hierarchical vision transformers, share.

Source: Liu, Ma, Tian, He & Kira, "Polyhistor: Parameter-Efficient Multi-Task Adaptation for Dense
    Vision Tasks", NeurIPS 2022, https://arxiv.org/abs/2210.03265
Differs from the source: derived from its abstract and figure 2. That the task's embedding is a
    matrix between both factors, the sizes of S, and biases of each layer's own, which its tasks
    share, are ours. U's last factor (Q, or S in Lite) starts at 0, so the start is no change.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, K = rank, R = channels of the
    bottleneck, O = channels of the layer, X, C = rows and channels of a template (R and O but in
    Lite), S, V = those of a scaling kernel: R = X * S, O = C * V.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal
from polytask.adapt.low_rank import check_rank
from polytask.adapt.place import takes_channels_last
from polytask.errors import UsageError


@dataclass(frozen=True)
class Polyhistor(Method):
    """Adapts linear layers, norms, and whole modules whose channels are last; not foldable.

    lite: Polyhistor-Lite. rank: K. width: channels of the bottleneck, R.
    spread: rows of a scaling kernel (Lite), which divide the width. channels: of a template (Lite),
    which divide the layers' widths; 0: their greatest common divisor.
    """

    kinds = ("linear", "norm", "module")

    lite: bool = False
    rank: int = 8
    width: int = 8
    spread: int = 2
    channels: int = 0

    def __post_init__(self) -> None:
        check_rank("Polyhistor", self.rank)
        for name, value, least in (
            ("width", self.width, 1), ("spread", self.spread, 1), ("channels", self.channels, 0),
        ):  # fmt: skip
            if type(value) is not int or value < least:
                raise UsageError(
                    f"Polyhistor: {name} is {value!r}; give a whole number >= {least}."
                )
        if self.lite and self.width % self.spread:
            raise UsageError(
                f"Polyhistor: width is {self.width} and spread {self.spread}; give a spread that "
                "divides the width."
            )

    def refuses(self, layer: Layer) -> str:
        """Return why a layer has no such adapter, "" where it has."""
        return takes_channels_last(layer)

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module:
        """Return the tasks' matrices and, in Lite, the factors of the template kernels."""
        channels = self.channels or math.gcd(*(layer.outputs for layer in layers))
        for layer in layers:
            if self.lite and layer.outputs % channels:
                raise UsageError(
                    f"Polyhistor: {layer.path!r} has {layer.outputs} channels, which a template of "
                    f"{channels} cannot be scaled to; give channels that divide all widths."
                )
        return Shared(self, channels, tasks, generator)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's factors, or its scaling kernels."""
        assert isinstance(common, Shared)
        return PolyhistorAdapter(layer, self, generator, common)


class Factors(nn.Module):
    """left_2XK and right_2KC: P and Q, of D and of U."""

    def __init__(
        self, shape: tuple[int, int], rank: int, generator: Generator, zero: bool = False
    ) -> None:
        super().__init__()
        rows, channels = shape
        self.left_2XK = normal((2, rows, rank), 0.0, rank**-0.5, generator)
        self.right_2KC = normal((2, rank, channels), 0.0, channels**-0.5, generator)
        if zero:
            self.right_2KC.data[1] = 0.0

    def forward(self, task_B2KK: Tensor) -> Tensor:
        """Return P M Q of each row, (B, 2, X, C)."""
        return self.left_2XK.to(task_B2KK.dtype) @ task_B2KK @ self.right_2KC.to(task_B2KK.dtype)


class Shared(nn.Module):
    """task_T2KK: the tasks' matrices M, of D and of U; template, in Lite."""

    per_task = ("task_T2KK",)

    def __init__(
        self, settings: Polyhistor, channels: int, tasks: int, generator: Generator
    ) -> None:
        super().__init__()
        rank = settings.rank
        self.task_T2KK = normal((tasks, 2, rank, rank), 0.0, rank**-0.5, generator)
        self.shape = (settings.width // settings.spread, channels)
        if settings.lite:
            self.template = Factors(self.shape, rank, generator)


class PolyhistorAdapter(Adapter):
    """factors, or scale_2SV of Lite; bias_R and bias_O."""

    def __init__(
        self, layer: Layer, settings: Polyhistor, generator: Generator, common: Shared
    ) -> None:
        super().__init__(layer, common)
        self.lite = settings.lite
        if settings.lite:
            shape = (2, settings.spread, layer.outputs // common.shape[1])
            self.scale_2SV = normal(shape, 0.0, shape[1] ** -0.5, generator)
            self.scale_2SV.data[1] = 0.0
        else:
            whole = (settings.width, layer.outputs)
            self.factors = Factors(whole, settings.rank, generator, zero=True)
        self.bias_R = nn.Parameter(torch.zeros(settings.width))
        self.bias_O = nn.Parameter(torch.zeros(layer.outputs))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        shared = self.common
        assert isinstance(shared, Shared)
        task_B2KK = rows.take(shared.task_T2KK, y)
        if self.lite:
            kernel_B2XC = shared.template(task_B2KK)
            scaled = torch.einsum("bixc,isv->bixscv", kernel_B2XC, self.scale_2SV.to(y.dtype))
            made_B2RO = scaled.flatten(4, 5).flatten(2, 3)
        else:
            made_B2RO = self.factors(task_B2KK)
        down_BRO, up_BRO = made_B2RO.unbind(1)
        small = functional.gelu(torch.bmm(y, down_BRO.mT) + self.bias_R.to(y.dtype))
        change = torch.baddbmm(self.bias_O.to(y.dtype).view(1, 1, -1), small, up_BRO)
        return y + rows.only(change, 0.0)
