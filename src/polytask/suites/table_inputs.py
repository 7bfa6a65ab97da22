"""The inputs of a person's tables: what the training rows teach about them, and their encoder.

Shapes: N = rows of one table in one split, B = rows, L = words of the longest row, W = width of
the features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from polytask.suites.encoders import MLP, Standardise, TableEncoder
from polytask.suites.fields import Fields
from polytask.suites.parts import LARGEST, Part, Parts, in_order
from polytask.suites.readers import Cell
from polytask.suites.schema import Declaration, DeclaredTable
from polytask.suites.text_encoders import BiGRU, WordBag
from polytask.suites.vocabulary import Vocabulary

WORDS = ("text", "tokens")
LEAST = 2
"""Occurrences in train that make a word known."""
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
BETWEEN = "\n"
"""Stands between the words of two columns; no word is equal to it."""

CATEGORY = "declare the input as category"
ENOUGH_ROWS = 20
"""Below as many rows, all values of a column may differ by chance: no word about ids."""


@dataclass(frozen=True)
class _Numeric:
    """One numeric input. indicated: whether a second column says where it is missing."""

    name: str
    mean: float
    scale: float
    indicated: bool

    @classmethod
    def learn(cls, name: str, train_N: np.ndarray, notes: list[str]) -> _Numeric:
        there_N = train_N[~np.isnan(train_N)]
        missing = len(there_N) < len(train_N)
        if not len(there_N):
            notes.append(f"Input {name!r} has no value in train; it says nothing.")
            return cls(name, 0.0, 1.0, False)
        mean, scale = float(there_N.mean()), float(there_N.std())
        if there_N.min() == there_N.max():
            if not missing:
                notes.append(f"Input {name!r} is constant in train; it says nothing.")
            return cls(name, mean, 1.0, missing)
        if _counts_rows(there_N):
            notes.append(
                f"Input {name!r} counts the rows (whole, rising, all different): it looks like an "
                "id. Leave it out unless the order means something."
            )
        # Dividing by a deviation that is nearly no number would overflow.
        return cls(name, mean, max(scale, 1 / LARGEST), missing)

    def encode(self, numbers_N: np.ndarray) -> list[np.ndarray]:
        gone_N = np.isnan(numbers_N)
        scaled_N = np.where(gone_N, 0.0, (numbers_N - self.mean) / self.scale)
        return [scaled_N, gone_N.astype(float)] if self.indicated else [scaled_N]


def _counts_rows(numbers_N: np.ndarray) -> bool:
    return bool(
        len(numbers_N) >= ENOUGH_ROWS
        and (np.diff(numbers_N) > 0).all()
        and (numbers_N == np.round(numbers_N)).all()
    )


def _codes(name: str, train: Sequence[Cell], notes: list[str]) -> dict[str, int]:
    """Return the codes of a category: from 1, in sorted order; 0 is missing or never seen."""
    there = [value for value in train if value is not None]
    distinct = in_order(set(there))
    if not there:
        notes.append(f"Input {name!r} has no value in train; it says nothing.")
    elif len(distinct) < 2 and len(there) == len(train):
        notes.append(f"Input {name!r} is constant in train; it says nothing.")
    if len(there) >= ENOUGH_ROWS and len(distinct) == len(there):
        notes.append(
            f"Input {name!r} has another value in every row: it looks like an id, of which "
            "nothing carries over to new rows. Leave it out, or declare it as text."
        )
    return {value: code for code, value in enumerate(distinct, 1)}


@dataclass(frozen=True)
class TableInputs:
    """How the inputs become tensors, as the training rows taught it."""

    declared: Declaration
    numeric: tuple[_Numeric, ...]
    codes: Mapping[str, Mapping[str, int]]
    vocabulary: Vocabulary | None
    notes: tuple[str, ...]

    @classmethod
    def learn(cls, declared: Declaration, parts: Parts) -> TableInputs:
        notes: list[str] = []
        numeric: list[_Numeric] = []
        codes: dict[str, dict[str, int]] = {}
        for name, kind in ((i.name, i.kind) for i in declared.tables[0].inputs):
            train = [
                (parts[table.name, "train"], _column(table, name)) for table in declared.tables
            ]
            if kind == "numeric":
                numbers_N = np.concatenate([p.numbers(c, CATEGORY) for p, c in train])
                numeric.append(_Numeric.learn(name, numbers_N, notes))
            elif kind == "category":
                codes[name] = _codes(name, [v for p, c in train for v in p.values(c)], notes)
        vocabulary = None
        if any(i.kind in WORDS for i in declared.tables[0].inputs):
            texts = [
                text
                for table in declared.tables
                for text in texts_of(table, parts[table.name, "train"])
            ]
            vocabulary = Vocabulary.of(texts, LEAST)
            cut = sum(len(text) > declared.encoder.words for text in texts)
            told = f"; {cut} of train are cut after {declared.encoder.words} words" if cut else ""
            notes.append(
                f"Words are those that occur {LEAST} times in train ({len(vocabulary) - 2:,}), "
                f"every other word is one unknown word{told}."
            )
        return cls(declared, tuple(numeric), codes, vocabulary, tuple(notes))

    def encode(self, table: DeclaredTable, part: Part) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the named inputs of these rows, and their number of words where there is text."""
        inputs: dict[str, Tensor] = {}
        if self.numeric:
            columns = [
                column
                for numeric in self.numeric
                for column in numeric.encode(part.numbers(_column(table, numeric.name), CATEGORY))
            ]
            inputs["numeric"] = torch.from_numpy(np.stack(columns, 1)).float()
        if self.codes:
            inputs["categorical"] = torch.tensor(
                [
                    [0 if value is None else codes.get(value, 0) for value in part.values(column)]
                    for name, codes in self.codes.items()
                    for column in [_column(table, name)]
                ]
            ).T.contiguous()
        if self.vocabulary is None:
            return inputs, None
        texts = texts_of(table, part)
        inputs["tokens"], lengths_N = self.vocabulary.encode(texts, self.declared.encoder.words)
        return inputs, lengths_N

    def encoder(self) -> nn.Module:
        """Return a fresh encoder of these inputs."""
        size = self.declared.encoder
        table = self._table_encoder() if self.numeric or self.codes else None
        if self.vocabulary is None:
            assert table is not None  # the schema asks for at least one input
            return table
        words = len(self.vocabulary)
        if any(t.kind == "sequence" for table in self.declared.tables for t in table.targets):
            text: nn.Module = BiGRU(words, hidden=-(-size.width // 2), dropout=size.dropout)
            return TableAndText(table, text, 2 * -(-size.width // 2), size.width, size.dropout)
        text = WordBag(words, width=size.width, dropout=size.dropout)
        if table is None:
            return text
        return TableAndText(table, text, size.width, size.width, size.dropout)

    def fields(self) -> nn.Module:
        """Return a fresh encoder that only embeds and standardises; not where there are words."""
        return Fields(*self._columns())

    def _table_encoder(self) -> TableEncoder:
        size = self.declared.encoder
        hidden = (size.width,) * size.depth
        return TableEncoder(*self._columns(), hidden, dropout=size.dropout)

    def _columns(self) -> tuple[Standardise | None, list[int]]:
        """Return how numeric columns are standardised, and the categories' numbers of codes."""
        columns = len(self.numeric) + sum(numeric.indicated for numeric in self.numeric)
        # The columns come standardised: in float64, because a float32 keeps no second of a date.
        plain = Standardise(torch.zeros(columns), torch.ones(columns)) if columns else None
        return plain, [len(codes) + 1 for codes in self.codes.values()]


class TableAndText(nn.Module):
    """Features of rows with columns and words: {"row": (B, W)}, and "sequence" (B, L, W) if any.

    table: gives (B, width) from the columns; None where words are all there is.
    text: gives (B, text_width) from {"tokens"}, or those as "row" beside a "sequence". Every
        word's features see the table's, so tags may depend on the columns.
    """

    def __init__(
        self,
        table: nn.Module | None,
        text: nn.Module,
        text_width: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        joint = text_width + (0 if table is None else width)
        self.table = table
        self.text = text
        self.row = MLP(joint, (width,), dropout=dropout)
        self.word = MLP(joint, (width,), dropout=dropout) if isinstance(text, BiGRU) else None

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        text = self.text(inputs)
        row_BW = text["row"] if self.word is not None else text
        columns_BW = None if self.table is None else self.table(inputs)
        features = {"row": self.row(_beside(row_BW, columns_BW))}
        if self.word is not None:
            words_BLW = text["sequence"]
            if columns_BW is not None:
                columns_BW = columns_BW[:, None].expand(-1, words_BLW.shape[1], -1)
            features["sequence"] = self.word(_beside(words_BLW, columns_BW))
        return features


def _beside(features: Tensor, more: Tensor | None) -> Tensor:
    return features if more is None else torch.cat([features, more], -1)


def texts_of(table: DeclaredTable, part: Part) -> list[list[str]]:
    """Return the words of each row: those of its text and tokens columns, one after the other."""
    columns = []
    for written in table.inputs:
        if written.kind == "tokens":
            columns.append([(cell or "").split() for cell in part.cells(written.column)])
        elif written.kind == "text":
            cells = part.cells(written.column)
            columns.append([WORD.findall((cell or "").casefold()) for cell in cells])
    joined = columns[0]
    for column in columns[1:]:
        joined = [[*left, BETWEEN, *right] for left, right in zip(joined, column, strict=True)]
    return joined


def _column(table: DeclaredTable, name: str) -> str:
    return next(i.column for i in table.inputs if i.name == name)
