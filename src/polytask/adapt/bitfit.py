"""BitFit: train the biases alone, a set of them for each task.

Source: Ben Zaken, Ravfogel & Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
    Transformer-based Masked Language-models", ACL 2022, https://arxiv.org/abs/2106.10199
Differs from the source: what is trained is each task's difference from the base's bias, which is
    the same and leaves the base as it is. Weight decay therefore pulls towards the base's biases.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, O = outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows, along_channels


@dataclass(frozen=True)
class BitFit(Method):
    """Adapts the biases that linear layers, convolutions and norms have; zero change at first."""

    kinds = ("linear", "conv", "norm")

    def refuses(self, layer: Layer) -> str:
        """Return that a layer has no bias, "" where it has one."""
        return "" if layer.bias is not None else "it has no bias"

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's differences for T tasks."""
        return BitFitAdapter(layer, tasks)


class BitFitAdapter(Adapter):
    """bias_TO: what is added to the base's bias."""

    per_task = ("bias_TO",)
    folds = True

    def __init__(self, layer: Layer, tasks: int) -> None:
        super().__init__(layer)
        self.bias_TO = nn.Parameter(torch.zeros(tasks, layer.outputs))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y + along_channels(rows.take(self.bias_TO, y, none=0.0), y)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(weight_OI), self.bias_TO[task].detach().double()
