"""ScaLearn: a target task takes a trained share of what each source task's adapter changes.

    h + sum_e w_te * change_e(h)

The adapters are bottlenecks trained on the source tasks and frozen; w is a number of every channel
(ScaLearn), or one number (uniform, "ScaLearnUniform"), of each layer or of all layers together
(shared, "ScaLearn++" and "ScaLearnUniform++").

Source: Frohmann, Holtermann, Masoudian, Lauscher & Rekabsaz, "ScaLearn: Simple and Highly
    Parameter-Efficient Task Transfer by Learning to Scale", Findings of ACL 2024,
    https://arxiv.org/abs/2310.01217, and the authors' code
Differs from the source: every row draws its own dropout of w; the source has one target task
    per batch, and one draw. As there, w starts at N(2 / E, 0.001^2): no zero change.
Shapes: B = rows of the batch, N = what a row has here, E = source tasks, R = channels of a
    bottleneck, S = E * R, G = numbers that w has of a source (O or 1), O = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.engine import Adapted
from polytask.adapt.low_rank import check_dropout
from polytask.adapt.selection import Plain, Selection, TaskScores
from polytask.adapt.sources import FromSources
from polytask.errors import UsageError


@dataclass(frozen=True)
class ScaLearn(FromSources):
    """Adapts the layers that the sources' bottlenecks are at; see `FromSources` for them.

    uniform: one number of each source in place of one per channel. shared: the same for all layers.
    dropout: of w, in training. std: of the first w around 2 / E.
    """

    uniform: bool = False
    shared: bool = False
    dropout: float = 0.3
    std: float = 1e-3

    def __post_init__(self, trained: Adapted | None) -> None:
        super().__post_init__(trained)
        check_dropout("ScaLearn", self.dropout)
        if not self.std >= 0:
            raise UsageError(f"ScaLearn: std is {self.std}; give a number >= 0 (default 0.001).")

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module | None:
        """Return w for all layers, where it is shared."""
        if not self.shared:
            return None
        widths = {layer.outputs for layer in layers}
        if not self.uniform and len(widths) > 1:
            raise UsageError(
                "ScaLearn: layers of several widths cannot share a number per channel; give "
                "uniform=True, or shared=False."
            )
        return self.selection(layers[0], tasks, generator)

    def selection(self, layer: Layer, tasks: int, generator: Generator) -> Selection:
        """Return the first w of T tasks."""
        groups = 1 if self.uniform else layer.outputs
        mean = 2 / self.sources
        scores = TaskScores(tasks, self.sources, generator, groups, mean, self.std)
        return Selection(scores, Plain(), "" if self.shared else layer.path)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's frozen bottlenecks and w for T tasks."""
        return ScaLearnAdapter(layer, self, tasks, generator, common)


class ScaLearnAdapter(Adapter):
    """sources, and selection: w, its own or that of all layers."""

    def __init__(
        self,
        layer: Layer,
        settings: ScaLearn,
        tasks: int,
        generator: Generator,
        common: nn.Module | None,
    ) -> None:
        super().__init__(layer, common)
        self.dropout = settings.dropout
        self.sources = settings.read(layer)
        if common is None:
            self.own = settings.selection(layer, tasks, generator)

    @property
    def selection(self) -> Selection:
        """w of this layer."""
        chosen = self.common or self.own
        assert isinstance(chosen, Selection)
        return chosen

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        w_BGE = self.selection(rows, y)[:, 0]
        w_BGE = functional.dropout(w_BGE, self.dropout, self.training)
        w_BGE = rows.only(w_BGE, 0.0)
        # w goes into the up factors: no change of a single source is formed.
        up_BERO = w_BGE.mT.unsqueeze(2) * self.sources.up_ERO.to(y.dtype)
        bias_BO = (w_BGE * self.sources.up_bias_EO.t().to(y.dtype)).sum(-1)
        grown = torch.baddbmm(y, self.sources.small(y), up_BERO.flatten(1, 2))
        return grown + bias_BO.unsqueeze(1)
