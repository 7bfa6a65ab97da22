"""ALTER: every task mixes the adapters of all tasks, token by token; stage two of two.

    h + sum_e softmax_e(G_t h + b_t) change_e(h)

Stage one trains a bottleneck for every task by itself, `adapt(model, Bottleneck(), tasks)`. Stage
two is `adapt(model, ALTER(trained), tasks)`: gates learn how tasks work together.

Source: Xie, Wang, Yan, Zhou, Deng & Huang, "Making Small Language Models Better Multi-task Learners
    with Mixture-of-Task-Adapters", 2023, https://arxiv.org/abs/2309.11042
Differs from the source: derived from its abstract (adapters per task for what is a task's own, a
    mixture of them for what tasks share, a second stage of small cost): the form of the gate, one
    linear map per task that starts at 0 and so at the adapters' mean, and that adapters stay fixed
    in stage two unless `trains_adapters`, are ours.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = adapters of stage one, R =
    channels of a bottleneck, O = channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.sources import FromSources


@dataclass(frozen=True)
class ALTER(FromSources):
    """Adapts the layers that the first stage's bottlenecks are at; see `FromSources` for them.

    trains_adapters: train them on, by all tasks together.
    """

    trains_adapters: bool = False

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's bottlenecks and gates for T tasks."""
        return ALTERAdapter(layer, self, tasks)


class ALTERAdapter(Adapter):
    """gate_TOE and gate_bias_TE."""

    per_task = ("gate_TOE", "gate_bias_TE")

    def __init__(self, layer: Layer, settings: ALTER, tasks: int) -> None:
        super().__init__(layer)
        self.sources = settings.read(layer, settings.trains_adapters)
        self.gate_TOE = nn.Parameter(torch.zeros(tasks, layer.outputs, settings.sources))
        self.gate_bias_TE = nn.Parameter(torch.zeros(tasks, settings.sources))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        bias_B1E = rows.take(self.gate_bias_TE, y).unsqueeze(1)
        weights_BNE = torch.softmax(torch.baddbmm(bias_B1E, y, rows.take(self.gate_TOE, y)), -1)
        rows.note_weights(self.layer.path, weights_BNE.unsqueeze(2))
        change_BNO = self.sources.together(weights_BNE, self.sources.small(y))
        return y + rows.only(change_BNO, 0.0)
