"""Prefix tuning: trained keys and values before those of the input, for each task.

Source: Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021,
    https://arxiv.org/abs/2101.00190
Differs from the source: keys and values are trained as they are, or made of narrower ones by a
    network of each layer's own (hidden > 0); the source has one network for all layers. It acts in
    nn.MultiheadAttention alone, whose forward pass polytask writes; other attention does not let
    keys be put before its own, and is refused. Weights that are asked for are those of the input's
    own keys, so the rest of their sum is what the prefix got.
Shapes: B = rows of the batch, T = tasks, P = positions of the prefix, E = channels, M = hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal, uniform
from polytask.errors import UsageError


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Adapts packed attention. Its start is no zero change: every prefix takes some attention.

    length: positions. std: of the first values. hidden: 0 trains keys and values themselves;
    otherwise they are tanh(Z W_1) W_2 of that many hidden channels, which trains more steadily.
    """

    kinds = ("attention",)

    length: int = 30
    std: float = 0.02
    hidden: int = 0

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 1:
            raise UsageError(f"PrefixTuning: length is {self.length!r}; give a whole number >= 1.")
        if type(self.hidden) is not int or self.hidden < 0:
            raise UsageError(f"PrefixTuning: hidden is {self.hidden!r}; give a whole number >= 0.")
        if not self.std > 0:
            raise UsageError(f"PrefixTuning: std is {self.std}; give a number > 0 (default 0.02).")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the attention's prefixes for T tasks."""
        return PrefixAdapter(layer, self, tasks, generator)


class PrefixAdapter(Adapter):
    """prefix_TPC: keys and values side by side (C = 2 E); with a network, what it reads (C = E)."""

    needs_task = True

    def __init__(
        self, layer: Layer, settings: PrefixTuning, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        wide, hidden = layer.outputs, settings.hidden
        shape = (tasks, settings.length, wide if hidden else 2 * wide)
        self.prefix_TPC = normal(shape, 0.0, settings.std, generator)
        self.per_task = ("prefix_TPC",)
        self.hidden = hidden
        if hidden:
            self.first_TEM = uniform((tasks, wide, hidden), wide**-0.5, generator)
            self.second_TMC = uniform((tasks, hidden, 2 * wide), hidden**-0.5, generator)
            self.per_task = ("prefix_TPC", "first_TEM", "second_TMC")

    def prefix(self, like: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return each row's keys and values, (B, P, E) each."""
        prefix_BPC = rows.take(self.prefix_TPC, like)
        if self.hidden:
            hidden = torch.tanh(torch.bmm(prefix_BPC, rows.take(self.first_TEM, like)))
            prefix_BPC = torch.bmm(hidden, rows.take(self.second_TMC, like))
        key, value = prefix_BPC.chunk(2, -1)
        return key, value

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        raise AssertionError("attention asks for its prefix itself")
