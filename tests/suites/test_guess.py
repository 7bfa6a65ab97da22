"""A draft loads as it is, says what it saw, leaves nothing out in silence, overwrites nothing."""

import csv
from pathlib import Path

import pyarrow as arrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from polytask.errors import DataError, UsageError
from polytask.suites.guess import draft, guess, write_draft
from polytask.suites.tables import load_yaml


def write(path: Path, table: dict[str, list[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


WORDS = ["it", "was", "a", "fine", "day", "and", "we", "went", "on"]

COLUMNS = {
    "row": (list(range(40)), None, None, "looks like an id: whole numbers from 0 to 39"),
    "user_id": ([7 * i % 41 for i in range(1, 41)], None, None, "looks like an id"),
    "name": ([f"n{i}" for i in range(40)], None, None, "looks like an id or a name"),
    "same": (["x"] * 39 + [""], None, None, "constant, 'x', 1 of 40 missing"),
    "none": (["", "NA"] * 20, None, None, "no values"),
    "day": ([f"2020-01-{1 + i % 28:02}" for i in range(40)], None, None, "dates, such as"),
    "fold": (["train", "test"] * 20, None, None, "names of splits: test, train"),
    "flag": ([0, 1] * 20, "numeric", "binary", "2 distinct values"),
    "sex": (["f", "m"] * 20, "category", "binary", "2 distinct values"),
    "stars": ([1, 2, 3, 4] * 10, "numeric", "multiclass", "category if they are codes"),
    "age": ([i % 30 for i in range(40)], "numeric", "regression", "whole numbers from 0 to 29"),
    "mass": ([i / 4 for i in range(40)], "numeric", "regression", "numbers from 0 to 9.75"),
    "gaps": (["?"] * 9 + [i / 4 for i in range(31)], "numeric", "regression", "9 of 40 missing"),
    "city": (["a", "b", "c", "d"] * 10, "category", "multiclass", "4 distinct values"),
    "many": ([f"c{i % 13}" for i in range(40)], "category", None, "13 distinct values"),
    "note": ([" ".join(WORDS[i % 5 :]) for i in range(40)], "text", None, "words on average"),
    "odd": ([*range(38), "-", "-"], "category", None, "mostly numbers, but '-' is none: missing?"),
    "huge": (["inf", 1, 2, 3] * 10, "category", "multiclass", "but 'inf' is none"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_a_column_could_be_and_why(name):
    cells, as_input, as_target, why = COLUMNS[name]
    found = guess(name, [str(cell) for cell in cells])
    assert (found.as_input, found.as_target) == (as_input, as_target)
    assert why in found.why


def test_a_draft_of_all_of_them_loads_and_names_every_column(tmp_path):
    table = {name: cells for name, (cells, *_) in COLUMNS.items()}
    write(tmp_path / "my table.csv", table)
    text = draft([tmp_path / "my table.csv"], tmp_path)
    assert '    file: "my table.csv"\n' in text
    for name, (_, as_input, *_) in COLUMNS.items():
        if name == "huge":
            continue
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(f"      {name}: ") or line.startswith(f"      # {name}: ")
        )
        assert f"{name}: {as_input}  # " in line if as_input else f"# {name}: left out, " in line
    assert text.splitlines()[-1].startswith("      huge: multiclass  # ")
    (tmp_path / "my.yaml").write_text(text)
    assert load_yaml(tmp_path / "my.yaml").tasks.names == ("huge",)


@pytest.mark.parametrize("name", ["target", "Label", "y", "CLASS", "outcome", "labels", "y_1"])
def test_a_telling_name_is_the_target_wherever_it_stands(tmp_path, name):
    write(
        tmp_path / "a.csv", {"u": [0, 1] * 20, name: [0, 1] * 20, "z": [i / 3 for i in range(40)]}
    )
    lines = draft([tmp_path / "a.csv"]).splitlines()
    assert lines[-2].startswith("    targets:  # a guess")
    assert lines[-1].startswith(f"      {name}: {{kind: binary, positive: 1}}  #")


def test_several_telling_names_are_several_targets(tmp_path):
    write(
        tmp_path / "a.csv", {"y1": [0, 1] * 20, "x": [0.5, 1, 2, 3] * 10, "y2": [1, 2, 3, 4] * 10}
    )
    (tmp_path / "my.yaml").write_text(draft([tmp_path / "a.csv"], tmp_path))
    assert load_yaml(tmp_path / "my.yaml").tasks.names == ("y1", "y2")


def test_a_column_of_splits_is_used_as_one(tmp_path):
    fold = ["train", "train", "val", "test"] * 10
    write(tmp_path / "a.csv", {"x": list("abcd") * 10, "fold": fold, "y": [0, 1, 1, 0, 0] * 8})
    text = draft([tmp_path / "a.csv"], tmp_path)
    assert "    split: {column: fold}  # it names the splits" in text
    (tmp_path / "my.yaml").write_text(text)
    suite = load_yaml(tmp_path / "my.yaml")
    assert [len(suite.split(split)[0]) for split in ("train", "val", "test")] == [20, 10, 10]


def test_files_named_after_splits_are_one_table(tmp_path):
    folder = tmp_path / "hospital"
    folder.mkdir()
    table = {"x": [i / 7 for i in range(40)], "y": [0, 1] * 20}
    paths = [write(folder / f"{split}.csv", table) for split in ("train", "test")]
    text = draft(paths, tmp_path)
    assert "name: hospital\n" in text
    assert "      train: hospital/train.csv\n      test: hospital/test.csv\n" in text
    assert "    split: {val: 0.1, seed: 0}\n" in text
    (tmp_path / "my.yaml").write_text(text)
    suite = load_yaml(tmp_path / "my.yaml")
    assert [len(suite.split(split)[0]) for split in ("train", "val", "test")] == [36, 4, 40]


def test_several_tables_share_their_inputs(tmp_path):
    one = {"x": [i / 7 for i in range(40)], "only": list("ab") * 20, "y": [0, 1] * 20}
    two = {"x": [i % 9 for i in range(50)], "stay": [i / 3 for i in range(50)]}
    text = draft([write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", two)], tmp_path)
    assert "      # only: left out, not in every table; 2 distinct values" in text
    (tmp_path / "my.yaml").write_text(text)
    suite = load_yaml(tmp_path / "my.yaml")
    assert [stream.name for stream in suite.train] == ["a", "b"]
    assert suite.tasks.names == ("y", "stay")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_noticed(tmp_path, delimiter):
    table = {"x": ["0,5", "1,5"] * 20, "y": [0, 1] * 20}
    write(tmp_path / "a.csv", table, delimiter)
    (tmp_path / "my.yaml").write_text(draft([tmp_path / "a.csv"], tmp_path))
    suite = load_yaml(tmp_path / "my.yaml")
    assert suite.tasks.names == ("y",)


def test_parquet_is_drafted_too_and_nested_columns_are_named(tmp_path):
    table = {"x": [i / 7 for i in range(40)], "box": [{"a": 1}] * 40, "y": [True, False] * 20}
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    text = draft([tmp_path / "a.parquet"], tmp_path)
    assert "# box: left out, of type 'struct<a: int64>', which has no text or number" in text
    (tmp_path / "my.yaml").write_text(text)
    assert load_yaml(tmp_path / "my.yaml").train[0].targets["y"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"x": [1, 2], "y": [0, 1]}, "has 2 rows; a draft needs 20"),
        ({"id": list(range(40)), "y": [0, 1] * 20}, "no column is left as input beside the target"),
        ({"id": list(range(40)), "same": ["x"] * 40}, "no column could be a target"),
    ],
)
def test_what_cannot_be_drafted_is_refused_with_a_way_out(tmp_path, table, told):
    with pytest.raises(DataError) as caught:
        draft([write(tmp_path / "a.csv", table)])
    assert told in str(caught.value)
    assert "write the file by hand as docs/own-data.md shows" in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_nothing_to_draft_from_is_refused():
    with pytest.raises(UsageError, match="at least one table"):
        draft([])


def test_an_existing_file_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "a.csv", {"x": [i / 7 for i in range(40)], "y": [0, 1] * 20})
    out = tmp_path / "my.yaml"
    write_draft([path], out)
    assert load_yaml(out).tasks.names == ("y",)
    out.write_text("mine")
    with pytest.raises(UsageError, match=r"my\.yaml exists and is left as it is"):
        write_draft([path], out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match=r"Cannot write .*: No such file or directory"):
        write_draft([path], tmp_path / "nowhere" / "my.yaml")


def test_a_draft_for_another_folder_finds_its_tables(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    table = {"x": [i / 7 for i in range(40)], "y": [0, 1] * 20}
    path = write(tmp_path / "data" / "a.csv", table)
    write_draft([path], tmp_path / "configs" / "my.yaml")
    assert load_yaml(tmp_path / "configs" / "my.yaml").name == "a"


# Any ordinary table

name = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


def column(rows: int) -> st.SearchStrategy[list[object]]:
    def cells(values: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
        return st.lists(values, min_size=rows, max_size=rows)

    few = st.lists(words, min_size=1, max_size=6)
    return st.one_of(
        cells(st.floats(-1e6, 1e6)),
        cells(st.integers(-50, 50)),
        cells(st.integers(0, 3)),
        cells(st.one_of(st.floats(-10, 10), st.sampled_from(["", "NA", "?", "inf"]))),
        cells(st.booleans()),
        cells(words),
        few.flatmap(lambda values: cells(st.sampled_from(values))),
        cells(st.dates()),
        st.just(list(range(rows))),
    )


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[object]]:
    rows = draw(st.integers(20, 60))
    names = draw(st.lists(name.map(str.strip).filter(bool), min_size=1, max_size=5, unique=True))
    table = {name: draw(column(rows)) for name in names}
    # something to predict and something to predict it from, as an ordinary table has
    table["an input"] = [i / 7 for i in range(rows)]
    table["an output"] = [i % 2 for i in range(rows)]
    order = draw(st.permutations(list(table)))  # so that any column may be the one to predict
    return {name: table[name] for name in order}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_a_draft_loads_as_it_is(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("draft")
    path = write(folder / "a.csv", table)
    write_draft([path], folder / "my.yaml")
    suite = load_yaml(folder / "my.yaml")
    text = (folder / "my.yaml").read_text(encoding="utf-8")
    assert sum(len(suite.split(split)[0]) for split in ("train", "val", "test")) <= len(
        table["an output"]
    )
    suite.encoder()(suite.train[0].inputs)
    assert text.count("\n") == len(text.splitlines()), "no cell or name breaks a comment's line"
