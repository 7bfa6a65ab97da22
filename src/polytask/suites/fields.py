"""A table's rows as fields: an encoder that only embeds and standardises.

What recommendation papers let their experts stand on: one vector per column. A column with
categories has a vector for each; a numeric column has one vector, times the standardised number.

Shapes: B = rows, D = numeric columns, F = fields (all columns), V = vectors of all fields,
    W = width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.suites.encoders import Standardise

SPREAD = 0.1
"""Deviation of the first vectors: what training never sees stays small."""


class Columns(nn.Module):
    """Which vector each field of a row takes, and times what: two features, and nothing trained.

    {"numeric": (B, D), "categorical": (B, F - D)} -> {"index": (B, F) of V, "row": (B, F)}, the
    numeric columns first. Either input may be missing where its columns are none.

    standardise, sizes: as of `TableEncoder`. A code outside its column's size is taken for 0, a
    value that training never saw.
    width: F. vectors: V.
    """

    size_F: Tensor
    first_F: Tensor
    one: Tensor

    def __init__(self, standardise: Standardise | None, sizes: Sequence[int]) -> None:
        super().__init__()
        numeric = 0 if standardise is None else len(standardise.mean_D)
        if numeric + len(sizes) == 0 or min(sizes, default=1) < 1:
            raise UsageError(
                "Columns: give it numeric or categorical columns, each with a code at least; got "
                f"{numeric} numeric columns and sizes {tuple(sizes)}."
            )
        self.standardise = standardise
        self.width = numeric + len(sizes)
        self.vectors = numeric + sum(sizes)
        size_F = torch.tensor(sizes, dtype=torch.int64)
        self.register_buffer("size_F", size_F, persistent=False)
        self.register_buffer("first_F", numeric + size_F.cumsum(0) - size_F, persistent=False)
        # A number of the module's own type, whatever the encoder is cast to.
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        index, value = [], []
        if self.standardise is not None:
            number_BD = self.standardise(inputs["numeric"])
            place_D = torch.arange(number_BD.shape[1], device=number_BD.device)
            index.append(place_D.expand(number_BD.shape))
            value.append(number_BD)
        if len(self.size_F):
            code_BF = inputs["categorical"]
            known_BF = (code_BF >= 0) & (code_BF < self.size_F)
            index.append(torch.where(known_BF, code_BF, 0) + self.first_F)
            value.append(self.one.expand(code_BF.shape))
        return {"index": torch.cat(index, 1), "row": torch.cat(value, 1)}


class Fields(nn.Module):
    """Vectors of a row's fields, side by side: (B, F * width).

    columns: which vectors. table: the vectors, (V, width). fields: F.
    """

    def __init__(
        self, standardise: Standardise | None, sizes: Sequence[int], width: int = 10
    ) -> None:
        super().__init__()
        if width < 1:
            raise UsageError(f"Fields: width is {width}; give at least 1 (default 10).")
        self.columns = Columns(standardise, sizes)
        self.table = nn.Embedding(self.columns.vectors, width)
        nn.init.normal_(self.table.weight, std=SPREAD)
        self.fields = self.columns.width
        self.width = self.fields * width

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        row = self.columns(inputs)
        vector_BFW: Tensor = self.table(row["index"]) * row["row"][..., None]
        return vector_BFW.flatten(1)
