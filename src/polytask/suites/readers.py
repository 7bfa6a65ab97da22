"""Tables from files, column by column, every cell as text: CSV, TSV (both also .gz) and Parquet.

One representation for all formats, so that one set of rules says what a number, a class or a
missing cell is. Only Parquet needs a package beyond the standard library.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polytask.errors import DataError, need, unknown

Cell = str | None
"""A cell's text without surrounding blanks. None: the file says null (Parquet only)."""

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
ARROW_TEXT = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Table:
    """The cells of one file.

    columns: per name, one cell per row; all of one length.
    unreadable: names of columns whose type holds no text or number, with that type.
    starts: the line each row starts at; None where the format has no lines.
    """

    path: Path
    columns: Mapping[str, list[Cell]]
    unreadable: Mapping[str, str]
    starts: array[int] | None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.columns, *self.unreadable)

    def column(self, name: str) -> list[Cell]:
        """Return the cells of one column, or raise with the nearest name and the file's."""
        if name in self.unreadable:
            raise DataError(
                f"{self.path}: column {name!r} is of type {self.unreadable[name]}; expected "
                "numbers, text, booleans, dates or lists of words. Convert it, or leave it out."
            )
        if name not in self.columns:
            shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
            raise unknown("column", name, self.names, f"The columns of {self.path}: {shown}.")
        return self.columns[name]

    def where(self, row: int) -> str:
        """Return how a person finds a row: "line 7" in text, "row 6" (from 1) in Parquet."""
        return f"row {row + 1}" if self.starts is None else f"line {self.starts[row]}"


def form(path: Path) -> str:
    """Return the suffix that says how `path` is read (".csv", ".parquet", ...), or raise."""
    suffixes = [suffix.casefold() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if zipped else suffixes)[-1:]
    known = [*DELIMITERS, *(() if zipped else PARQUET)]
    if not suffix or suffix[0] not in known:
        raise DataError(
            f"{path}: the name must end in {', '.join(known)}"
            f"{' before .gz' if zipped else ', or in .csv.gz or .tsv.gz'}; "
            "rename or convert the file."
        )
    return suffix[0]


def read(path: Path, delimiter: str | None = None) -> Table:
    """Return the table in `path`.

    delimiter: one character between the cells of a text file; None takes the suffix's own.

    Raises DataError, naming the file and the line, for a file that is missing, truncated, empty,
    not UTF-8, without rows, with a row of another width than the header, or with a column twice.
    """
    suffix = form(path)
    if suffix not in PARQUET:
        return _read_text(path, delimiter or DELIMITERS[suffix])
    if delimiter is not None:
        raise DataError(f"{path}: Parquet has no delimiter; leave {delimiter!r} out.")
    return _read_parquet(path)


def header(path: Path) -> str:
    """Return the first line of a text file; raises like `read`."""
    with _opened(path) as file:
        return file.readline()


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open a text file, plain or gzip; errors of opening and of reading become DataError."""
    zipped = path.suffix.casefold() == ".gz"
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column's name
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if zipped
            else path.open(encoding="utf-8-sig", newline="")
        ) as file:
            yield file
    except FileNotFoundError:
        raise _missing(path) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: {_not_utf8(path, zipped)} is not UTF-8; save the file as UTF-8, "
            "for example with: iconv -f latin1 -t utf-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or not gzip ({error}); fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _missing(path: Path) -> DataError:
    return DataError(f"{path} does not exist; correct the path or put the file there.")


def _not_utf8(path: Path, zipped: bool) -> str:
    # The decoder reads ahead of the rows, so the line is looked for anew.
    with gzip.open(path) if zipped else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} in line {number}"
    return "the end"


def _read_text(path: Path, delimiter: str) -> Table:
    rows: list[list[str]] = []
    starts = array("q")
    with _opened(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(reader, None)
            if not names:
                raise DataError(f"{path} is empty; expected a line of column names, then rows.")
            done = reader.line_num
            for row in reader:
                start, done = done + 1, reader.line_num
                if len(row) != len(names):
                    if not row:
                        continue  # a blank line
                    raise DataError(
                        f"{path}: line {start} has {len(row)} cells, expected {len(names)} as in "
                        "the line of column names; mend the line (a cell with "
                        f"{delimiter!r} in it needs quotes)."
                    )
                rows.append(row)
                starts.append(start)
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num} breaks the format ({error}); a quote is open or "
                "misplaced, or the file is truncated."
            ) from error
    names = _distinct(path, names)
    if not rows:
        raise DataError(f"{path} has column names but no rows; expected at least one.")
    cells = zip(*rows, strict=True)
    columns: dict[str, list[Cell]] = {
        name: [cell.strip() for cell in column] for name, column in zip(names, cells, strict=True)
    }
    return Table(path, columns, {}, starts)


def _distinct(path: Path, names: list[str]) -> list[str]:
    # pandas writes its index under an empty name
    names = [name.strip() or f"column {at}" for at, name in enumerate(names, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: column names must differ, but {', '.join(map(repr, twice))} occurs more "
            "than once; rename one."
        )
    return names


def _read_parquet(path: Path) -> Table:
    parquet: Any = need("pyarrow.parquet", "tables", f"Reading {path}")
    arrow: Any = need("pyarrow", "tables", f"Reading {path}")
    if not path.exists():
        raise _missing(path)
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: it is truncated, broken or of another format "
            f"({str(error).splitlines()[0]}); fetch it again."
        ) from error
    names = _distinct(path, table.column_names)
    if not table.num_rows:
        raise DataError(f"{path} has columns but no rows; expected at least one.")
    columns: dict[str, list[Cell]] = {}
    unreadable: dict[str, str] = {}
    for name, column in zip(names, table.columns, strict=True):
        cells = _arrow_cells(arrow, column)
        if cells is None:
            unreadable[name] = str(column.type)
        else:
            columns[name] = cells
    return Table(path, columns, unreadable, None)


def _arrow_cells(arrow: Any, column: Any) -> list[Cell] | None:
    """Return an Arrow column as cells; None where its type has no text."""
    is_a = arrow.types
    kind = column.type
    if is_a.is_dictionary(kind):
        return _arrow_cells(arrow, column.cast(kind.value_type))
    if is_a.is_list(kind) or is_a.is_large_list(kind):
        inner = kind.value_type
        if not (str(inner) in ARROW_TEXT or is_a.is_integer(inner)):
            return None
        return [
            None if row is None else " ".join("" if item is None else str(item) for item in row)
            for row in column.to_pylist()
        ]
    if is_a.is_null(kind):
        return [None] * len(column)
    if str(kind) in ARROW_TEXT:
        return [None if cell is None else cell.strip() for cell in column.to_pylist()]
    plain = is_a.is_integer, is_a.is_floating, is_a.is_boolean, is_a.is_decimal, is_a.is_temporal
    if any(check(kind) for check in plain) and not is_a.is_interval(kind):
        cells: list[Cell] = column.cast(arrow.string()).to_pylist()
        return cells
    return None
