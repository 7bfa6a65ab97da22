"""The targets of a person's tables: from cells to tasks and their labels.

Shapes: N = rows of one table in one split, L = words of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import DataError
from polytask.suites.base import SPLITS, Split
from polytask.suites.parts import Part, Parts, as_value, in_order
from polytask.suites.schema import Declaration, DeclaredTable, Target
from polytask.suites.table_inputs import texts_of
from polytask.suites.vocabulary import padded
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


def read_labels(
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
        torch.from_numpy(source.part.numbers(source.column, remedy)) for source in sources
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
        words = texts_of(source.table, source.part)
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
