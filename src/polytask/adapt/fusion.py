"""AdapterFusion: a target task attends, token by token, to what source tasks' adapters change.

    h + sum_e softmax_e(q(h) . K z_e) V z_e,    z_e = the change of source e's bottleneck at h

Source: Pfeiffer, Kamath, Rücklé, Cho & Gurevych, "AdapterFusion: Non-Destructive Task Composition
    for Transfer Learning", EACL 2021, https://arxiv.org/abs/2005.00247, and AdapterHub's code
Differs from the source: K has no bias, which would add the same to every source's score and leave
    the weights as they are. The penalty is of the tasks that the batch has rows of. As in
    AdapterHub, V starts at the identity with 1e-6 beside its diagonal, Q and K at N(0, 0.02^2), so
    the start is about the sources' mean and no zero change.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = sources, C, O = channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Rows, normal
from polytask.adapt.engine import Adapted
from polytask.adapt.sources import FromSources
from polytask.errors import UsageError


@dataclass(frozen=True)
class AdapterFusion(FromSources):
    """Adapts the layers that the sources' bottlenecks are at; see `FromSources` for them.

    penalty: weight of ||V - I||^2, added to the loss through a trace, summed over layers and the
    batch's tasks; 0: none. std: of the first Q and K.
    """

    penalty: float = 0.01
    std: float = 0.02

    def __post_init__(self, trained: Adapted | None) -> None:
        super().__post_init__(trained)
        if not self.penalty >= 0 or not self.std >= 0:
            raise UsageError(
                f"AdapterFusion: penalty is {self.penalty} and std {self.std}; give numbers >= 0 "
                "(defaults 0.01 and 0.02)."
            )

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's frozen bottlenecks and attention for T tasks."""
        return FusionAdapter(layer, self, tasks, generator)


class FusionAdapter(Adapter):
    """query_TCO and query_bias_TO, key_TOC, value_TCO; each turns channels C into O, as many."""

    per_task = ("query_TCO", "query_bias_TO", "key_TOC", "value_TCO")

    def __init__(
        self, layer: Layer, settings: AdapterFusion, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        wide = layer.outputs
        shape = (tasks, wide, wide)
        self.penalty = settings.penalty
        self.sources = settings.read(layer)
        self.query_TCO = normal(shape, 0.0, settings.std, generator)
        self.query_bias_TO = nn.Parameter(torch.zeros(tasks, wide))
        self.key_TOC = normal(shape, 0.0, settings.std, generator)
        value_CO = torch.full((wide, wide), 1e-6).fill_diagonal_(1.0)
        self.value_TCO = nn.Parameter(value_CO.repeat(tasks, 1, 1))

    @property
    def penalises(self) -> bool:  # type: ignore[override]
        """Whether it notes a penalty that training needs."""
        return self.penalty > 0

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        small_BNS = self.sources.small(y)
        bias_B1O = rows.take(self.query_bias_TO, y).unsqueeze(1)
        query_BNO = torch.baddbmm(bias_B1O, y, rows.take(self.query_TCO, y))
        # q . (K z) is (q K) . z, and sum_e p_e V z_e is V times sum_e p_e z_e. Neither needs the
        # z_e, which are E times as many numbers as the layer's output.
        asked_BNC = torch.bmm(query_BNO, rows.take(self.key_TOC, y))
        weights_BNE = torch.softmax(self.sources.along(asked_BNC, small_BNS), -1)
        rows.note_weights(self.layer.path, weights_BNE.unsqueeze(2))
        met_BNC = self.sources.together(weights_BNE, small_BNS)
        if self.penalty and rows.trace is not None:
            rows.note_penalty(self.layer.path, self._penalty(rows))
        return y + rows.only(torch.bmm(met_BNC, rows.take(self.value_TCO, y)), 0.0)

    def _penalty(self, rows: Rows) -> Tensor:
        wide = self.value_TCO.shape[-1]
        off_TCO = self.value_TCO - torch.eye(wide).to(self.value_TCO)
        each_T = off_TCO.square().sum((1, 2))
        present_T = torch.zeros_like(each_T).scatter_reduce(
            0, rows.at_B, rows.here_B.to(each_T.dtype), "amax"
        )
        return self.penalty * (each_T * present_T).sum()
