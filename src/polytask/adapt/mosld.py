"""MoSLD: experts that have one A together and B of their own; a token takes the best few.

    change of a token x = (alpha / R) * sum over the top K of softmax(G x)_i B_i dropout(A) x

Source: Zhao et al., "MoSLD: An Extremely Parameter-Efficient Mixture-of-Shared LoRAs for
    Multi-Task Learning", COLING 2025, https://arxiv.org/abs/2412.08946
Differs from the source: derived from the abstract and the general form of such mixtures: the
    softmax is taken over the K chosen experts, dropout is of A's entries, one draw for a whole
    batch, and the numbers of experts and of those chosen are ours.
Shapes: B = rows of the batch, N = what a row has here, E = experts, R = rank, I, O = inputs and
    outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows
from polytask.adapt.experts import check_many, check_top, plus_spread, reduced_common
from polytask.adapt.low_rank import check_alpha, check_dropout, check_rank, draw
from polytask.adapt.selection import RouterScores, Selection, Softmax


@dataclass(frozen=True)
class MoSLD(Method):
    """Adapts linear layers; zero change at the start.

    top: experts a token takes. alpha: the scale is alpha / rank. dropout: of the entries of A, in
    training.
    """

    kinds = ("linear",)

    experts: int = 8
    top: int = 2
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_many("MoSLD", "experts", self.experts, 8)
        check_top("MoSLD", self.top, self.experts, "experts")
        check_rank("MoSLD", self.rank)
        check_alpha("MoSLD", self.alpha)
        check_dropout("MoSLD", self.dropout)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's experts and their router; nothing of them is a task's."""
        return MoSLDAdapter(layer, self, generator)


class MoSLDAdapter(Adapter):
    """down_RI (A) of all experts, up_ERO (B, transposed) of each, and their router."""

    def __init__(self, layer: Layer, settings: MoSLD, generator: Generator) -> None:
        super().__init__(layer)
        self.settings = settings
        self.down_RI, _ = draw(layer, (), settings.rank, generator)
        self.up_ERO = nn.Parameter(torch.zeros(settings.experts, settings.rank, layer.outputs))
        router = RouterScores(layer.inputs, settings.experts, generator)
        self.selection = Selection(router, Softmax(top=settings.top), layer.path)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        settings = self.settings
        down_RI: Tensor = self.down_RI
        if settings.dropout:
            down_RI = functional.dropout(down_RI, settings.dropout, self.training)
        made = reduced_common(self.layer, x, down_RI)
        up_SO, scale = self.up_ERO.flatten(0, 1), settings.alpha / settings.rank
        return plus_spread(y, made, up_SO, self.selection.chosen(rows, x), rows, scale)
