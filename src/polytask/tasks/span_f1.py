"""Span F1: how many spans of a BIO tagging are found whole, with both ends and the right type.

Source: Tjong Kim Sang & Buchholz, "Introduction to the CoNLL-2000 Shared Task: Chunking", 2000,
    https://aclanthology.org/W00-0726, and its script conlleval.
Differs from the source: names are BIO alone; conlleval and seqeval also read the prefixes E and S.
    As there, a span begins at `B-x`, and at an `I-x` that continues no span of type x.

This file imports torchmetrics, so only `measures` imports it, and late.

Shapes: B = rows, L = positions, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from polytask.tasks.base import IGNORE


class SpanF1(Metric):
    """F1 over all spans of all rows; NaN where neither labels nor predictions hold a span.

    names: of the classes, each `O`, `B-type` or `I-type`.
    """

    full_state_update = False
    begins_C: Tensor
    types_C: Tensor
    right: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        types = sorted({name[2:] for name in names if name != "O"})
        number = {name: i for i, name in enumerate(types, start=1)}
        begins = [name.startswith("B-") for name in names]
        self.register_buffer("begins_C", torch.tensor(begins), persistent=False)
        types_C = torch.tensor([0 if name == "O" else number[name[2:]] for name in names])
        self.register_buffer("types_C", types_C, persistent=False)
        for state in ("right", "predicted", "labelled"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction_BL: Tensor, target_BL: Tensor) -> None:
        """Take class indices; a position whose label is -100 is taken out, its neighbours join."""
        there_BL = target_BL != IGNORE
        # Labelled positions move to the front, in their order; what is left behind becomes O.
        order_BL = (~there_BL).long().argsort(dim=1, stable=True)
        there_BL = there_BL.gather(1, order_BL)
        found = self._spans(prediction_BL.gather(1, order_BL), there_BL)
        meant = self._spans(target_BL.gather(1, order_BL), there_BL)
        begins_BL = found[0] & meant[0]
        same_BL = (found[1] == meant[1]) & (found[2] == meant[2])
        self.right += (begins_BL & same_BL).sum()
        self.predicted += found[0].sum()
        self.labelled += meant[0].sum()

    def _spans(self, class_BL: Tensor, there_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where spans begin, the type at each position, and where a span from there ends."""
        class_BL = class_BL.masked_fill(~there_BL, 0)
        type_BL = self.types_C[class_BL].masked_fill(~there_BL, 0)  # 0 is O
        before_BL = torch.nn.functional.pad(type_BL, (1, 0))[:, :-1]
        begins_BL = (type_BL != 0) & (self.begins_C[class_BL] | (type_BL != before_BL))
        goes_on_BL = (type_BL != 0) & ~begins_BL
        # The end is the next position that does not go on: a minimum over all positions to come.
        length = class_BL.shape[1]
        at_L = torch.arange(length, device=class_BL.device)
        stops_BL = torch.where(goes_on_BL, length, at_L)
        next_BL = torch.nn.functional.pad(stops_BL, (0, 1), value=length)[:, 1:]
        ends_BL = next_BL.flip(1).cummin(dim=1).values.flip(1)
        return begins_BL, type_BL, ends_BL

    def compute(self) -> Tensor:
        """Return a scalar: 2 x right / (predicted + labelled)."""
        return 2 * self.right.double() / (self.predicted + self.labelled)  # 0 / 0 is NaN
