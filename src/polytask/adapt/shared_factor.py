"""Shared factors: LoRA whose A, or whose B, is one for all tasks; the other is each task's own.

    change of task t = (alpha / R) * B_t A    or    (alpha / R) * B A_t

Half of a task's parameters are left. Zhu et al. find that B carries the task while A may be
anything, even frozen at its random start (`freeze=True`).

Source: Zhu et al., "Asymmetry in Low-Rank Adapters of Foundation Models", ICML 2024,
    https://arxiv.org/abs/2402.16842; Guo et al., "Selective Aggregation for Low-Rank Adaptation in
    Federated Learning" (FedSA-LoRA: A is shared), ICLR 2025, https://arxiv.org/abs/2410.01463
Differs from the source: the sources' clients or runs are tasks here, trained together, so that a
    shared factor gets the gradients of all.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, R = rank, I, O = inputs and
    outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.experts import plus_common, reduced_common
from polytask.adapt.low_rank import (
    Factored,
    check_alpha,
    check_dropout,
    check_rank,
    draw,
    plus_up,
    product,
    reduced,
)
from polytask.errors import UsageError


@dataclass(frozen=True)
class SharedFactor(Factored):
    """Adapts linear layers, and convolutions without groups; zero change at the start.

    shared: "down", A is one for all tasks; or "up", B is. freeze: the shared A stays as it is
    drawn. alpha: the scale is alpha / rank. dropout: of the adapter's input, in training.
    """

    rank: int = 8
    alpha: float = 8.0
    shared: Literal["down", "up"] = "down"
    freeze: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_rank("SharedFactor", self.rank)
        check_alpha("SharedFactor", self.alpha)
        check_dropout("SharedFactor", self.dropout)
        if self.shared not in ("down", "up"):
            raise UsageError(f"SharedFactor: shared is {self.shared!r}; give 'down' or 'up'.")
        if self.freeze and self.shared == "up":
            raise UsageError(
                "SharedFactor: a shared B starts at 0 and has to be trained; only A can freeze."
            )

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's shared factor, and the other of T tasks."""
        return SharedFactorAdapter(layer, self, tasks, generator)


class SharedFactorAdapter(Adapter):
    """down_RI (A) and up_TRO (B of each task, transposed), or down_TRI and up_RO."""

    folds = True

    def __init__(
        self, layer: Layer, settings: SharedFactor, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        rank, up = settings.rank, torch.zeros(settings.rank, layer.outputs)
        self.scale, self.dropout = settings.alpha / rank, settings.dropout
        self.shares_down = settings.shared == "down"
        if self.shares_down:
            down_RI, _ = draw(layer, (), rank, generator)
            if settings.freeze:
                self.register_buffer("down_RI", down_RI.detach())
            else:
                self.down_RI: Tensor = down_RI
            self.up_TRO = nn.Parameter(up.repeat(tasks, 1, 1))
            self.per_task = ("up_TRO",)
        else:
            self.down_TRI, _ = draw(layer, (tasks,), rank, generator)
            self.up_RO = nn.Parameter(up)
            self.per_task = ("down_TRI",)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        if self.shares_down:
            small = reduced_common(self.layer, x, self.down_RI)
            return plus_up(y, small, rows.take(self.up_TRO, y, none=0.0), self.scale)
        small = rows.only(reduced(self.layer, x, self.down_TRI, rows), 0.0)
        return plus_common(y, small, self.up_RO, self.scale)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        down = self.down_RI if self.shares_down else self.down_TRI[task]
        up_RO = self.up_TRO[task] if self.shares_down else self.up_RO
        return self.scale * product(self.layer, down, up_RO), None
