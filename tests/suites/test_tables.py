"""A declared suite holds exactly what the tables say, or is refused with the place of the fault."""

import csv
import json
import math
from pathlib import Path

import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from polytask.errors import DataError, PolytaskError, UsageError
from polytask.suites import SPLITS, Suite
from polytask.suites.tables import load_yaml
from polytask.tasks import IGNORE

ROWS = 60


def columns(rows: int = ROWS, first: int = 0) -> dict[str, list[object]]:
    """A small hospital. `at` is the row; missing cells, ids and constants have their place."""
    at = range(first, first + rows)
    return {
        "id": list(at),
        "age": ["" if i % 7 == 0 else 30 + i % 40 for i in at],
        "city": ["?" if i % 11 == 0 else "ABC"[i % 3] for i in at],
        "note": [f"Patient was {'well' if i % 2 else 'ill'}, and slept." for i in at],
        "same": [5 for _ in at],
        "died": [["no", "yes"][i % 2] for i in at],
        "stay": ["NA" if i % 9 == 0 else 2.5 * i for i in at],
        "ward": [["eye", "ear", "skin"][i % 3] for i in at],
        "a": [i % 2 for i in at],
        "b": ["" if i % 5 == 0 else ["false", "True"][i % 3 == 0] for i in at],
        "patient": [f"p{i // 4}" for i in at],
        "fold": [["train", "train", "dev", "TEST"][i % 4] for i in at],
    }


def write(path: Path, table: dict[str, list[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def declare(folder: Path, *tables: dict[str, object], **top: object) -> Path:
    """Write my.yaml; JSON is YAML."""
    path = folder / "my.yaml"
    path.write_text(json.dumps({"tables": tables, **top}))
    return path


def table(**changes: object) -> dict[str, object]:
    """The declaration of one table, with keys replaced; None takes a key out."""
    given = {
        "file": "patients.csv",
        "inputs": {"age": "numeric", "city": "category"},
        "targets": {"died": "binary", "stay": "regression", "ward": "multiclass"},
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "patients.csv", columns())
    return tmp_path


def refused(error: type[PolytaskError], path: Path) -> str:
    with pytest.raises(error) as caught:
        load_yaml(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message, "the file is named"
    return message


def joined(suite: Suite, task: str) -> torch.Tensor:
    return torch.cat([suite.split(split)[0].targets[task] for split in SPLITS])


# What a suite holds


def test_every_kind_keeps_its_values_and_its_missing_labels(folder):
    targets = {
        "died": "binary",
        "long": {"kind": "regression", "column": "stay", "unit": "days"},
        "ward": "multiclass",
        "signs": {"kind": "multilabel", "columns": ["a", "b"]},
    }
    suite = load_yaml(declare(folder, table(targets=targets, split={"column": "fold"})))
    truth = columns()
    rows = {
        "train": [i for i in range(ROWS) if i % 4 < 2],
        "val": [i for i in range(ROWS) if i % 4 == 2],
        "test": [i for i in range(ROWS) if i % 4 == 3],
    }
    for split in SPLITS:
        (stream,) = suite.split(split)
        at = rows[split]
        assert stream.targets["died"].tolist() == [truth["died"][i] == "yes" for i in at]
        assert stream.targets["ward"].tolist() == [
            ["ear", "eye", "skin"].index(truth["ward"][i]) for i in at
        ]
        stay = stream.targets["long"].tolist()
        for i, value in zip(at, stay, strict=True):
            assert math.isnan(value) if truth["stay"][i] == "NA" else value == truth["stay"][i]
        signs = stream.targets["signs"]
        assert signs[:, 0].tolist() == [truth["a"][i] for i in at]
        for i, value in zip(at, signs[:, 1].tolist(), strict=True):
            assert math.isnan(value) if i % 5 == 0 else value == (i % 3 == 0)
    assert suite.tasks.names == ("died", "long", "ward", "signs")
    assert suite.tasks.named("ward").kind.names == ("ear", "eye", "skin")
    assert suite.tasks.named("long").primary.unit == "days"
    assert suite.name == "my"


def test_inputs_are_scaled_and_coded_by_the_training_rows_alone(folder):
    suite = load_yaml(declare(folder, table(split={"column": "fold"})))
    truth = columns()
    train = [i for i in range(ROWS) if i % 4 < 2]
    ages = torch.tensor([float(truth["age"][i]) for i in train if i % 7], dtype=torch.float64)
    for split, rest in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        rows = [i for i in range(ROWS) if i % 4 in rest]
        inputs = suite.split(split)[0].inputs
        expected = [
            [0.0, 1.0]
            if i % 7 == 0
            else [(truth["age"][i] - ages.mean()) / ages.std(correction=0), 0.0]
            for i in rows
        ]
        torch.testing.assert_close(inputs["numeric"], torch.tensor(expected).float())
        assert inputs["categorical"].tolist() == [[0 if i % 11 == 0 else 1 + i % 3] for i in rows]


def test_values_train_never_saw_are_code_0(folder):
    truth = columns()
    truth["city"] = [
        f"only {fold}" if fold != "train" else city
        for fold, city in zip(truth["fold"], truth["city"], strict=True)
    ]
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table(split={"column": "fold"})))
    assert suite.val[0].inputs["categorical"].unique().tolist() == [0]
    assert suite.train[0].inputs["categorical"].unique().tolist() == [0, 1, 2, 3]


def test_large_numbers_close_together_are_told_apart(folder):
    # seconds since 1970 within a minute: a float32 has steps of 128 there
    truth = columns()
    truth["age"] = [1_700_000_000 + i for i in range(ROWS)]
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table(split={"column": "fold"})))
    numeric = suite.train[0].inputs["numeric"]
    assert len(numeric.unique()) == len(numeric)
    assert abs(numeric.mean()) < 1e-6
    assert abs(numeric.std(correction=0) - 1) < 1e-6


def test_the_encoder_has_the_declared_size_and_learns(folder):
    encoder = {"width": 24, "depth": 3, "dropout": 0.25}
    suite = load_yaml(declare(folder, table(), encoder=encoder, batch_size=16, epochs=7))
    module = suite.encoder()
    features = module(suite.train[0].inputs)
    assert features.shape == (len(suite.train[0]), suite.width)
    assert (suite.width, suite.batch_size, suite.epochs) == (24, 16, 7)
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [24, 24, 24]
    assert {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    features.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_all_formats_give_the_same_suite(folder):
    truth = columns()
    write(folder / "patients.tsv", truth)
    typed = {
        name: [None if cell in ("", "NA", "?") else cell for cell in cells]
        for name, cells in truth.items()
    }
    parquet.write_table(arrow.table(typed), folder / "patients.parquet")
    semicolons = (folder / "patients.tsv").read_text().replace("\t", ";")
    (folder / "semicolons.csv").write_text(semicolons)
    one = load_yaml(declare(folder, table()))
    for changes in (
        {"file": "patients.tsv"},
        {"file": "patients.parquet"},
        {"file": "semicolons.csv", "delimiter": ";"},
    ):
        two = load_yaml(declare(folder, table(name="patients", **changes)))
        assert one.tasks == two.tasks
        for split in SPLITS:
            (left,), (right,) = one.split(split), two.split(split)
            for name in left.inputs:
                assert torch.equal(left.inputs[name], right.inputs[name])
            for name in left.targets:
                torch.testing.assert_close(
                    left.targets[name], right.targets[name], rtol=0, atol=0, equal_nan=True
                )


def test_numbers_that_pandas_made_real_are_the_same_class(folder):
    truth = columns()
    truth["ward"] = ["" if i == 0 else [1.0, 2.0, 10.0][i % 3] for i in range(ROWS)]
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table()))
    assert suite.tasks.named("ward").kind.names == ("1", "2", "10"), "by number, not by text"


def test_positive_is_guessed_or_declared(folder):
    def positives(died: object) -> float:
        return load_yaml(declare(folder, table(targets={"died": died}))).train[0].targets["died"]

    guessed = positives("binary")
    assert torch.equal(guessed, positives({"kind": "binary", "positive": "yes"}))
    assert torch.equal(1 - guessed, positives({"kind": "binary", "positive": "no"}))
    notes = load_yaml(declare(folder, table())).notes
    assert "Task 'died': 'yes' counts as positive (guessed; see `positive`)." in notes


def test_yaml_words_mean_what_the_cells_say(folder):
    # plain YAML would read no as False, NA as text, 1e5 as text and 007 as 7
    write(folder / "patients.csv", {**columns(), "no": ["007", "7"] * 30})
    path = folder / "my.yaml"
    path.write_text(
        "tables:\n- file: patients.csv\n  inputs: {age: numeric}\n  missing: ['', NA, ~]\n"
        "  targets: {died: {kind: binary, positive: no}, no: {kind: binary, positive: 007}}\n"
    )
    suite = load_yaml(path)
    assert suite.tasks.names == ("died", "no")
    assert suite.notes == ()
    assert torch.equal(suite.train[0].targets["died"], suite.train[0].targets["no"])


# Text


def test_words_are_counted_on_train_and_texts_become_ragged_tokens(folder):
    truth = columns()
    truth["note"][0] = "It's QUITE ill; zebra"
    write(folder / "patients.csv", truth)
    inputs = {"note": "text", "age": "numeric"}
    suite = load_yaml(declare(folder, table(inputs=inputs, split={"column": "fold"})))
    (train,) = suite.train
    assert train.ragged == ("tokens",)
    # patient was well ill , and slept . are known; it's, quite, ; and zebra occur once
    assert sorted(train.inputs["tokens"].unique().tolist()) == list(range(2 + 8))
    assert train.lengths.tolist()[:2] == [5, 7]
    assert train.inputs["tokens"][0].tolist()[5:] == [0, 0]
    assert (train.inputs["tokens"][0] == 1).sum() == 4, "words seen once are the unknown word"
    for split in SPLITS:
        (stream,) = suite.split(split)
        assert ((stream.inputs["tokens"] != 0).sum(1) == stream.lengths).all()
    features = suite.encoder()(train.inputs)
    assert features["row"].shape == (len(train), suite.width)


def test_several_texts_are_read_one_after_the_other(folder):
    truth = columns()
    truth["city"] = ["a b"] * ROWS
    write(folder / "patients.csv", truth)
    (train,) = load_yaml(declare(folder, table(inputs={"note": "text", "city": "tokens"}))).train
    assert set(train.lengths.tolist()) == {7 + 1 + 2}


def test_text_alone_needs_no_columns_and_long_texts_are_cut(folder):
    inputs = {"note": "text"}
    suite = load_yaml(declare(folder, table(inputs=inputs), encoder={"words": 3, "width": 10}))
    assert set(suite.train[0].lengths.tolist()) == {3}
    assert suite.encoder()(suite.train[0].inputs).shape == (len(suite.train[0]), 10)
    assert any("42 of train are cut after 3 words" in note for note in suite.notes)


def tagged(rows: int = ROWS) -> dict[str, list[object]]:
    return {
        "words": ["fly to Rome" if i % 2 else "Oslo" for i in range(rows)],
        "tags": ["" if i % 10 == 3 else "O O B-city" if i % 2 else "B-city" for i in range(rows)],
        "hour": list(range(rows)),
        "kind": ["ask" if i % 2 else "name" for i in range(rows)],
    }


@pytest.mark.parametrize("inputs", [{"words": "tokens"}, {"words": "tokens", "hour": "numeric"}])
@pytest.mark.parametrize("width", [16, 15])
def test_tags_of_words_are_a_task_beside_labels_of_rows(tmp_path, inputs, width):
    write(tmp_path / "patients.csv", tagged())
    targets = {"slots": {"kind": "sequence", "column": "tags"}, "kind": "multiclass"}
    suite = load_yaml(
        declare(tmp_path, table(inputs=inputs, targets=targets), encoder={"width": width})
    )
    kind = suite.tasks.named("slots").kind
    assert kind.names == ("B-city", "O")
    assert kind.metrics()[0].name == "span F1"
    (train,) = suite.train
    assert train.ragged == ("tokens", "slots")
    assert train.targets["slots"].shape == train.inputs["tokens"].shape == (42, 3)
    for tags, length, intent in zip(
        train.targets["slots"].tolist(), train.lengths, train.targets["kind"], strict=True
    ):
        if intent == 1:  # "name", one word
            assert length == 1
            assert tags == [0, IGNORE, IGNORE]
        else:
            assert length == 3
            assert tags in ([1, 1, 0], [IGNORE] * 3)
    features = suite.encoder()(train.inputs)
    assert features["row"].shape == (42, width)
    assert features["sequence"].shape == (42, 3, width)
    assert kind.head(width)(features["sequence"]).shape == (42, 3, 2)


def test_a_row_of_words_does_not_depend_on_the_padding_beside_it(tmp_path):
    write(tmp_path / "patients.csv", tagged())
    targets = {"slots": {"kind": "sequence", "column": "tags"}}
    inputs = {"words": "tokens", "hour": "numeric"}
    suite = load_yaml(declare(tmp_path, table(inputs=inputs, targets=targets)))
    (train,) = suite.train
    short = train.take((train.lengths == 1).nonzero().squeeze(1))
    module = suite.encoder().eval()
    padded = module(short.inputs)
    cut = module({**short.inputs, "tokens": short.inputs["tokens"][:, :1]})
    torch.testing.assert_close(padded["row"], cut["row"])
    torch.testing.assert_close(padded["sequence"][:, :1], cut["sequence"])


def test_as_many_tags_as_words_or_the_line_is_named(tmp_path):
    truth = tagged()
    truth["tags"][7] = "O B-city"
    write(tmp_path / "patients.csv", truth)
    targets = {"slots": {"kind": "sequence", "column": "tags"}}
    message = refused(
        DataError, declare(tmp_path, table(inputs={"words": "tokens"}, targets=targets))
    )
    assert "line 9, column 'tags' has 2 tags for 3 words; give one tag per word" in message


def test_tags_need_words_of_their_own(tmp_path):
    write(tmp_path / "patients.csv", {**tagged(), "note": ["x"] * ROWS})
    targets = {"slots": {"kind": "sequence", "column": "tags"}}
    for inputs in ({"words": "text"}, {"words": "tokens", "note": "text"}):
        message = refused(UsageError, declare(tmp_path, table(inputs=inputs, targets=targets)))
        assert "labels the words of one input of kind tokens and no text beside it" in message


def test_one_tag_alone_is_nothing_to_learn(tmp_path):
    write(tmp_path / "patients.csv", {**tagged(), "tags": ["O O O", "O"][::-1] * (ROWS // 2)})
    targets = {"slots": {"kind": "sequence", "column": "tags"}}
    message = refused(
        DataError, declare(tmp_path, table(inputs={"words": "tokens"}, targets=targets))
    )
    assert "has 1 tags, expected at least two" in message


# Splits


def test_a_random_split_has_the_declared_shares_and_depends_on_the_seed_alone(folder):
    write(folder / "patients.csv", columns(500))
    targets = {"row": {"kind": "regression", "column": "id"}}

    def rows(**split: object) -> list[list[float]]:
        suite = load_yaml(declare(folder, table(targets=targets, split=split)))
        return [suite.split(name)[0].targets["row"].tolist() for name in SPLITS]

    default = rows()
    assert [len(part) for part in default] == [350, 50, 100]
    assert sorted(row for part in default for row in part) == list(range(500))
    assert default == rows(val=0.1, test=0.2, seed=0)
    assert default != rows(seed=1)
    assert [len(part) for part in rows(val=0.25, test=0.5)] == [125, 125, 250]
    # the draw is part of every result: it must not move from release to release
    assert default[1][:5] == VAL_ROWS


VAL_ROWS = [31.0, 32.0, 36.0, 38.0, 44.0]


def test_groups_stay_together_also_across_tables(folder):
    write(folder / "later.csv", columns(90, first=30))
    split = {"group": "patient", "val": 0.2, "test": 0.3}
    targets = {"row": {"kind": "regression", "column": "id"}}
    suite = load_yaml(
        declare(
            folder,
            table(split=split, targets=targets),
            table(file="later.csv", split=split, targets=targets),
        )
    )
    homes: dict[int, set[str]] = {}
    for name in SPLITS:
        for stream in suite.split(name):
            assert len(stream) > 0
            for row in stream.targets["row"].tolist():
                homes.setdefault(int(row) // 4, set()).add(name)
    assert len(homes) == 30
    assert {len(home) for home in homes.values()} == {1}


def test_a_file_per_split_and_val_drawn_from_train(folder):
    write(folder / "test.csv", columns(20, first=1000))
    targets = {"row": {"kind": "regression", "column": "id"}}
    files = {"train": "patients.csv", "test": "test.csv"}
    suite = load_yaml(declare(folder, table(file=files, targets=targets, split={"val": 0.2})))
    assert suite.test[0].targets["row"].tolist() == list(range(1000, 1020))
    assert [len(suite.train[0]), len(suite.val[0])] == [48, 12]
    assert "test as given; 0.2 val drawn at random with seed 0" in suite.about.protocol
    write(folder / "val.csv", columns(10, first=500))
    files["val"] = "val.csv"
    suite = load_yaml(declare(folder, table(file=files, targets=targets)))
    assert suite.train[0].targets["row"].tolist() == list(range(ROWS))
    assert suite.val[0].targets["row"].tolist() == list(range(500, 510))


@pytest.mark.parametrize("rare", range(0, ROWS, 4))
def test_a_class_of_one_row_is_kept_in_train_wherever_the_draw_puts_it(folder, rare):
    truth = columns()
    truth["ward"][rare] = "heart"
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table()))
    heart = suite.tasks.named("ward").kind.names.index("heart")
    assert (suite.train[0].targets["ward"] == heart).sum() == 1
    moved = len(suite.train[0]) > 42
    assert moved == any("stay in train" in note for note in suite.notes)


def test_rows_without_any_label_are_left_out(folder):
    truth = columns()
    for name in ("died", "stay"):
        truth[name] = [cell if i % 3 else "" for i, cell in enumerate(truth[name])]
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table(targets={"died": "binary", "stay": "regression"})))
    assert sum(len(suite.split(split)[0]) for split in SPLITS) == 40
    assert any("20 rows without a label" in note for note in suite.notes)


# Several tables


def test_tables_are_streams_and_a_task_may_stand_in_several(folder):
    write(folder / "icu.csv", {"years": [*range(40)], "city": ["A", "B"] * 20, "dead": [0, 1] * 20})
    truth = columns()
    truth["died"] = [int(cell == "yes") for cell in truth["died"]]
    write(folder / "patients.csv", truth)
    suite = load_yaml(
        declare(
            folder,
            table(),
            table(
                file="icu.csv",
                inputs={"age": {"column": "years", "kind": "numeric"}, "city": "category"},
                targets={
                    "died": {"column": "dead", "kind": "binary"},
                    "died_icu": {"column": "dead", "kind": "binary"},
                },
            ),
        )
    )
    assert suite.tasks.names == ("died", "stay", "ward", "died_icu")
    assert [stream.name for stream in suite.train] == ["patients", "icu"]
    assert set(suite.train[1].targets) == {"died", "died_icu"}
    assert torch.equal(suite.train[1].targets["died"], suite.train[1].targets["died_icu"])
    ages = torch.cat([stream.inputs["numeric"] for stream in suite.train])
    there = ages[ages[:, 1] == 0, 0]
    assert abs(there.mean()) < 1e-5, "the scale is learned over all tables"
    assert abs(there.std(correction=0) - 1) < 1e-5


def test_tables_whose_inputs_disagree_are_refused_by_name(folder):
    write(folder / "icu.csv", columns())
    other = table(file="icu.csv", inputs={"age": "category", "note": "category"})
    message = refused(UsageError, declare(folder, table(), other))
    assert "all tables must have the same inputs" in message
    assert "'age' is numeric in 'patients' and category in 'icu'" in message
    assert "'city' only in 'patients'; 'note' only in 'icu'" in message


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ("binary", "multiclass", "is binary in table 'patients' and multiclass in 'icu'"),
        (
            {"kind": "binary", "positive": "yes"}, {"kind": "binary", "positive": "no"},
            "is binary (positive 'yes') in table 'patients' and binary (positive 'no') in 'icu'",
        ),
        (
            {"kind": "multilabel", "columns": ["a", "b"]}, {"kind": "multilabel", "columns": ["a"]},
            "has the labels a, b in table 'patients' and a in 'icu'",
        ),
    ],
)  # fmt: skip
def test_one_task_has_one_kind(folder, mine, theirs, told):
    write(folder / "icu.csv", columns())
    two = table(file="icu.csv", targets={"died": theirs})
    message = refused(UsageError, declare(folder, table(targets={"died": mine}), two))
    assert told in message


# Notes


def test_useless_inputs_are_noted_not_refused(folder):
    inputs = {"id": "numeric", "patient": "category", "same": "numeric", "age": "numeric"}
    truth = columns()
    truth["patient"] = [f"p{i}" for i in range(ROWS)]
    truth["age"] = [""] * ROWS
    write(folder / "patients.csv", truth)
    notes = load_yaml(declare(folder, table(inputs=inputs))).notes
    assert any(note.startswith("Input 'id' counts the rows") for note in notes)
    assert any(note.startswith("Input 'patient' has another value in every row") for note in notes)
    assert "Input 'same' is constant in train; it says nothing." in notes
    assert "Input 'age' has no value in train; it says nothing." in notes


def test_hardly_differing_numbers_stay_finite(folder):
    truth = columns()
    truth["age"] = [5e-324 if i % 4 < 2 and i % 2 else 0 for i in range(ROWS)]
    truth["city"] = [""] * ROWS
    write(folder / "patients.csv", truth)
    suite = load_yaml(declare(folder, table(split={"column": "fold"})))
    assert all(suite.split(split)[0].inputs["numeric"].isfinite().all() for split in SPLITS)
    assert "Input 'city' has no value in train; it says nothing." in suite.notes
    assert suite.encoder()(suite.train[0].inputs).isfinite().all()


def test_where_the_data_came_from_is_told(folder):
    about = load_yaml(declare(folder, table(), about={"licence": "MIT"})).about
    assert about.licence == "MIT"
    assert about.source == str(folder / "patients.csv")
    assert about.citation == "own tables, declared in my.yaml"
    assert about.protocol == "patients: 0.1 val and 0.2 test drawn at random with seed 0"


def test_a_split_with_one_class_is_noted(folder):
    truth = columns()
    truth["died"] = ["yes" if i == 1 else "no" for i in range(ROWS)]
    write(folder / "patients.csv", truth)
    notes = load_yaml(declare(folder, table(split={"column": "fold"}))).notes
    assert any("no row of test in table 'patients' is 'yes'" in note for note in notes)


# Faults in the declaration


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"imputs": {"age": "numeric"}}, "Unknown key 'imputs'. Did you mean 'inputs'?"),
        ({"inputs": {"age": "numerical"}}, "kind of input 'numerical'. Did you mean 'numeric'?"),
        ({"targets": {"died": "bin"}}, "at tables[0].targets.died, takes: binary, multiclass"),
        ({"targets": {"died": {"kind": "binray"}}}, "Did you mean 'binary'?"),
        ({"targets": {"died": {"kind": "binary", "colunm": "x"}}}, "Did you mean 'column'?"),
        ({"targets": {"died": {"kind": "multiclass", "positive": "x"}}}, "Unknown key 'positive'"),
        ({"targets": {"died": {"column": "died"}}}, "expected the key 'kind' with one of binary"),
        ({"targets": {"s": "multilabel"}}, "expected {kind: multilabel, columns: [...]}"),
        ({"targets": {"s": {"kind": "multilabel", "columns": ["a", "a"]}}}, "each column once"),
        ({"targets": {}}, "expected a mapping with at least one entry"),
        ({"targets": None}, "expected the key 'targets' with tasks"),
        ({"file": None}, "expected the key 'file' with the path of a table"),
        ({"file": {"test": "patients.csv"}}, "expected the key 'train'"),
        ({"file": {"all": "patients.csv"}}, "Unknown key 'all'"),
        ({"split": {"vall": 0.1}}, "Unknown key 'vall'. Did you mean 'val'?"),
        ({"split": {"val": 0}}, "at tables[0].split.val, expected a share of the rows above 0"),
        ({"split": {"val": "some"}}, "got 'some'"),
        ({"split": {"val": 0.5, "test": 0.5}}, "expected shares that leave rows for train"),
        ({"split": {"seed": -1}}, "expected a whole number from 0 to"),
        ({"split": {"seed": 2**32}}, "expected a whole number from 0 to 4294967295"),
        ({"split": {"column": "fold", "val": 0.1}}, "either `column`, or any of val"),
        ({"split": {"column": "fold"}, "file": {"train": "patients.csv"}}, "no `column` beside"),
        ({"split": {"test": 0.1}, "file": {"train": "a.csv", "test": "b"}}, "no share for test"),
        ({"missing": "NA"}, 'expected a list of cells, such as ["", "NA"]'),
        ({"delimiter": "::"}, "expected one character"),
        ({"targets": {"age": "regression"}}, "has 'age' both as input and as target"),
        ({"split": {"column": "city"}}, "has 'city' both as input and as the column of the split"),
        ({"targets": {"s": {"kind": "sequence", "column": "note"}}}, "inputs of words are none"),
    ],
)  # fmt: skip
def test_a_faulty_table_declaration_is_refused(folder, declared, told):
    assert told in refused(UsageError, declare(folder, table(**declared)))


@pytest.mark.parametrize(
    ("top", "told"),
    [
        ({"table": []}, "Unknown key 'table'. Did you mean 'tables'?"),
        ({"encoder": {"widht": 3}}, "Did you mean 'width'?"),
        ({"encoder": {"dropout": 1}}, "expected a probability in [0, 1)"),
        ({"encoder": {"width": 0}}, "at encoder.width, expected a whole number from 1"),
        ({"batch_size": 1.5}, "got '1.5'"),
        ({"epochs": []}, "at epochs, expected a whole number from 1 to 4294967295; got []"),
        ({"about": {"license": "MIT"}}, "Did you mean 'licence'?"),
    ],
)
def test_a_faulty_top_level_is_refused(folder, top, told):
    assert told in refused(UsageError, declare(folder, table(), **top))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "at the top, expected a mapping with any of name, tables"),
        ("name: x", "expected the key 'tables' with a list of tables"),
        ("tables: []", "at tables, expected a list with at least one entry"),
        ("tables: [1]", "at tables[0], expected a mapping"),
        ("name: [", "line 1 is not valid YAML here"),
        ("name: a\nname: b\n", "line 2 is not valid YAML here: the key 'name' stands twice"),
        ("? [a]\n: b\n", "expected a plain key"),
        ("name: \x07", "is not valid YAML here"),
    ],
)
def test_a_file_that_declares_nothing_is_refused(tmp_path, text, told):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    assert told in refused(UsageError, path)


def test_a_missing_declaration_says_how_to_get_one(tmp_path):
    assert "polytask init TABLE" in refused(UsageError, tmp_path / "my.yaml")
    (tmp_path / "my.yaml").write_bytes(b"name: \xe9")
    assert "is not UTF-8" in refused(UsageError, tmp_path / "my.yaml")


def test_two_tables_of_one_name_are_refused(folder):
    assert "'patients' occurs more than once" in refused(
        UsageError, declare(folder, table(), table())
    )


# Faults in the tables


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"inputs": {"agge": "numeric"}}, "Unknown column 'agge'. Did you mean 'age'?"),
        ({"targets": {"dead": "binary"}}, "Unknown column 'dead'."),
        ({"split": {"column": "flod"}}, "Unknown column 'flod'. Did you mean 'fold'?"),
        ({"split": {"group": "patients"}}, "Unknown column 'patients'. Did you mean 'patient'?"),
    ],
)
def test_an_unknown_column_names_the_file_and_the_nearest(folder, declared, told):
    message = refused(UsageError, declare(folder, table(**declared)))
    assert told in message
    assert f"The columns of {folder}/patients.csv: id, age, city" in message


@pytest.mark.parametrize(
    ("column", "cells", "told"),
    [
        ("age", {3: "inf"}, "line 5, column 'age': 'inf' is not a finite number"),
        ("age", {3: "old"}, "line 5, column 'age': 'old' is not a finite number"),
        ("age", {3: "1_0"}, "'1_0' is not a finite number"),
        ("age", {3: "1e31"}, "'1e31' is not a finite number below 1e+30"),
        ("age", {3: "NAN"}, "'NAN' is not a finite number"),
        ("stay", {3: "-Infinity"}, "line 5, column 'stay': '-Infinity' is not a finite number"),
        ("died", dict.fromkeys(range(ROWS), "no"), "has one class in train, 'no'"),
        ("died", dict.fromkeys(range(ROWS), ""), "column 'died' of {} has only missing labels in"),
        ("died", {3: "maybe", 5: "never"}, "has 4 values in train (maybe, never, no, yes)"),
        ("ward", dict.fromkeys(range(ROWS), "eye"), "has one class in train, 'eye'"),
        ("stay", dict.fromkeys(range(ROWS), "2"), "expected labels that differ"),
        ("stay", dict.fromkeys(range(ROWS), ""), "every label is missing"),
        ("ward", {3: "heart"}, "the class 'heart' of task 'ward' is in test but never in train"),
        ("died", {3: "perhaps"}, "line 5, column 'died': the class 'perhaps' of task"),
        ("fold", {3: "tets"}, "line 5, column 'fold': 'tets' is no split. Did you mean 'test'?"),
        ("fold", {3: ""}, "line 5, column 'fold': 'a missing cell' is no split."),
        ("fold", dict.fromkeys(range(2, ROWS, 4), "test"), "no row is left for val"),
    ],
)  # fmt: skip
def test_faulty_cells_are_refused_with_their_line(folder, column, cells, told):
    truth = columns()
    for row, cell in cells.items():
        truth[column][row] = cell
    if told.startswith("has 4 values"):
        truth["fold"] = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    path = write(folder / "patients.csv", truth)
    with pytest.raises(DataError) as caught:
        load_yaml(declare(folder, table(split={"column": "fold"})))
    assert told.format(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_is_no_yes_or_no_is_refused(folder):
    targets = {"signs": {"kind": "multilabel", "columns": ["a", "city"]}}
    message = refused(DataError, declare(folder, table(inputs={"age": "numeric"}, targets=targets)))
    assert "column 'city': 'B' is no yes or no" in message


def test_a_wrong_positive_names_the_two_values(folder):
    targets = {"died": {"kind": "binary", "positive": "dead"}}
    with pytest.raises(DataError, match="'dead' is not in train, which has 'no' and 'yes'"):
        load_yaml(declare(folder, table(targets=targets)))


def test_a_table_without_any_label_is_refused(folder):
    truth = columns()
    truth["died"] = [""] * ROWS
    write(folder / "patients.csv", truth)
    message = refused(DataError, declare(folder, table(targets={"died": "binary"})))
    assert "every label in 'died' is missing" in message


def test_a_row_without_its_group_is_refused(folder):
    truth = columns()
    truth["patient"][6] = ""
    write(folder / "patients.csv", truth)
    message = refused(DataError, declare(folder, table(split={"group": "patient"})))
    assert "line 8, column 'patient' is missing, but the split goes by this group" in message


def test_too_few_rows_for_three_splits_are_refused(folder):
    write(folder / "patients.csv", columns(2, first=1))
    message = refused(DataError, declare(folder, table(targets={"stay": "regression"})))
    assert "patients.csv, 2 rows): no row is left for train" in message
