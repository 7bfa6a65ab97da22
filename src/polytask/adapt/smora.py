"""SMoRA: one LoRA whose ranks are the experts; a token takes the best few.

    change of a token x = (alpha / R) * B diag(g(x)) A x,
    g(x) = softmax of W_g x over its top K of W_g x + b, 0 elsewhere

b steers how often ranks are chosen, without a penalty: after a step, `follow_load` raises the b of
ranks that were chosen less than the mean, and lowers the others'.

Source: Zhao et al., "Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for
    Multi-Task Learning", 2025, https://arxiv.org/abs/2501.15103; the bias is that of Wang et al.,
    "Auxiliary-Loss-Free Load Balancing Strategy", 2024, https://arxiv.org/abs/2408.15664
Differs from the source: derived from the abstract. g's values are a softmax over the chosen ranks,
    b chooses and is no part of them, and it moves by the sign of the deviation, as in Wang et al.
    Ranks not chosen are multiplied by 0 instead of being left out of the product.
Shapes: B = rows of the batch, N = what a row has here, R = ranks, I, O = inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
from polytask.adapt.engine import Adapted
from polytask.adapt.experts import check_top, plus_spread, reduced_common
from polytask.adapt.low_rank import check_alpha, check_dropout, check_rank, draw
from polytask.adapt.selection import RouterScores, Softmax, all_of, chosen_by
from polytask.errors import UsageError


@dataclass(frozen=True)
class SMoRA(Method):
    """Adapts linear layers; zero change at the start.

    top: ranks a token takes. alpha: the scale is alpha / rank. dropout: of the adapter's input, in
    training.
    """

    kinds = ("linear",)

    rank: int = 64
    top: int = 8
    alpha: float = 64.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_rank("SMoRA", self.rank)
        check_top("SMoRA", self.top, self.rank, "rank")
        check_alpha("SMoRA", self.alpha)
        check_dropout("SMoRA", self.dropout)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's ranks and their router; nothing of them is a task's."""
        return SMoRAAdapter(layer, self, generator)


class SMoRAAdapter(Adapter):
    """down_RI (A), up_RO (B, transposed), the router W_g, and steer_R (b), a buffer."""

    steer_R: Tensor

    def __init__(self, layer: Layer, settings: SMoRA, generator: Generator) -> None:
        super().__init__(layer)
        self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout
        self.down_RI, self.up_RO = draw(layer, (), settings.rank, generator)
        self.router, self.rule = (
            RouterScores(layer.inputs, settings.rank, generator), Softmax(top=settings.top),
        )  # fmt: skip
        self.register_buffer("steer_R", torch.zeros(settings.rank))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        scores = self.router(rows, x)
        steered = scores + self.steer_R.to(scores.dtype)
        weights = chosen_by(self.rule, scores, self.training, steered)
        if rows.trace is not None:
            rows.note_weights(self.layer.path, rows.only(all_of(weights), 0.0))
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        made = reduced_common(self.layer, x, self.down_RI)
        return plus_spread(y, made, self.up_RO, weights, rows, self.scale)


def follow_load(adapted: Adapted, trace: Trace, speed: float = 1e-3) -> None:
    """Move every layer's b by `speed` toward even use of its ranks, as the trace saw it.

    trace: of the forward pass, handed to `adapted.tasks(index, trace=trace)`. Raises UsageError
    where the model has no SMoRA, or the trace is not of it.
    """
    if not speed >= 0:
        raise UsageError(f"follow_load: speed is {speed}; give a number >= 0 (default 1e-3).")
    found = [m for m in adapted.parts.modules() if isinstance(m, SMoRAAdapter)]
    if not found:
        raise UsageError("follow_load: the model has no SMoRA.")
    for adapter in found:
        path = adapter.layer.path
        if path not in trace.weights:
            raise UsageError(
                f"follow_load: the trace has nothing of {path!r}; hand it to the forward pass: "
                "adapted.tasks(index, trace=trace)."
            )
        # In whole numbers, so that a rank used exactly as the mean stays where it is.
        load_R = (trace.weights[path] > 0).flatten(0, -2).sum(0)
        below_R = load_R.sum() - load_R * len(load_R)
        adapter.steer_R += speed * torch.sign(below_R).to(adapter.steer_R.dtype)
