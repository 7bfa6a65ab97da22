"""LoRA: W_0 + scale * B A, a product of two thin factors for each task.

rsLoRA is LoRA with another scale: alpha / sqrt(R) instead of alpha / R.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
    https://arxiv.org/abs/2106.09685; Kalajdzievski, "A Rank Stabilization Scaling Factor for
    Fine-Tuning with LoRA", 2023, https://arxiv.org/abs/2312.03732
Differs from the source: every task has factors of its own, in one tensor. A is Kaiming-uniform, as
    in the authors' code; their text says Gaussian.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, R = rank, I, O = inputs and
    outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.low_rank import (
    KINDS,
    LowRank,
    draw,
    plus_up,
    product,
    reduced,
)


@dataclass(frozen=True)
class LoRA(LowRank):
    """Adapts linear layers, convolutions without groups, and embeddings; zero change at the start.

    Its settings are those of `LowRank`; with stabilised=True it is rsLoRA.
    """

    kinds = KINDS

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's factors for T tasks."""
        return LoRAAdapter(layer, self, tasks, generator)


class LoRAAdapter(Adapter):
    """Factors of every task: down_TRI (A) and up_TRO (B, transposed).

    A convolution's down has its kernel, (T, R, I, k, ...); an embedding's is (T, V, R).
    """

    per_task = ("down_TRI", "up_TRO")
    folds = True

    def __init__(self, layer: Layer, settings: LoRA, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        self.scale, self.dropout = settings.scale, settings.dropout
        self.down_TRI, self.up_TRO = draw(layer, (tasks,), settings.rank, generator)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        # Rows without a task get 0 where there are fewest numbers: between the factors.
        small = rows.only(reduced(self.layer, x, self.down_TRI, rows), 0.0)
        return plus_up(y, small, rows.take(self.up_TRO, y), self.scale)

    def factors(self, task: int) -> tuple[Tensor, Tensor]:
        """Return one task's down factor and its up factor times the scale, as it stands in a
        merge of adapters: (R, I) or (R, I, k, ...), and (O, R)."""
        down, up_RO = self.down_TRI[task].detach(), self.up_TRO[task].detach()
        return (down.t() if self.layer.kind == "embedding" else down), self.scale * up_RO.t()

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.scale * product(self.layer, self.down_TRI[task], self.up_TRO[task]), None
