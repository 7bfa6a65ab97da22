"""Every adapter of the catalog keeps the contract of the room."""

import pytest

from polytask.adapt import Method
from polytask.testing import check_adapter

from .catalogued import ROWS, given_for


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_it_keeps_the_contract(row):
    method = row.load()()
    assert isinstance(method, Method)
    assert hash(method) == hash(row.load()())
    check_adapter(method, given=given_for(row.name))
