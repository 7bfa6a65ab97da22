"""A first YAML file for a person's tables: a kind guessed per column, and the reason beside it.

A guess is to be corrected by the person, so every line says what it saw, and nothing is left out
in silence.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from polytask.errors import DataError, UsageError
from polytask.suites.base import SPLITS, Split
from polytask.suites.parts import SPLIT_WORDS, as_number, as_value, in_order
from polytask.suites.readers import DELIMITERS, Cell, Table, form, header, read
from polytask.suites.schema import MISSING
from polytask.suites.table_labels import likely_positive

TARGET_NAME = re.compile(
    r"(target|label|y|class|outcome|response|result|output)s?[ _.-]?\d*", re.IGNORECASE
)
"""Names that columns to be predicted often have (y, label_2); without one, it is the last usable
column."""

FEW = 20
"""Up to as many distinct whole numbers, a target reads as classes rather than as a quantity."""

ENOUGH_ROWS = 20
"""From as many rows on, a random split leaves rows of each split whatever the labels are."""

PER_CLASS = 10
"""Rows a class needs on average before a target is taken for classes."""

PROSE = 4.0
"""From as many words a cell on average, a column is text rather than category."""

BY_HAND = "write the file by hand as docs/own-data.md shows"

ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid|key|index)$|[a-z]I[dD]$", re.IGNORECASE)
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[/.]\d\d?[/.]\d{2,4}( .*)?")


@dataclass(frozen=True)
class Guess:
    """What a column could be. None: nothing (as an id or a constant), for the reason given.

    as_input, as_target: kinds of the schema. why: what was seen, for the comment.
    """

    as_input: str | None
    as_target: str | None
    why: str


def guess(name: str, cells: Sequence[Cell]) -> Guess:
    """Return what the column called `name` could be, from all its cells."""
    there = [as_value(cell) for cell in cells if cell is not None and cell not in MISSING]
    distinct = set(there)
    if not there:
        return Guess(None, None, "no values")
    missing = len(cells) - len(there)
    gone = f", {missing} of {len(cells)} missing" if missing else ""
    if len(distinct) == 1:
        return Guess(None, None, f"constant, {_short(there[0])}{gone}")
    seen = f"{len(distinct)} distinct values{gone}"
    numbers = _numbers(distinct)
    if len(numbers) == len(distinct):
        return _of_numbers(name, there, numbers, seen)
    if len(numbers) > len(distinct) / 2:
        other = in_order(distinct - numbers.keys())[0]
        seen += f"; mostly numbers, but {_short(other)} is none: missing?"
    return _of_words(name, there, distinct, seen)


def _numbers(values: Iterable[str]) -> dict[str, float]:
    """Return the numbers among the values."""
    numbers = {}
    for value in values:
        with contextlib.suppress(ValueError):
            numbers[value] = as_number(value)
    return numbers


def _of_numbers(name: str, there: list[str], numbers: dict[str, float], seen: str) -> Guess:
    low, high = min(numbers.values()), max(numbers.values())
    whole = all(number.is_integer() for number in numbers.values())
    span = f"{'whole numbers' if whole else 'numbers'} from {low:g} to {high:g}, {seen}"
    if whole and len(numbers) == len(there):
        rising = all(numbers[a] < numbers[b] for a, b in pairwise(there))
        if ID_NAME.search(name) or (rising and high - low == len(there) - 1):
            return Guess(None, None, f"looks like an id: {span}")
    if len(numbers) == 2:
        return Guess("numeric", "binary", span)
    if whole and len(numbers) <= min(FEW, len(there) // PER_CLASS):
        return Guess("numeric", "multiclass", f"{span}; category if they are codes")
    return Guess("numeric", "regression", span)


def _of_words(name: str, there: list[str], distinct: set[str], seen: str) -> Guess:
    if {value.casefold() for value in distinct} <= SPLIT_WORDS.keys():
        return Guess(None, None, f"names of splits: {', '.join(in_order(distinct))}")
    if len(distinct) == 2:
        return Guess("category", "binary", seen)
    if all(DATE.fullmatch(value) for value in distinct):
        return Guess(None, None, f"dates, such as {_short(there[0])}; turn them into numbers")
    words = sum(len(value.split()) for value in there) / len(there)
    if words >= PROSE:
        return Guess("text", None, f"{words:.0f} words on average, {seen}")
    if len(distinct) == len(there) or (ID_NAME.search(name) and len(distinct) > len(there) / 2):
        return Guess(None, None, f"looks like an id or a name: {seen}")
    few = len(distinct) <= len(there) // PER_CLASS
    return Guess("category", "multiclass" if few else None, seen)


@dataclass(frozen=True)
class _Drafted:
    """A table to be, of one file or of a file per split."""

    name: str
    files: dict[Split | None, Path]
    tables: tuple[Table, ...]
    delimiter: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for table in self.tables for name in table.names))

    def has(self, column: str) -> bool:
        return all(column in table.columns for table in self.tables)

    def cells(self, column: str) -> list[Cell]:
        return [cell for table in self.tables for cell in table.columns.get(column, [])]


def draft(paths: Sequence[Path], folder: Path = Path()) -> str:
    """Return the text of a YAML file that declares these tables, one stream each.

    folder: where the file will stand; the tables are named relative to it.

    Raises DataError for tables that cannot be read, share no usable input, or have no column
    that could be a target.
    """
    if not paths:
        raise UsageError("Give at least one table to draft from; got none.")
    tables = _tables(paths)
    guesses: dict[str, Guess] = {}
    for name in dict.fromkeys(name for table in tables for name in table.names):
        guesses[name] = guess(name, [cell for table in tables for cell in table.cells(name)])
        for opened in (opened for table in tables for opened in table.tables):
            if name in opened.unreadable:
                why = f"of type {_short(opened.unreadable[name])}, which has no text or number"
                guesses[name] = Guess(None, None, why)
    targets = [_targets(table, guesses) for table in tables]
    predicted = list(dict.fromkeys(name for names in targets for name in names))
    shared = [
        name
        for name, found in guesses.items()
        if found.as_input and name not in predicted and all(table.has(name) for table in tables)
    ]
    if not shared:
        raise DataError(
            f"{', '.join(map(str, paths))}: no column is left as input beside the target "
            f"{', '.join(map(repr, predicted))} (ids, constants and dates are left "
            f"out, and tables must share their inputs). Add columns, or {BY_HAND}."
        )
    lines = [
        "# A first draft, guessed from the tables. Check every line: the targets above all, then",
        "# the kinds. What each key means, and what else there is, stands in docs/own-data.md.",
        f"name: {_scalar(tables[0].name)}",
        "tables:",
    ]
    for table, names in zip(tables, targets, strict=True):
        lines += _lines(table, names, shared, guesses, folder)
    return "\n".join(lines) + "\n"


def write_draft(paths: Sequence[Path], out: Path) -> None:
    """Write the draft for these tables to `out`.

    Raises UsageError where `out` exists, and leaves it as it is; DataError as `draft` does.
    """
    taken = UsageError(f"{out} exists and is left as it is; delete it, or give another name.")
    if out.exists():
        raise taken
    text = draft(paths, out.parent)
    try:
        with out.open("x", encoding="utf-8") as file:  # x: never over a file made meanwhile
            file.write(text)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        raise UsageError(
            f"Cannot write {out}: {error.strerror or error}; give another place."
        ) from error


def _tables(paths: Sequence[Path]) -> list[_Drafted]:
    """Return the tables to be: train.csv, val.csv and test.csv are one, else each file is one."""
    opened = [_open(path) for path in paths]
    splits = [SPLIT_WORDS.get(_stem(path).casefold()) for path in paths]
    delimiters = {delimiter for _, delimiter in opened}
    if "train" in splits and len(set(splits) - {None}) == len(paths) > 1 == len(delimiters):
        files: dict[Split | None, Path] = dict(zip(splits, paths, strict=True))
        name = paths[0].resolve().parent.name or "data"
        return [_Drafted(name, files, tuple(table for table, _ in opened), delimiters.pop())]
    drafted: list[_Drafted] = []
    for table, delimiter in opened:
        if len(table) < ENOUGH_ROWS:
            raise DataError(
                f"{table.path} has {len(table)} rows; a draft needs {ENOUGH_ROWS} to guess from "
                f"and to split. Give it more, or {BY_HAND}."
            )
        name = _stem(table.path)
        if name in [other.name for other in drafted]:
            name = f"{name}-{len(drafted) + 1}"
        drafted.append(_Drafted(name, {None: table.path}, (table,), delimiter))
    return drafted


def _open(path: Path) -> tuple[Table, str | None]:
    """Return the table, and its delimiter where it is not the suffix's own."""
    own = DELIMITERS.get(form(path))
    if own is not None:
        first = header(path)
        if own not in first:
            for other in ";\t|,":
                if other in first:
                    return read(path, other), other
    return read(path), None


def _targets(table: _Drafted, guesses: Mapping[str, Guess]) -> list[str]:
    """Return the columns to predict: those with a telling name, else the last usable one."""
    usable = [name for name in table.names if table.has(name) and guesses[name].as_target]
    if not usable:
        raise DataError(
            f"{table.tables[0].path}: no column could be a target; expected one of numbers, or of "
            f"a few values that repeat. Add one, or {BY_HAND}."
        )
    return [name for name in usable if TARGET_NAME.fullmatch(name)] or usable[-1:]


def _lines(
    table: _Drafted,
    targets: Sequence[str],
    shared: Sequence[str],
    guesses: Mapping[str, Guess],
    folder: Path,
) -> list[str]:
    lines = [f"  - name: {_scalar(table.name)}"]
    places = {split: _scalar(os.path.relpath(at, folder)) for split, at in table.files.items()}
    if None in places:
        lines.append(f"    file: {places[None]}")
    else:
        lines.append("    file:")
        lines += [f"      {split}: {place}" for split, place in places.items()]
    if table.delimiter is not None:
        lines.append(f"    delimiter: {_scalar(table.delimiter)}")
    lines += _split_lines(table)
    lines.append("    inputs:")
    lines += [f"      {_scalar(c)}: {guesses[c].as_input}  # {guesses[c].why}" for c in shared]
    for column in table.names:
        if column not in (*shared, *targets):
            found = guesses[column]
            why = f"not in every table; {found.why}" if found.as_input else found.why
            lines.append(f"      # {_scalar(column)}: left out, {why}")
    lines.append("    targets:  # a guess: move here, from the inputs, all you want to predict")
    for target in targets:
        kind = guesses[target].as_target
        if kind == "binary":
            there = (c for c in table.cells(target) if c is not None and c not in MISSING)
            positive = likely_positive(in_order({as_value(cell) for cell in there}))
            kind = f"{{kind: binary, positive: {_scalar(positive)}}}"
        lines.append(f"      {_scalar(target)}: {kind}  # {guesses[target].why}")
    return lines


def _split_lines(table: _Drafted) -> list[str]:
    shares = {"val": 0.1, "test": 0.2}
    if None in table.files:
        for column in table.names:
            found = {SPLIT_WORDS.get((cell or "").casefold()) for cell in table.cells(column)}
            if found == set(SPLITS):
                return [f"    split: {{column: {_scalar(column)}}}  # it names the splits"]
    drawn = [f"{split}: {share}" for split, share in shares.items() if split not in table.files]
    return [f"    split: {{{', '.join([*drawn, 'seed: 0'])}}}"] if drawn else []


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _scalar(text: str) -> str:
    """Return `text` as one YAML scalar on one line."""
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*", text):
        return text
    quoted: str = yaml.dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."
