"""A suite from a person's own tables, as their YAML file declares it (see docs/own-data.md).

Whatever is learned from the data (means, codes, words, classes) is learned on the training rows
of all tables together, as one encoder and one head per task read them all.

Shapes: N = rows of one table in one split, D = numeric columns, F = category columns,
L = words of the longest row, W = width of the features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from polytask.errors import DataError
from polytask.suites.base import SPLITS, About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP, Standardise, TableEncoder
from polytask.suites.parts import Part, Parts, as_value, split_tables
from polytask.suites.readers import Cell
from polytask.suites.schema import ByColumn, Declaration, DeclaredTable, Target, parse
from polytask.suites.text_encoders import BiGRU, WordBag
from polytask.suites.vocabulary import Vocabulary, padded
from polytask.tasks import (
    IGNORE,
    Binary,
    Kind,
    Multiclass,
    Multilabel,
    Regression,
    SequenceLabels,
    Task,
    TaskSet,
)

TRUE = ("1", "true", "yes", "y", "t", "positive", "pos")
FALSE = ("0", "false", "no", "n", "f", "negative", "neg")
"""Cells that say yes and no, in any case: all a label of a multilabel task may be."""

LARGEST = 1e30
"""Numbers beyond it are refused: their squares do not fit a float32."""


def load_yaml(path: str | Path) -> Suite:
    """Return the suite that the YAML file at `path` declares. The same files give the same suite.

    Raises UsageError for a faulty declaration and DataError for faulty tables; both name the
    file and the place in it.
    """
    declared = parse(Path(path))
    parts = split_tables(declared.tables)
    notes = [*parts.notes]
    inputs = _Inputs.learn(declared, parts)
    tasks, labels = _labels(declared, parts, notes)
    splits: dict[Split, list[Stream]] = {split: [] for split in SPLITS}
    for table in declared.tables:
        for split in SPLITS:
            encoded, lengths = inputs.encode(table, parts[table.name, split])
            targets = {t.task: labels[table.name, split, t.task] for t in table.targets}
            sequences = [t.task for t in table.targets if t.kind == "sequence"]
            ragged = () if lengths is None else ("tokens", *sequences)
            splits[split].append(Stream(table.name, encoded, targets, ragged, lengths))
    return make_suite(
        name=declared.name,
        tasks=tasks,
        encoder=inputs.encoder,
        width=declared.encoder.width,
        about=_about(declared),
        batch_size=declared.batch_size,
        epochs=declared.epochs,
        notes=(*notes, *inputs.notes),
        **splits,
    )


# Inputs


def as_number(cell: Cell) -> float:
    """Return the number in a cell, NaN for a missing one; ValueError for anything else."""
    if cell is None:
        return math.nan
    number = float(cell)
    if not abs(number) < LARGEST or "_" in cell:  # NaN fails the comparison as well
        raise ValueError
    return number


def _numbers(part: Part, column: str, remedy: str) -> np.ndarray:
    """Return a column as float64, NaN where missing."""
    cells = part.cells(column)
    numbers_N = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            numbers_N[row] = as_number(cell)
        except ValueError:
            raise DataError(
                f"{part.where(row, column)}: {cell!r} is not a finite number below "
                f"{LARGEST:g}; mend it, list it under `missing`, or {remedy}."
            ) from None
    return numbers_N


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
        return cls(name, mean, scale, missing)

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
    if len(distinct) < 2 and len(there) == len(train):
        notes.append(f"Input {name!r} is constant in train; it says nothing.")
    if len(there) >= ENOUGH_ROWS and len(distinct) == len(there):
        notes.append(
            f"Input {name!r} has another value in every row: it looks like an id, of which "
            "nothing carries over to new rows. Leave it out, or declare it as text."
        )
    return {value: code for code, value in enumerate(distinct, 1)}


def in_order(values: Iterable[str]) -> list[str]:
    """Return distinct values in sorted order: by number where all are numbers, else by text."""
    values = list(values)
    try:
        return sorted(values, key=lambda value: (as_number(value), value))
    except ValueError:
        return sorted(values)


@dataclass(frozen=True)
class _Inputs:
    """How the inputs become tensors, as the training rows taught it."""

    declared: Declaration
    numeric: tuple[_Numeric, ...]
    codes: Mapping[str, Mapping[str, int]]
    vocabulary: Vocabulary | None
    notes: tuple[str, ...]

    @classmethod
    def learn(cls, declared: Declaration, parts: Parts) -> _Inputs:
        notes: list[str] = []
        numeric: list[_Numeric] = []
        codes: dict[str, dict[str, int]] = {}
        for name, kind in ((i.name, i.kind) for i in declared.tables[0].inputs):
            train = [
                (parts[table.name, "train"], _column(table, name)) for table in declared.tables
            ]
            if kind == "numeric":
                numbers_N = np.concatenate([_numbers(p, c, CATEGORY) for p, c in train])
                numeric.append(_Numeric.learn(name, numbers_N, notes))
            elif kind == "category":
                codes[name] = _codes(name, [v for p, c in train for v in p.values(c)], notes)
        vocabulary = None
        if any(i.kind in WORDS for i in declared.tables[0].inputs):
            texts = [
                text
                for table in declared.tables
                for text in _texts(table, parts[table.name, "train"])
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
                for column in numeric.encode(_numbers(part, _column(table, numeric.name), CATEGORY))
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
        texts = _texts(table, part)
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

    def _table_encoder(self) -> TableEncoder:
        size = self.declared.encoder
        columns = len(self.numeric) + sum(numeric.indicated for numeric in self.numeric)
        # The columns come standardised: in float64, because a float32 keeps no second of a date.
        plain = Standardise(torch.zeros(columns), torch.ones(columns)) if columns else None
        sizes = [len(codes) + 1 for codes in self.codes.values()]
        return TableEncoder(plain, sizes, (size.width,) * size.depth, dropout=size.dropout)


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


WORDS = ("text", "tokens")
LEAST = 2
"""Occurrences in train that make a word known."""
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
BETWEEN = "\n"
"""Stands between the words of two columns; no word is equal to it."""


def _texts(table: DeclaredTable, part: Part) -> list[list[str]]:
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


# Targets


@dataclass(frozen=True)
class _Source:
    """The labels of one task in one table and split."""

    table: DeclaredTable
    split: Split
    target: Target
    part: Part

    @property
    def column(self) -> str:
        return self.target.columns[0]


def _labels(
    declared: Declaration, parts: Parts, notes: list[str]
) -> tuple[TaskSet, dict[tuple[str, Split, str], Tensor]]:
    """Return the tasks, and the labels of each by table, split and task."""
    by_task: dict[str, list[_Source]] = {}
    for table in declared.tables:
        for target in table.targets:
            by_task.setdefault(target.task, []).extend(
                _Source(table, split, target, parts[table.name, split]) for split in SPLITS
            )
    tasks = []
    labels = {}
    for name, sources in by_task.items():
        kind, encoded = _LEARN[sources[0].target.kind](name, sources, declared, notes)
        tasks.append(Task(name, kind))
        for source, label in zip(sources, encoded, strict=True):
            labels[source.table.name, source.split, name] = label
    return TaskSet(tasks), labels


def _classes(task: str, sources: Sequence[_Source]) -> list[str]:
    """Return the distinct labels of train in sorted order, at least two."""
    seen: set[str] = set()
    for source in sources:
        if source.split == "train":
            seen.update(v for v in source.part.values(source.column) if v is not None)
    where = ", ".join(
        f"column {source.column!r} of {source.part.table.path}"
        for source in sources
        if source.split == "train"
    )
    if not seen:
        raise DataError(
            f"Task {task!r}: {where} has only missing labels in train; give it some, or leave "
            "the task out."
        )
    if len(seen) == 1:
        raise DataError(
            f"Task {task!r}: {where} has one class in train, {seen.pop()!r}; there is nothing to "
            "tell apart. Add rows of another class, or leave the task out."
        )
    return in_order(seen)


def _code(task: str, source: _Source, row: int, value: str, codes: Mapping[str, int]) -> int:
    code = codes.get(value)
    if code is None:
        raise DataError(
            f"{source.part.where(row, source.column)}: the class {value!r} of task {task!r} is in "
            f"{source.split} but never in train; split so that train has it, or drop the row."
        )
    return code


def _binary(
    task: str, sources: Sequence[_Source], declared: Declaration, notes: list[str]
) -> tuple[Kind, list[Tensor]]:
    values = _classes(task, sources)
    if len(values) > 2:
        shown = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
        raise DataError(
            f"Task {task!r}: column {sources[0].column!r} of {sources[0].part.table.path} has "
            f"{len(values)} values in train ({shown}), expected two for kind binary; declare it "
            "as multiclass or regression, or list cells that mean nothing under `missing`."
        )
    positive = sources[0].target.positive
    if positive is None:
        positive = likely_positive(values)
        notes.append(f"Task {task!r}: {positive!r} counts as positive (guessed; see `positive`).")
    elif (positive := as_value(positive)) not in values:
        raise DataError(
            f"Task {task!r}: the positive value {positive!r} is not in train, which has "
            f"{' and '.join(map(repr, values))}; correct `positive`."
        )
    codes = {value: int(value == positive) for value in values}
    encoded = []
    for source in sources:
        label_N = torch.tensor(
            [
                math.nan if value is None else _code(task, source, row, value, codes)
                for row, value in enumerate(source.part.values(source.column))
            ],
            dtype=torch.float32,
        )
        for code in (0, 1):
            if source.split != "train" and not bool((label_N == code).any()):
                value = next(v for v, c in codes.items() if c == code)
                notes.append(
                    f"Task {task!r}: no row of {source.split} in table {source.table.name!r} is "
                    f"{value!r}; measures of ranking say nothing there."
                )
        encoded.append(label_N)
    return Binary(), encoded


def likely_positive(values: Sequence[str]) -> str:
    """Return the one of two values that most likely means yes: by word, else the later one."""
    yes = [value for value in values if value.casefold() in TRUE]
    return yes[0] if len(yes) == 1 else values[-1]


def _multiclass(
    task: str, sources: Sequence[_Source], declared: Declaration, notes: list[str]
) -> tuple[Kind, list[Tensor]]:
    classes = _classes(task, sources)
    codes = {value: code for code, value in enumerate(classes)}
    return Multiclass(len(classes), tuple(classes)), [
        torch.tensor(
            [
                IGNORE if value is None else _code(task, source, row, value, codes)
                for row, value in enumerate(source.part.values(source.column))
            ]
        )
        for source in sources
    ]


def _multilabel(
    task: str, sources: Sequence[_Source], declared: Declaration, notes: list[str]
) -> tuple[Kind, list[Tensor]]:
    columns = sources[0].target.columns
    return Multilabel(len(columns)), [
        torch.tensor([_flags(source.part, column) for column in columns], dtype=torch.float32).T
        for source in sources
    ]


def _flags(part: Part, column: str) -> list[float]:
    flags = []
    for row, value in enumerate(part.values(column)):
        if value is None:
            flags.append(math.nan)
        elif value.casefold() in TRUE:
            flags.append(1.0)
        elif value.casefold() in FALSE:
            flags.append(0.0)
        else:
            raise DataError(
                f"{part.where(row, column)}: {value!r} is no yes or no, expected for a label of a "
                f"multilabel task; write 1 or 0 ({', '.join(TRUE[1:3])} and "
                f"{', '.join(FALSE[1:3])} will do), or list it under `missing`."
            )
    return flags


def _regression(
    task: str, sources: Sequence[_Source], declared: Declaration, notes: list[str]
) -> tuple[Kind, list[Tensor]]:
    remedy = "declare the target as binary or multiclass"
    return Regression(unit=sources[0].target.unit), [
        torch.from_numpy(_numbers(source.part, source.column, remedy)) for source in sources
    ]


def _sequence(
    task: str, sources: Sequence[_Source], declared: Declaration, notes: list[str]
) -> tuple[Kind, list[Tensor]]:
    # Of all splits: a tag that only test has is wrong whatever is predicted, as in the field.
    every = {
        tag for s in sources for cell in s.part.cells(s.column) for tag in (cell or "").split()
    }
    names = in_order(every)
    if len(names) < 2:
        raise DataError(
            f"Task {task!r}: column {sources[0].column!r} of {sources[0].part.table.path} has "
            f"{len(names)} tags, expected at least two; there is nothing to tell apart."
        )
    codes = {value: code for code, value in enumerate(names)}
    encoded = []
    for source in sources:
        rows = []
        words = _texts(source.table, source.part)
        for row, cell in enumerate(source.part.cells(source.column)):
            tags = [IGNORE] * len(words[row]) if cell is None else [codes[t] for t in cell.split()]
            if len(tags) != len(words[row]):
                raise DataError(
                    f"{source.part.where(row, source.column)} has {len(tags)} tags for "
                    f"{len(words[row])} words; give one tag per word, with blanks between."
                )
            rows.append(tags[: declared.encoder.words] or [IGNORE])  # no words: one unknown word
        encoded.append(padded(rows, IGNORE)[0])
    return SequenceLabels(len(names), tuple(names)), encoded


_LEARN = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
    "sequence": _sequence,
}


def _about(declared: Declaration) -> About:
    files = [str(path) for table in declared.tables for path in table.files.values()]
    protocol = "; ".join(f"{table.name}: {_spoken(table)}" for table in declared.tables)
    return About(
        title=declared.about.get("title", declared.name),
        source=declared.about.get("source", ", ".join(files)),
        licence=declared.about.get("licence", "not stated"),
        citation=declared.about.get("citation", "not stated"),
        protocol=protocol,
    )


def _spoken(table: DeclaredTable) -> str:
    rule = table.split
    if isinstance(rule, ByColumn):
        return f"split by the column {rule.column!r}"
    given = [split for split in SPLITS if split in table.files]
    shares = {"val": rule.val, "test": rule.test}
    drawn = [f"{share:g} {split}" for split, share in shares.items() if split not in given]
    words = [f"{', '.join(given)} as given"] if given else []
    if drawn:
        by = f" by the groups of {rule.group!r}" if rule.group else ""
        words.append(f"{' and '.join(drawn)} drawn at random{by} with seed {rule.seed}")
    return "; ".join(words)
