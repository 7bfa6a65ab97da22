"""The rows of a person's tables, split into train, val and test as they declare it.

Shapes: N = rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polytask.errors import DataError, did_you_mean
from polytask.suites.base import SPLITS, Split
from polytask.suites.readers import Cell, Table, read
from polytask.suites.schema import ByColumn, DeclaredTable, Fractions
from polytask.suites.splits import frozen_random

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

LARGEST = 1e30
"""Numbers beyond it are refused: their squares do not fit a float32."""


@dataclass(frozen=True)
class Part:
    """The rows of one table that belong to one split; cells that mean "missing" become None."""

    table: Table
    rows_N: np.ndarray
    missing: frozenset[str]

    def __len__(self) -> int:
        return len(self.rows_N)

    def cells(self, column: str) -> list[Cell]:
        every = self.table.column(column)
        return [
            None if (cell := every[row]) is None or cell in self.missing else cell
            for row in self.rows_N.tolist()
        ]

    def values(self, column: str) -> list[Cell]:
        """Return the cells as names of classes or categories: 1.0 is 1, as pandas writes both."""
        return [None if cell is None else as_value(cell) for cell in self.cells(column)]

    def numbers(self, column: str, remedy: str) -> np.ndarray:
        """Return the cells as float64, NaN where missing.

        remedy: what a person could do about a cell that is no number, beside mending it.
        """
        cells = self.cells(column)
        texts = np.array(["nan" if cell is None else cell for cell in cells], dtype=object)
        try:
            numbers_N: np.ndarray = texts.astype(np.float64)
            there_N = ~np.isnan(numbers_N)
            if (
                there_N.sum() == len(cells) - cells.count(None)
                and (np.abs(numbers_N[there_N]) < LARGEST).all()
                and "_" not in "".join(texts)
            ):
                return numbers_N
        except ValueError:
            pass  # as_number says which cell it was
        for row, cell in enumerate(cells):
            try:
                as_number(cell)
            except ValueError:
                raise DataError(
                    f"{self.where(row, column)}: {cell!r} is not a finite number below "
                    f"{LARGEST:g}; mend it, list it under `missing`, or {remedy}."
                ) from None
        raise AssertionError(f"column {column!r}: no cell is wrong, but the column is")

    def where(self, row: int, column: str) -> str:
        place = self.table.where(int(self.rows_N[row]))
        return f"{self.table.path}, {place}, column {column!r}"


class Parts(dict[tuple[str, Split], Part]):
    """The part of each table (by name) in each split."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


def as_number(cell: Cell) -> float:
    """Return the number in a cell, NaN for a missing one; ValueError for anything else."""
    if cell is None:
        return math.nan
    number = float(cell)
    if not abs(number) < LARGEST or "_" in cell:  # NaN fails the comparison as well
        raise ValueError
    return number


def in_order(values: Iterable[str]) -> list[str]:
    """Return distinct values in sorted order: by number where all are numbers, else by text."""
    values = list(values)
    try:
        return sorted(values, key=lambda value: (as_number(value), value))
    except ValueError:
        return sorted(values)


WHOLE = re.compile(r"(-?\d+)\.0+")


def as_value(cell: str) -> str:
    """Return a cell as the name of a class or category: 1.0 is 1, as pandas writes both."""
    if ".0" not in cell:
        return cell
    whole = WHOLE.fullmatch(cell)
    return whole[1] if whole else cell


@dataclass(frozen=True)
class _Draw:
    """Rows to be split at random. shares: of the splits that have no file of their own."""

    declared: DeclaredTable
    rule: Fractions
    source: Part
    shares: Mapping[Split, float]

    def alike(self, other: _Draw) -> bool:
        """Return whether the other draws by the same groups in the same way."""
        mine = (self.rule.group, self.rule.seed, self.shares)
        return mine == (other.rule.group, other.rule.seed, other.shares)


def split_tables(tables: Sequence[DeclaredTable]) -> Parts:
    """Return the part of every table in every split, of the rows that have a label for any task.

    Raises UsageError for a column that a table lacks, DataError for faulty tables and for a
    split without rows.
    """
    parts = Parts()
    draws: list[_Draw] = []
    for declared in tables:
        whole = _open(declared, parts.notes)
        source = whole["all" if "all" in whole else "train"]
        if isinstance(declared.split, ByColumn):
            rows = _by_column(source, declared.split.column)
            parts.update({(declared.name, s): _taken(source, rows[s]) for s in SPLITS})
            continue
        rule = declared.split
        parts.update({(declared.name, s): whole[s] for s in SPLITS if s in whole})
        every: dict[Split, float] = {"test": rule.test, "val": rule.val}
        shares = {split: share for split, share in every.items() if split not in whole}
        if shares:
            draws.append(_Draw(declared, rule, source, shares))
    for draw in draws:
        if draw.rule.group is None:
            rows = _by_row(draw)
            moved = _rescue(draw, rows)
            if moved:
                parts.notes.append(
                    f"Table {draw.declared.name!r}: {moved} rows drawn for val or test stay in "
                    "train, which would lack one of their labels."
                )
        else:
            rows = _by_group(draw, [other.source for other in draws if draw.alike(other)])
        parts.update({(draw.declared.name, s): _taken(draw.source, r) for s, r in rows.items()})
    for (name, split), part in parts.items():
        if not len(part):
            raise DataError(
                f"Table {name!r} ({part.table.path}, {len(part.table)} rows): no row is left for "
                f"{split}; every table needs rows in train, val and test. Give it more rows, "
                "larger shares, or a file per split."
            )
    return parts


def _open(declared: DeclaredTable, notes: list[str]) -> dict[Literal["all"] | Split, Part]:
    """Return the labelled rows of each file of a table."""
    opened = {name: read(path, declared.delimiter) for name, path in declared.files.items()}
    for table in opened.values():
        _check_columns(declared, table)
    whole = {name: _labelled(declared, table) for name, table in opened.items()}
    dropped = sum(len(table) - len(whole[name]) for name, table in opened.items())
    if dropped:
        notes.append(
            f"Table {declared.name!r}: {dropped} rows without a label for any task are left out."
        )
    return whole


def _check_columns(declared: DeclaredTable, table: Table) -> None:
    """Raise, with the nearest name, where the table lacks a declared column."""
    rule = declared.split
    wanted = [i.column for i in declared.inputs]
    wanted += [column for target in declared.targets for column in target.columns]
    wanted += [rule.column] if isinstance(rule, ByColumn) else []
    for column in wanted:
        table.column(column)


def _labelled(declared: DeclaredTable, table: Table) -> Part:
    """Return the rows with a label for at least one task."""
    every = Part(table, np.arange(len(table)), declared.missing)
    columns = [column for target in declared.targets for column in target.columns]
    there_N = np.zeros(len(table), dtype=bool)
    for column in columns:
        there_N |= np.array([cell is not None for cell in every.cells(column)])
    if not there_N.any():
        raise DataError(
            f"{table.path}: every label in {', '.join(map(repr, columns))} is missing; give it "
            "some, or leave the table out."
        )
    return _taken(every, there_N.nonzero()[0])


def _taken(source: Part, rows_N: np.ndarray) -> Part:
    """Return the part with these of its rows (positions in it), in the file's order."""
    return Part(source.table, source.rows_N[np.sort(rows_N)], source.missing)


def _by_column(source: Part, column: str) -> dict[Split, np.ndarray]:
    rows: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for row, cell in enumerate(source.cells(column)):
        split = SPLIT_WORDS.get((cell or "").casefold())
        if split is None:
            raise DataError(
                f"{source.where(row, column)}: {cell or 'a missing cell'!r} is no split."
                f"{did_you_mean(cell or '', SPLIT_WORDS)} Write train, val or test."
            )
        rows[split].append(row)
    return {split: np.array(found, dtype=np.int64) for split, found in rows.items()}


def _by_row(draw: _Draw) -> dict[Split, np.ndarray]:
    order_N = frozen_random(draw.rule.seed).permutation(len(draw.source))
    rows: dict[Split, np.ndarray] = {}
    for split, share in draw.shares.items():
        count = max(1, round(share * len(draw.source)))
        rows[split], order_N = order_N[:count], order_N[count:]
    return {"train": order_N, **rows}


def _by_group(draw: _Draw, alike: Sequence[Part]) -> dict[Split, np.ndarray]:
    """Split by whole groups, drawn over all tables split alike: one patient, one split."""
    rule = draw.rule
    assert rule.group is not None
    sizes: Counter[str] = Counter()
    for part in alike:
        sizes.update(_groups(part, rule.group))
    left = [str(g) for g in frozen_random(rule.seed).permutation(sorted(sizes))]
    home: dict[str, Split] = {}
    for split, share in draw.shares.items():
        filled = 0.0
        while left and filled < share * sizes.total():
            group = left.pop()
            home[group] = split
            filled += sizes[group]
    rows: dict[Split, list[int]] = {"train": [], **{split: [] for split in draw.shares}}
    for row, group in enumerate(_groups(draw.source, rule.group)):
        rows[home.get(group, "train")].append(row)
    return {split: np.array(found, dtype=np.int64) for split, found in rows.items()}


def _groups(part: Part, column: str) -> list[str]:
    groups = []
    for row, value in enumerate(part.values(column)):
        if value is None:
            raise DataError(
                f"{part.where(row, column)} is missing, but the split goes by this group; fill "
                "it, or drop the row."
            )
        groups.append(value)
    return groups


def _rescue(draw: _Draw, rows: dict[Split, np.ndarray]) -> int:
    """Move rows to train whose class is nowhere else in train; return how many.

    The split is ours, so a rare class must not fail the suite. A split the person declares, by
    files, by a column or by groups, is never changed.
    """
    whole = ("binary", "multiclass", "multilabel")  # a rare tag may be new, see SequenceLabels
    columns = [c for t in draw.declared.targets if t.kind in whole for c in t.columns]
    labels: list[set[tuple[str, str]]] = [set() for _ in range(len(draw.source))]
    for column in columns:
        for found, value in zip(labels, draw.source.values(column), strict=True):
            if value is not None:
                found.add((column, value))
    seen: set[tuple[str, str]] = set().union(*(labels[row] for row in rows["train"].tolist()))
    back: list[int] = []
    for split in SPLITS[1:]:  # in a fixed order: which row goes back must not depend on hashes
        for row in np.sort(rows.get(split, np.empty(0, np.int64))).tolist():
            if not labels[row] <= seen:
                seen |= labels[row]
                back.append(row)
    for split in rows:
        rows[split] = np.setdiff1d(rows[split], back)
    rows["train"] = np.union1d(rows["train"], back).astype(np.int64)
    return len(back)
