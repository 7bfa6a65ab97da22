"""Architectures on a suite's features or fields, and the page on clicks as it stands."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytask.errors import UsageError
from polytask.parsing import parse
from polytask.recipes import Job, build, load_suite, train
from polytask.share import TrunkModel
from polytask.suites.encoders import TableEncoder
from polytask.suites.fields import Columns, Fields

from .conftest import CONFIG, write_suite

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("recipe", "encoder"),
    [
        ("mmoe", TableEncoder),
        ("mmoe:on=fields", Fields),
        ("hard:on=fields", Fields),
        ("stem", Columns),
        ("apem:patterns=3", Fields),
        ("dtrn", Fields),
        ("dtrn:on=features,fields=4", TableEncoder),
    ],
)
def test_a_recipe_decides_what_its_architecture_stands_on(
    recipe: str, encoder: type, tmp_path: Path
) -> None:
    path = write_suite(tmp_path)
    suite = load_suite(str(path))
    model, _, _ = build(suite, parse(recipe), 0)
    assert type(model.encoder) is encoder
    if encoder is not TableEncoder:
        assert getattr(model.encoder, "fields", model.encoder.width) == 3  # x, y and town
    record = train(Job(str(path), None, f"{recipe}+pcgrad", CONFIG, tmp_path / "run"))
    assert len(record.points) >= 2
    again, _, _ = build(suite, parse(recipe), 0)
    inputs = suite.test[0].inputs
    for task, output in again(inputs).items():
        assert torch.equal(output, model(inputs)[task])  # the seed decides the first weights


def test_a_table_with_words_has_no_fields(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "note,x,y\n"
        + "".join(f"it was {'good' if i % 2 else 'bad'},{i},{i % 2}\n" for i in range(40))
    )
    (tmp_path / "t.yaml").write_text(
        "tables: [{file: t.csv, inputs: {note: text, x: numeric}, targets: {y: binary}}]"
    )
    suite = load_suite(str(tmp_path / "t.yaml"))
    with pytest.raises(UsageError, match="Suite 't' has no fields to stand on"):
        build(suite, parse("stem"), 0)
    model, _, _ = build(suite, parse("mmoe"), 0)
    assert isinstance(model, TrunkModel)


def test_the_page_on_clicks_runs_and_its_model_knows_more_than_the_mean(
    require_data: Callable[..., Path],
) -> None:
    require_data("census_income_kdd/census-income.test.gz")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clicks.md").read_text(), re.S)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(code, names)  # the page of this repository
    found, suite = names["found"], names["suite"]
    truth_N = suite.test[0].truth["conversion"]
    assert found.rows == len(truth_N) == 19_762
    assert 0.5 < found.ratio < 1.5
    assert found.error < 0.8 * float((truth_N - truth_N.mean()).abs().mean())
