"""Every adapter of the catalog keeps the contract of the room."""

import pytest
import torch

from polytask.adapt import Method
from polytask.catalog import METHODS
from polytask.testing import check_adapter

MADE = {"mam", "mtlora", "mbc"}  # functions that place methods or work on trained adapters

GIVEN = {"mor1e": {"embedding": torch.linspace(-1, 1, 6 * 384, dtype=torch.float64).view(6, 384)}}

ROWS = [row for row in METHODS if row.room == "adapt" and row.name not in MADE]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_it_keeps_the_contract(row):
    method = row.load()()
    assert isinstance(method, Method)
    assert hash(method) == hash(row.load()())
    check_adapter(method, given=GIVEN.get(row.name))
