"""SSF: scale and shift the channels of a layer's output, y -> scale * y + shift.

Source: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
    NeurIPS 2022, https://arxiv.org/abs/2210.08823, and the authors' code
Differs from the source: nothing known. As there, scales start at N(1, 0.02^2) and shifts at
    N(0, 0.02^2), so the start is no zero change; std=0 makes it one.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, O = channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows, along_channels, normal
from polytask.errors import UsageError


@dataclass(frozen=True)
class SSF(Method):
    """Adapts linear layers, convolutions, norms and embeddings; folds into their weights.

    std: of the first scales around 1 and shifts around 0.
    """

    kinds = ("linear", "conv", "norm", "embedding")

    std: float = 0.02

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise UsageError(f"SSF: std is {self.std}; give a number >= 0 (default 0.02).")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's scales and shifts for T tasks."""
        return SSFAdapter(layer, self, tasks, generator)


class SSFAdapter(Adapter):
    """scale_TO and shift_TO."""

    per_task = ("scale_TO", "shift_TO")
    folds = True

    def __init__(self, layer: Layer, settings: SSF, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        shape = (tasks, layer.outputs)
        self.scale_TO = normal(shape, 1.0, settings.std, generator)
        self.shift_TO = normal(shape, 0.0, settings.std, generator)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        scale = along_channels(rows.take(self.scale_TO, y, none=1.0), y)
        shift = along_channels(rows.take(self.shift_TO, y, none=0.0), y)
        return torch.addcmul(shift, y, scale)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        more_O = self.scale_TO[task].detach().double() - 1
        shift_O = self.shift_TO[task].detach().double()
        more_OI = more_O.view(-1, *[1] * (weight_OI.dim() - 1)) * weight_OI
        if self.layer.kind == "embedding":  # no bias: every entry is shifted
            return more_OI + shift_O[:, None], None
        return more_OI, shift_O if bias_O is None else more_O * bias_O + shift_O
