"""The page docs/own-data.md is right: its examples load, and the defaults it states are those."""

import re
from pathlib import Path

import pyarrow as arrow
import pytest
import yaml
from pyarrow import parquet

from polytask.suites.schema import MISSING, EncoderSize, Fractions, parse
from polytask.suites.tables import load_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Generated tables under every name the page uses."""
    rows = range(80)
    patients = {
        "age": [30 + i % 40 for i in rows],
        "city": ["ABC"[i % 3] for i in rows],
        "note": ["Patient slept well" for _ in rows],
        "died": [["no", "yes"][i % 2] for i in rows],
        "stay": [i % 5 for i in rows],
        "ward": [["eye", "ear"][i % 2] for i in rows],
        **{sign: [int(i % k == 0) for i in rows] for k, sign in enumerate(SIGNS, 2)},
        "patient": [f"p{i // 4}" for i in rows],
        "fold": [["train", "train", "train", "train", "val", "val", "test"][i % 7] for i in rows],
    }
    cells = zip(*patients.values(), strict=True)
    lines = [",".join(patients), *(",".join(map(str, row)) for row in cells)]
    for name in ("patients.csv", "train.csv", "test.csv"):
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "semicolons.csv").write_text("\n".join(lines).replace(",", ";"))
    parquet.write_table(arrow.table(patients), tmp_path / "icu.parquet")
    requests = ["play a song\tplay\tO O B-music_item", "rain in Rome\tweather\tO O B-city"] * 40
    (tmp_path / "requests.tsv").write_text("\n".join(["request\tintent\ttags", *requests]))
    return tmp_path


SIGNS = ("fever", "cough", "pain")


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_loads(folder, example):
    (folder / "my.yaml").write_text(example)
    suite = load_yaml(folder / "my.yaml")
    declared = {name for t in yaml.safe_load(example)["tables"] for name in t["targets"]}
    assert set(suite.tasks.names) == declared
    suite.encoder()(suite.train[0].inputs)


def test_the_page_has_an_example_for_every_key_and_kind():
    assert len(EXAMPLES) == 9
    together = "\n".join(EXAMPLES)
    words = "name file split inputs targets missing delimiter encoder batch_size epochs about"
    kinds = "numeric category text tokens binary multiclass multilabel regression sequence"
    options = "column columns positive unit group val test seed width depth dropout words title"
    for word in f"{words} {kinds} {options} source licence citation".split():
        assert re.search(rf"\b{word}\b", together), word


def test_what_the_page_calls_default_is_the_default(folder):
    (folder / "whole.yaml").write_text(EXAMPLES[0])
    (folder / "hospital.yaml").write_text(
        "tables:\n- file: patients.csv\n  inputs: {age: numeric}\n  targets: {died: binary}\n"
    )
    whole, bare = parse(folder / "whole.yaml"), parse(folder / "hospital.yaml")
    assert whole.name == bare.name == "hospital"
    assert whole.encoder == bare.encoder == EncoderSize()
    assert (whole.batch_size, whole.epochs) == (bare.batch_size, bare.epochs)
    (one,), (two,) = whole.tables, bare.tables
    assert one.name == two.name
    assert one.split == two.split == Fractions()
    assert one.missing == two.missing == frozenset(MISSING)
