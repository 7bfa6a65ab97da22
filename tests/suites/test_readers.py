"""A table is read exactly, or refused with the file and the line; never half read."""

import gzip
from pathlib import Path

import pyarrow as arrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from polytask.errors import DataError, MissingExtra, PolytaskError, UsageError
from polytask.suites.readers import read


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t"), ("a.TAB", "\t")])
def test_text_tables_are_split_by_their_suffix(tmp_path, name, between):
    text = f"x{between}y\n 1 {between}two\n\n3{between}\n"
    table = read(written(tmp_path / name, text))
    assert table.columns == {"x": ["1", "3"], "y": ["two", ""]}
    assert [table.where(row) for row in range(len(table))] == ["line 2", "line 4"]


def test_byte_order_mark_line_ends_quotes_and_unnamed_columns(tmp_path):
    text = b'\xef\xbb\xbf,"a, b"\r\n0,"say ""no""\r\nagain"\r\n1,\xc3\xa9\r\n'
    table = read(written(tmp_path / "a.csv", text))
    assert table.columns == {"column 1": ["0", "1"], "a, b": ['say "no"\r\nagain', "é"]}
    assert table.where(1) == "line 4", "a quoted cell of two lines counts as two"


def test_gzip_is_read_like_the_plain_file(tmp_path):
    path = written(tmp_path / "a.tsv.gz", gzip.compress(b"x\ty\n1\t2\n", mtime=0))
    assert read(path).columns == {"x": ["1"], "y": ["2"]}


def test_another_delimiter_can_be_given(tmp_path):
    path = written(tmp_path / "a.csv", "x;y\n1,5;2\n")
    assert read(path, ";").columns == {"x": ["1,5"], "y": ["2"]}


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_whatever_csv_writes_is_read_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "y"), *rows])
    table = read(path)
    assert table.columns["x"] == [x.strip() for x, _ in rows]
    assert table.columns["y"] == [y.strip() for _, y in rows]


def test_parquet_cells_have_one_text_whatever_the_type(tmp_path):
    import datetime

    table = arrow.table(
        {
            "whole": [1, None],
            "real": [0.1, 2.0],
            "small": arrow.array([0.1, 2.0], arrow.float32()),
            "flag": [True, None],
            "day": [datetime.date(2020, 1, 2)] * 2,
            "code": arrow.array(["x ", None]).dictionary_encode(),
            "words": [["a", "b"], None],
            "ids": [[1, 2], []],
            "nothing": arrow.nulls(2),
            "nested": [{"a": 1}] * 2,
        }
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    read_back = read(path)
    assert read_back.columns == {
        "whole": ["1", None],
        "real": ["0.1", "2"],
        "small": ["0.1", "2"],
        "flag": ["true", None],
        "day": ["2020-01-02", "2020-01-02"],
        "code": ["x", None],
        "words": ["a b", None],
        "ids": ["1 2", ""],
        "nothing": [None, None],
    }
    assert read_back.where(0) == "row 1"
    with pytest.raises(DataError, match=r"a\.parquet: column 'nested' is of type struct<a: int64>"):
        read_back.column("nested")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_parquet_numbers_survive_the_way_through_text(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    parquet.write_table(arrow.table({"x": numbers}), path)
    assert [float(cell) for cell in read(path).columns["x"]] == numbers


def test_an_unknown_column_names_the_file_and_the_nearest(tmp_path):
    table = read(written(tmp_path / "a.csv", "age,city\n1,2\n"))
    with pytest.raises(UsageError) as caught:
        table.column("agge")
    assert str(caught.value) == (
        f"Unknown column 'agge'. Did you mean 'age'? The columns of {tmp_path}/a.csv: age, city."
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "a.csv does not exist; correct the path"),
        ("a.parquet", None, "a.parquet does not exist; correct the path"),
        ("a.xlsx", "x", "the name must end in .csv, .tsv, .tab, .parquet, .pq"),
        ("a.parquet.gz", "x", "the name must end in .csv, .tsv, .tab before .gz"),
        ("table", "x", "the name must end in"),
        ("a.csv", "", "a.csv is empty; expected a line of column names"),
        ("a.csv", "x,y\n", "has column names but no rows"),
        ("a.csv", "x,y,x\n1,2,3\n", "'x' occurs more than once; rename one"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", "line 3 has 3 cells, expected 2"),
        ("a.csv", "x,y\n1,2\n1", "line 3 has 1 cells, expected 2"),
        ("a.csv", 'x,y\n1,2\n1,"2', "line 3 breaks the format (unexpected end of data)"),
        ("a.csv", b"x,y\n1,2\n1,\xe9\n", "byte 0xe9 in line 3 is not UTF-8; save the file as"),
        ("a.csv.gz", gzip.compress(b"x,y\n1,2\n" * 99, mtime=0)[:-9], "is truncated or not gzip"),
        ("a.csv.gz", b"x,y\n1,2\n", "is truncated or not gzip"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet: it is truncated, broken"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        written(path, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_refused(tmp_path):
    whole = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"x": list(range(1000))}), whole)
    content = whole.read_bytes()
    for part in (10, len(content) // 2, len(content) - 1):
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read(written(tmp_path / "cut.parquet", content[:part]))
    # with the end intact, damage in the middle must not pass either
    broken = bytearray(content)
    broken[4:200] = b"\xff" * 196
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(written(tmp_path / "broken.parquet", bytes(broken)))


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


def test_a_delimiter_for_parquet_is_refused(tmp_path):
    with pytest.raises(PolytaskError, match="Parquet has no delimiter"):
        read(tmp_path / "a.parquet", ";")


def test_parquet_without_pyarrow_names_the_command(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pip install 'polytask\[tables\]'"):
        read(written(tmp_path / "a.parquet", ""))
