"""Fields: one vector per column, by a plain loop over rows and columns; nothing else is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.suites import Suite, load, suite_row
from polytask.suites.encoders import Standardise
from polytask.suites.fields import Columns, Fields

SIZES = (3, 5)


def standardise() -> Standardise:
    return Standardise(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))


def inputs(rows: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(size, (rows,), generator=draw) for size in SIZES], 1)
    return {"numeric": torch.randn(rows, 2, generator=draw), "categorical": codes}


def test_a_field_is_its_categorys_vector_or_its_number_times_its_vector() -> None:
    torch.manual_seed(0)
    encoder, given = Fields(standardise(), SIZES, width=4), inputs()
    assert (encoder.fields, encoder.width) == (4, 16)
    assert encoder.table.weight.shape == (2 + 3 + 5, 4)
    expected = torch.zeros(7, 4, 4)
    for r in range(7):
        for d, (mean, scale) in enumerate(((1.0, 2.0), (-2.0, 0.5))):
            number = (float(given["numeric"][r, d]) - mean) / scale
            expected[r, d] = number * encoder.table.weight[d]
        for f, first in enumerate((2, 5)):
            expected[r, 2 + f] = encoder.table.weight[first + int(given["categorical"][r, f])]
    torch.testing.assert_close(encoder(given), expected.flatten(1))
    assert [name for name, _ in encoder.named_parameters()] == ["table.weight"]


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_columns_of_one_kind_alone(kind: str) -> None:
    given = {kind: inputs()[kind]}
    encoder = Fields(standardise(), ()) if kind == "numeric" else Fields(None, SIZES)
    assert encoder.fields == 2
    assert encoder(given).shape == (7, 20)
    halves = [encoder({kind: given[kind][rows]}) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(torch.cat(halves), encoder(given))


def test_a_code_that_no_column_has_counts_as_never_seen() -> None:
    """And never as a category of the column beside it."""
    columns = Columns(None, SIZES)
    odd = columns({"categorical": torch.tensor([[3, 0], [-1, 99], [2, 4]])})
    assert odd["index"].tolist() == [[0, 3], [0, 3], [2, 7]]


def test_values_follow_the_encoders_type() -> None:
    encoder = Fields(None, SIZES).double()
    assert encoder({"categorical": inputs()["categorical"]}).dtype == torch.float64


def test_it_exports_with_any_number_of_rows() -> None:
    encoder, batch = Fields(standardise(), SIZES).eval(), torch.export.Dim("batch", min=2)
    shapes = {"inputs": {name: {0: batch} for name in inputs()}}
    program = torch.export.export(encoder, (inputs(4),), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(inputs(9)), encoder(inputs(9)))


@pytest.mark.parametrize("name", ["census", "clicked"])
def test_suites_of_tables_give_one(name: str, require_data: Callable[..., Path]) -> None:
    require_data(*map(str, suite_row(name).files))
    suite = load(name)
    encoder, width = suite.stand("fields")
    rows = suite.train[0].take(torch.arange(50))
    assert isinstance(encoder, Fields)
    assert encoder(rows.inputs).shape == (50, width) == (50, 38 * 10)
    number_ND = encoder.columns(rows.inputs)["row"][:, :7]
    assert float(number_ND.abs().mean()) < 2  # standardised by the training rows
    own, own_width = suite.stand("features")
    assert own(rows.inputs).shape == (50, suite.width) == (50, own_width)


def test_suites_without_fields_say_so() -> None:
    suite: Suite = load("digits2")
    with pytest.raises(UsageError, match="Suite 'digits2' has no fields to stand on"):
        suite.stand("fields")
    with pytest.raises(UsageError, match=r"Unknown encoder 'field'. Did you mean 'fields'"):
        suite.stand("field")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Columns(None, ()), "0 numeric columns"),
        (lambda: Columns(None, (3, 0)), r"sizes \(3, 0\)"),
        (lambda: Fields(None, (3,), width=0), "width is 0"),
    ],
)
def test_what_cannot_work_is_refused(build: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build()
