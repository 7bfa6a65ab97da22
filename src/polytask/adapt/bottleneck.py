"""Bottleneck adapters in the unified view: a form of the change, where it comes from, how it joins.

    change = activation(h W_down + b_down) W_up + b_up

h is what the layer gives ("sequential": Houlsby, Pfeiffer) or what it gets ("parallel"); the change
is added, added times a scale (the scaled parallel adapter of MAM), or joined by a trained gate,
(1 - g) y + g change, as prefix tuning joins what it attends to.

Source: Houlsby et al., ICML 2019, https://arxiv.org/abs/1902.00751; Pfeiffer et al., EACL 2021,
    https://arxiv.org/abs/2005.00247; He et al., "Towards a Unified View of Parameter-Efficient
    Transfer Learning", ICLR 2022, https://arxiv.org/abs/2110.04366, table 1
Differs from the source: W_up starts at 0 (He et al.; Houlsby et al. draw it from N(0, 0.01^2),
    which std_up=0.01 does), so the start is no change, exactly. The gate is a trained number of the
    task that starts at 0; in prefix tuning it is the attention that the prefix gets, see
    `prefix.py`. Where an adapter goes is where its layer is: after the attention's output
    projection and the feed-forward block's second layer (Houlsby), after the latter alone
    (Pfeiffer), around the feed-forward block (parallel).
Shapes: B = rows of the batch, N = what a row has here, T = tasks, R = channels of the bottleneck,
    I, O = inputs and outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal, uniform
from polytask.adapt.place import takes_channels_last
from polytask.errors import UsageError

Form = Literal["relu", "gelu", "silu", "tanh", "identity"]
Source = Literal["sequential", "parallel"]
Join = Literal["add", "gate"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh,
}  # fmt: skip


@dataclass(frozen=True)
class Bottleneck(Method):
    """Adapts linear layers, norms, and whole modules whose channels are last; not foldable.

    width: channels of the bottleneck. form: of the change: its activation. source: what it is
    computed from. join: how it meets the layer's output. scale: what the change is multiplied by
    before it is added. std_up: of the first W_up; 0: zero change at the start. dropout: of the
    bottleneck, in training.
    """

    kinds = ("linear", "norm", "module")

    width: int = 64
    form: Form = "relu"
    source: Source = "sequential"
    join: Join = "add"
    scale: float = 1.0
    std_up: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise UsageError(f"Bottleneck: width is {self.width!r}; give a whole number >= 1.")
        for name, value, known in (
            ("form", self.form, get_args(Form)),
            ("source", self.source, get_args(Source)),
            ("join", self.join, get_args(Join)),
        ):
            if value not in known:
                raise UsageError(f"Bottleneck: {name} is {value!r}; give {' or '.join(known)}.")
        if self.join == "gate" and self.scale != 1:
            raise UsageError("Bottleneck: a gated change has no scale; leave it 1, or add it.")
        if not math.isfinite(self.scale) or not self.std_up >= 0:
            raise UsageError(
                f"Bottleneck: scale is {self.scale} and std_up {self.std_up}; give a finite scale "
                "and std_up >= 0."
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"Bottleneck: dropout is {self.dropout}; give a number in [0, 1).")

    def refuses(self, layer: Layer) -> str:
        """Return why a layer has no such adapter, "" where it has."""
        return takes_channels_last(layer)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's bottleneck for T tasks."""
        return BottleneckAdapter(layer, self, tasks, generator)


class BottleneckAdapter(Adapter):
    """down_TRI, down_bias_TR, up_TRO, up_bias_TO, and gate_T where the change is gated."""

    def __init__(
        self, layer: Layer, settings: Bottleneck, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        self.settings = settings
        inputs = layer.inputs if settings.source == "parallel" else layer.outputs
        bound = 1 / math.sqrt(inputs)
        self.down_TRI = uniform((tasks, settings.width, inputs), bound, generator)
        self.down_bias_TR = nn.Parameter(torch.zeros(tasks, settings.width))
        up = (tasks, settings.width, layer.outputs)
        self.up_TRO = normal(up, 0.0, settings.std_up, generator)
        self.up_bias_TO = nn.Parameter(torch.zeros(tasks, layer.outputs))
        self.per_task = ("down_TRI", "down_bias_TR", "up_TRO", "up_bias_TO")
        if settings.join == "gate":
            self.gate_T = nn.Parameter(torch.zeros(tasks))
            self.per_task = (*self.per_task, "gate_T")

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        settings = self.settings
        seen = x if settings.source == "parallel" else y
        bias_BR1 = rows.take(self.down_bias_TR, seen).unsqueeze(2)
        small = torch.baddbmm(bias_BR1, rows.take(self.down_TRI, seen), seen.mT).mT
        if settings.form != "identity":
            small = ACTIVATIONS[settings.form](small)
        if settings.dropout:
            small = functional.dropout(small, settings.dropout, self.training)
        scale = settings.scale
        if settings.join == "add":
            up_BRO = rows.take(self.up_TRO, y, none=0.0)
            bias_B1O = rows.take(self.up_bias_TO, y, none=0.0).unsqueeze(1)
            return torch.baddbmm(y, small, up_BRO, alpha=scale) + scale * bias_B1O
        bias_B1O = rows.take(self.up_bias_TO, y).unsqueeze(1)
        change = torch.baddbmm(bias_B1O, small, rows.take(self.up_TRO, y))
        gate_B11 = rows.take(self.gate_T, y, none=0.0).view(-1, 1, 1)
        return torch.addcmul(y, gate_B11, change - y)
