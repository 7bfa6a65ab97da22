"""Rows of a vocabulary, aligned by the models' tokenizers: row by token instead of row by number.

"base" keeps the tokens of the first model. "union" adds those that others added to it, at the end.
A model that lacks a token takes the first model's row for it, so it does not move it; where the
first model lacks it as well, the mean row of those that have it.

Shapes: R = rows of the result, P = elements of a stretch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.merge.files import Model
from polytask.merge.mapped import Trails
from polytask.merge.options import Vocabulary
from polytask.merge.window import Window, window
from polytask.records import read_json

WORDS = ("embed", "wte", "lm_head", "shared.weight", "decoder.weight", "decoder.bias", "output")
"""One of them is in the name of a tensor whose rows are a vocabulary's, though shapes are alike."""

PADDED = 512
"""Embeddings are padded to a multiple of at most this, where no configuration says their rows."""

FIRST, MEAN = -1, -2


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokens. added: those beside its own vocabulary, with what its file says of them.

    rows: of its embedding, from the configuration; None where it has none.
    """

    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    rows: int | None


@dataclass(frozen=True)
class Vocabularies:
    """The models' tokenizers in order, and the tokens of the result."""

    choice: Vocabulary
    tokenizers: tuple[Tokenizer, ...]
    tokens: Mapping[str, int]
    new: tuple[str, ...] = ()
    _tables: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict, compare=False)

    def concern(self, name: str, homes: Sequence[tuple[Model, str]]) -> bool:
        """Return whether the rows of this tensor are to be aligned."""
        shapes = [model.entries[at].shape for model, at in homes]
        if not all(shape and shape[1:] == shapes[0][1:] for shape in shapes):
            return False
        if not any(word in name for word in WORDS) and len(set(shapes)) == 1:
            return False
        if not all(_fits(t, s[0]) for t, s in zip(self.tokenizers, shapes, strict=True)):
            return False
        same = all(t.tokens == self.tokens for t in self.tokenizers)
        return not same or len(set(shapes)) > 1

    def table(self, model: int, rows: int, result: int) -> np.ndarray:
        """Return for each of `result` rows that of the model, FIRST, or MEAN; (R,) int64."""
        key = (model, rows, result)
        if key not in self._tables:
            mine, first = self.tokenizers[model].tokens, self.tokenizers[0].tokens
            table_R = np.full(result, FIRST, dtype=np.int64)
            if model == 0:  # rows that no token owns are the first model's as well
                table_R[: min(rows, result)] = np.arange(min(rows, result))
            for token, row in self.tokens.items():
                own = mine.get(token, -1)
                table_R[row] = own if own >= 0 else FIRST if token in first else MEAN
            self._tables[key] = table_R
        return self._tables[key]


def _fits(tokenizer: Tokenizer, rows: int) -> bool:
    least = max(tokenizer.tokens.values(), default=-1) + 1
    return rows >= least and (rows == tokenizer.rows or rows < least + PADDED)


@dataclass(frozen=True)
class Rows:
    """One model's rows in the order of the result.

    homes: the models and their tensors. mine: which of them this is. tables: of each, see `table`.
    """

    homes: tuple[tuple[Model, str], ...]
    mine: int
    tables: tuple[np.ndarray, ...]
    width: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the widest elements that may be read."""
        kinds = [model.entries[at].dtype for model, at in self.homes]
        found = kinds[0]
        for kind in kinds[1:]:
            found = torch.promote_types(found, kind)
        return found

    def read(self, start: int, out: Window) -> None:
        """Fill `out` from element `start` of the result on; runs of neighbouring rows at once."""
        out_P = out.values_P
        at, stop = start, start + out_P.numel()
        while at < stop:
            row = at // self.width
            model, source = self._where(row)
            last = row + 1
            while last * self.width < stop and self._where(last) == (model, source + last - row):
                last += 1
            until = min(stop, last * self.width)
            part_P = out_P[at - start : until - start]
            offset = at - row * self.width
            if source == MEAN:
                self._mean(row, offset, part_P)
            else:
                self._read(model, source * self.width + offset, part_P)
            at = until

    def place(self, start: int, count: int, trails: Trails) -> int | None:
        """Return None: what is put together lies nowhere."""
        return None

    def _where(self, row: int) -> tuple[int, int]:
        """Return the model and its row; MEAN as the row where several are averaged."""
        own = int(self.tables[self.mine][row])
        if own == FIRST:
            return 0, int(self.tables[0][row])
        return self.mine, own

    def _read(self, model: int, start: int, out_P: Tensor) -> None:
        home, name = self.homes[model]
        dtype = home.entries[name].dtype
        if dtype == out_P.dtype:
            home.read(name, start, window(out_P))
        else:
            raw = window(torch.empty(out_P.numel(), dtype=dtype))
            home.read(name, start, raw)
            out_P.copy_(raw.values_P)

    def _mean(self, row: int, offset: int, out_P: Tensor) -> None:
        having = [m for m, table in enumerate(self.tables) if table[row] >= 0]
        part_P = torch.empty_like(out_P)
        sum_P = torch.zeros(out_P.numel(), dtype=torch.float64)
        for model in having:
            start = int(self.tables[model][row]) * self.width + offset
            self._read(model, start, part_P)
            sum_P += part_P
        out_P.copy_(sum_P / len(having))


def aligned(
    name: str, homes: Sequence[tuple[Model, str]], vocabularies: Vocabularies
) -> tuple[tuple[int, ...], tuple[Rows, ...]]:
    """Return the shape of the result and one part per model."""
    shapes = [model.entries[at].shape for model, at in homes]
    last = max(vocabularies.tokens.values(), default=-1) + 1
    rows = max(shapes[0][0], last)
    tables = tuple(vocabularies.table(m, shape[0], rows) for m, shape in enumerate(shapes))
    if (tables[0] == FIRST).any():
        raise DataError(
            f"Tensor {name!r}: rows {shapes[0][0]} to {rows} belong to no token of any model; the "
            f"tokenizer of {homes[0][0].label} does not fit its weights."
        )
    width = math.prod(shapes[0][1:])
    parts = tuple(Rows(tuple(homes), m, tables, width) for m in range(len(homes)))
    return (rows, *shapes[0][1:]), parts


def vocabularies_of(models: Sequence[Model], choice: Vocabulary) -> Vocabularies:
    """Return how the models' vocabularies are aligned.

    Raises UsageError where a model has no tokenizer that could be read, or where the union would
    need a tokenizer that is not the first model's with tokens added.
    """
    found = []
    for model in models:
        tokenizer = None if model.folder is None else read_tokenizer(model.folder)
        if tokenizer is None:
            raise UsageError(
                f"{model.label} has no tokenizer.json, vocab.json or vocab.txt beside its weights; "
                "without it the rows of its vocabulary cannot be aligned."
            )
        found.append(tokenizer)
    tokens, new = dict(found[0].tokens), []
    if choice == "union":
        for model, tokenizer in zip(models[1:], found[1:], strict=True):
            missing = [token for token in tokenizer.tokens if token not in tokens]
            foreign = [token for token in missing if token not in tokenizer.added]
            if foreign:
                raise UsageError(
                    f"{model.label} splits text by {len(foreign):,} tokens that "
                    f"{models[0].label} does not know, such as {foreign[0]!r}: two tokenizers "
                    "cannot be joined into one. Use vocabulary='base'."
                )
            for token in sorted(missing, key=tokenizer.tokens.__getitem__):
                tokens[token] = max(tokens.values()) + 1
                new.append(token)
        folder = models[0].folder
        if new and (folder is None or not (folder / "tokenizer.json").exists()):
            raise UsageError(
                f"{models[0].label} has no tokenizer.json to add {len(new)} tokens to; save it "
                "with a fast tokenizer, or use vocabulary='base'."
            )
    return Vocabularies(choice, tuple(found), tokens, tuple(new))


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokens of the tokenizer in a model's folder; None where there is none.

    Raises DataError where a file is there and cannot be understood.
    """
    rows = None
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        raw = config.get("vocab_size") if isinstance(config, dict) else None
        rows = raw if isinstance(raw, int) else None
    for name, read in (
        ("tokenizer.json", _fast), ("vocab.json", _plain), ("vocab.txt", _lines),
    ):  # fmt: skip
        path = folder / name
        if path.exists():
            try:
                tokens, added = read(path)
            except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path} is no tokenizer that can be read: {error!r}.") from None
            return Tokenizer(tokens, added, rows)
    return None


Read = tuple[dict[str, int], dict[str, Mapping[str, Any]]]


def _fast(path: Path) -> Read:
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: pairs of a token and its score
        tokens = {str(pair[0]): row for row, pair in enumerate(vocabulary)}
    else:
        tokens = {str(token): int(row) for token, row in vocabulary.items()}
    added = {str(entry["content"]): entry for entry in raw.get("added_tokens") or ()}
    return tokens | {token: int(entry["id"]) for token, entry in added.items()}, added


def _plain(path: Path) -> Read:
    tokens = {str(token): int(row) for token, row in json.loads(path.read_text()).items()}
    beside = path.with_name("added_tokens.json")
    extra = json.loads(beside.read_text()) if beside.exists() else {}
    added: dict[str, Mapping[str, Any]] = {
        str(token): {"id": int(row), "content": token} for token, row in extra.items()
    }
    return tokens | {token: int(entry["id"]) for token, entry in added.items()}, added


def _lines(path: Path) -> Read:
    return {line: row for row, line in enumerate(path.read_text().splitlines())}, {}
