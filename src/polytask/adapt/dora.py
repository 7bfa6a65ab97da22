"""DoRA: W = m (W_0 + scale * B A) / ||W_0 + scale * B A||, a length of its own for every output.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024,
    https://arxiv.org/abs/2402.09353, equations 5 and 11
Differs from the source: every task has factors and lengths of its own. Norms are those of the rows
    of W, one per output, as in the authors' code and PEFT (the text says columns, of a W that is
    stored the other way), and come from the factors: no matrix per task is formed. As in section
    4.3, no gradient flows through the norm. With dropout, only B A sees the dropped input; PEFT's
    gives it to (m / norm - 1) W_0 as well.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, K = tasks or rows whose norms are
    taken, R = rank, I, O = inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows, along_channels
from polytask.adapt.low_rank import (
    LowRank,
    draw,
    plus_up,
    product,
    reduced,
)


@dataclass(frozen=True)
class DoRA(LowRank):
    """Adapts linear layers and convolutions without groups; zero change at the start.

    Its settings are those of `LowRank`, of B A.
    """

    kinds = ("linear", "conv")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's factors and lengths for T tasks."""
        return DoRAAdapter(layer, self, tasks, generator)


class DoRAAdapter(Adapter):
    """down_TRI (A), up_TRO (B, transposed) and the lengths length_TO (m), from the base's norms."""

    per_task = ("down_TRI", "up_TRO", "length_TO")
    folds = True
    reads_weights = True

    def __init__(self, layer: Layer, settings: DoRA, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        self.scale, self.dropout = settings.scale, settings.dropout
        self.down_TRI, self.up_TRO = draw(layer, (tasks,), settings.rank, generator)
        length_O = _norms(*_wide(layer))
        self.length_TO = nn.Parameter(length_O.expand(tasks, -1).clone())

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        small = rows.only(reduced(self.layer, dropped, self.down_TRI, rows), 0.0)
        more_BO = self._more(y, rows)
        up_BRO = rows.take(self.up_TRO, y)
        up_BRO = up_BRO + up_BRO * more_BO.unsqueeze(1)
        bias_O = self.layer.bias_O()
        plain = y if bias_O is None else y - along_channels(bias_O.to(y.dtype)[None], y)
        # y + 0 where nothing has changed yet, and so the base's bits.
        changed = torch.addcmul(y, plain, along_channels(more_BO, y))
        return plus_up(changed, small, up_BRO, self.scale)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        moved_OI = weight_OI + self.scale * product(
            self.layer, self.down_TRI[task], self.up_TRO[task]
        )
        gain_O = self.length_TO[task].detach().double() / moved_OI.flatten(1).norm(dim=1)
        return gain_O.view(-1, *[1] * (weight_OI.dim() - 1)) * moved_OI - weight_OI, None

    def _more(self, y: Tensor, rows: Rows) -> Tensor:
        """Return m / norm - 1 of each row's task, (B, O); 0 for rows without one."""
        if len(self.length_TO) <= len(rows.at_B):  # once per task, or once per row
            more_TO = self.length_TO / self._norms_of(self.down_TRI, self.up_TRO) - 1
            return rows.take(more_TO, y, none=0.0)
        taken = (v.index_select(0, rows.at_B) for v in (self.down_TRI, self.up_TRO, self.length_TO))
        down_BRI, up_BRO, length_BO = taken
        more_BO = length_BO / self._norms_of(down_BRI, up_BRO) - 1
        return rows.only(more_BO, 0.0).to(y.dtype)

    def _norms_of(self, down_KRI: Tensor, up_KRO: Tensor) -> Tensor:
        """Return the norms of the changed weight's rows, (K, O), without a gradient."""
        with torch.no_grad():
            weight_OI, squares_O = _wide(self.layer)
            down_KRI = down_KRI.flatten(2).to(weight_OI.dtype)
            up_KRO = self.scale * up_KRO.to(weight_OI.dtype)
            met_KRO = torch.matmul(down_KRI, weight_OI.t())
            met_KRO = 2 * met_KRO + torch.bmm(torch.bmm(down_KRI, down_KRI.mT), up_KRO)
            norms_KO = _norms(weight_OI, squares_O + (up_KRO * met_KRO).sum(1))
            return norms_KO.to(self.length_TO.dtype)


def _wide(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the base's weight as a matrix, and its rows' squared norms, of 32 bits at least."""
    weight_OI = layer.weight_OI().detach().flatten(1)
    weight_OI = weight_OI.to(torch.promote_types(weight_OI.dtype, torch.float32))
    return weight_OI, weight_OI.square().sum(1)


def _norms(weight_OI: Tensor, squares: Tensor) -> Tensor:
    # No less than rounding leaves of the base's own: a row that a change takes away is not 0 / 0.
    return squares.clamp(min=torch.finfo(weight_OI.dtype).tiny).sqrt()
