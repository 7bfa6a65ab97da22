"""MTL-LoRA: one A, a small matrix of each task after it, several B that each task mixes its way.

    change of task t = (alpha / R) * sum_i softmax(w_t / temperature)_i B_i L_t A

Source: Yang et al., "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning", AAAI 2025,
    https://arxiv.org/abs/2410.09437, and the authors' code
Differs from the source: w starts at 0, so that B are mixed evenly at first. B are mixed into one
    for each row before the product, which is the same sum.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = experts, R = rank,
    I, O = inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.experts import check_many, reduced_common
from polytask.adapt.low_rank import (
    Factored,
    check_alpha,
    check_dropout,
    check_rank,
    draw,
    plus_up,
    product,
)
from polytask.adapt.selection import Selection, Softmax, TaskScores, mixed, of_task


@dataclass(frozen=True)
class MTLLoRA(Factored):
    """Adapts linear layers, and convolutions without groups; zero change at the start.

    experts: how many B. alpha: the scale is alpha / rank. temperature: of the mix of B, > 0.
    diagonal: each task's matrix is a diagonal. dropout: of the adapter's input, in training.
    """

    rank: int = 8
    alpha: float = 16.0
    experts: int = 3
    temperature: float = 0.1
    diagonal: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_rank("MTLLoRA", self.rank)
        check_alpha("MTLLoRA", self.alpha)
        check_many("MTLLoRA", "experts", self.experts, 3)
        check_dropout("MTLLoRA", self.dropout)
        Softmax(self.temperature)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's factors, and T tasks' matrices and mixes."""
        return MTLLoRAAdapter(layer, self, tasks, generator)


class MTLLoRAAdapter(Adapter):
    """down_RI (A), core_TRR or core_TR (L), up_ERO (B, transposed), and the mix of each task."""

    folds = True

    def __init__(self, layer: Layer, settings: MTLLoRA, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        rank = settings.rank
        self.scale, self.dropout = settings.alpha / rank, settings.dropout
        self.down_RI, _ = draw(layer, (), rank, generator)
        if settings.diagonal:
            self.core_TR = nn.Parameter(torch.ones(tasks, rank))
            self.per_task = ("core_TR",)
        else:
            self.core_TRR = nn.Parameter(torch.eye(rank).repeat(tasks, 1, 1))
            self.per_task = ("core_TRR",)
        self.up_ERO = nn.Parameter(torch.zeros(settings.experts, rank, layer.outputs))
        scores = TaskScores(tasks, settings.experts, generator)
        self.selection = Selection(scores, Softmax(settings.temperature), layer.path)
        self.diagonal = settings.diagonal

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        small = reduced_common(self.layer, x, self.down_RI)
        up_BRO = mixed(self.selection(rows), self.up_ERO)
        # L_t goes to the mixed B, which is smaller than what a row has here.
        if self.diagonal:
            up_BRO = rows.take(self.core_TR, up_BRO).unsqueeze(-1) * up_BRO
        else:
            up_BRO = torch.bmm(rows.take(self.core_TRR, up_BRO).mT, up_BRO)
        return plus_up(y, small, rows.only(up_BRO, 0.0).to(y.dtype), self.scale)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        core = self.core_TR[task].diag() if self.diagonal else self.core_TRR[task]
        up_RO = torch.einsum("e,ero->ro", of_task(self.selection, task)[0], self.up_ERO)
        return self.scale * product(self.layer, self.down_RI, core.mT @ up_RO), None
