"""LoRAMoE: every token takes all experts by a softmax, halves of them kept for kinds of samples.

    change of a token x = (alpha / R) * sum_i softmax(G x)_i B_i A_i x

Localised balance: Q[b, i] is what row b's tokens give expert i together; it counts 1 + delta where
expert i is of the row's type (the first half of experts is of type 0, the second of type 1), else
1 - delta. The penalty of a layer, beta * var(I Q) / mean(I Q)^2, is least where all that is counted
is alike: where experts of the row's type get (1 - delta) / (1 + delta) times what the others get.

Source: Dou et al., "LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via
    MoE-Style Plugin", ACL 2024, https://arxiv.org/abs/2312.09979, and the authors' code
Differs from the source: the defaults of beta and delta are ours, as the code's scripts set both 0.
    Tokens of padding count in Q, as there; rows without a task do not.
Shapes: B = rows of the batch, N = what a row has here, E = experts, R = rank, I, O = inputs and
    outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows
from polytask.adapt.experts import check_many, plus_spread, reduced_common
from polytask.adapt.low_rank import check_alpha, check_dropout, check_rank, draw
from polytask.adapt.selection import RouterScores, Selection, Softmax
from polytask.errors import UsageError


@dataclass(frozen=True)
class LoRAMoE(Method):
    """Adapts linear layers, the paper's the feed-forward blocks'; zero change at the start.

    alpha: the scale is alpha / rank. dropout: of the experts' input, in training. beta: of the
    penalty; 0: none. delta: in [0, 1), how far apart types draw the halves of experts.

    In training with a trace, the penalty needs the type of every row, 0 or 1:
    `adapted.tasks(index, given={"type": type_B}, trace=trace)`.
    """

    kinds = ("linear",)

    experts: int = 8
    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.05
    beta: float = 1.0
    delta: float = 0.1

    def __post_init__(self) -> None:
        check_many("LoRAMoE", "experts", self.experts, 8)
        check_rank("LoRAMoE", self.rank)
        check_alpha("LoRAMoE", self.alpha)
        check_dropout("LoRAMoE", self.dropout)
        if not self.beta >= 0 or not 0 <= self.delta < 1:
            raise UsageError(
                f"LoRAMoE: beta is {self.beta} and delta {self.delta}; give beta >= 0 and delta in "
                "[0, 1)."
            )
        if self.beta and self.experts % 2:
            raise UsageError(
                f"LoRAMoE: {self.experts} experts have no halves; give an even number, or beta=0."
            )

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's experts and their router; nothing of them is a task's."""
        return LoRAMoEAdapter(layer, self, generator)


class LoRAMoEAdapter(Adapter):
    """down_ERI (A) and up_ERO (B, transposed) of the experts, and their router."""

    penalises = True

    def __init__(self, layer: Layer, settings: LoRAMoE, generator: Generator) -> None:
        super().__init__(layer)
        self.settings = settings
        self.down_ERI, self.up_ERO = draw(layer, (settings.experts,), settings.rank, generator)
        router = RouterScores(layer.inputs, settings.experts, generator)
        self.selection = Selection(router, Softmax(), layer.path)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        settings = self.settings
        weights_BN1E = self.selection(rows, x)
        if settings.beta and self.training and rows.trace is not None:
            rows.note_penalty(self.layer.path, self._penalty(weights_BN1E.squeeze(2), rows))
        if settings.dropout:
            x = functional.dropout(x, settings.dropout, self.training)
        made = reduced_common(self.layer, x, self.down_ERI.flatten(0, 1))
        up_SO, scale = self.up_ERO.flatten(0, 1), settings.alpha / settings.rank
        return plus_spread(y, made, up_SO, weights_BN1E, rows, scale)

    def _penalty(self, weights_BNE: Tensor, rows: Rows) -> Tensor:
        settings = self.settings
        type_B = rows.given_for("type", "LoRAMoE's penalty")
        if tuple(type_B.shape) != (len(weights_BNE),):
            raise UsageError(
                f"LoRAMoE: given['type'] has shape {tuple(type_B.shape)}; give one number, 0 or 1, "
                f"for each of {len(weights_BNE)} rows."
            )
        expert_E = torch.arange(settings.experts, device=type_B.device) * 2 // settings.experts
        toward_BE = torch.where(type_B[:, None] == expert_E, settings.delta, -settings.delta)
        counted_BE = weights_BNE.float().sum(1) * (1 + toward_BE)
        # Without a look at which rows count: that would wait for the device.
        here_B1 = rows.here_B[:, None].expand(len(weights_BNE), 1).float()
        many = here_B1.sum() * settings.experts
        mean = (counted_BE * here_B1).sum() / many
        squares = ((counted_BE - mean).square() * here_B1).sum() / (many - 1)
        return settings.beta * squares / (mean.square() + 1e-10)
