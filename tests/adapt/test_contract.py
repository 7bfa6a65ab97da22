"""Every adapter of the catalog keeps the contract of the room."""

import pytest

from polytask.adapt import Method
from polytask.catalog import METHODS
from polytask.testing import check_adapter

# Two methods in one, those that read what was trained before (test_sources.py), and those that are
# none of the engine's (test_own_weights.py).
ELSEWHERE = (
    "mam", "scalearn", "adapter-fusion", "alter", "sparse-tuning", "half-fine-tuning", "subtuning",
)  # fmt: skip
ROWS = [row for row in METHODS if row.room == "adapt" and row.name not in ELSEWHERE]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_it_keeps_the_contract(row):
    method = row.load()()
    assert isinstance(method, Method)
    assert hash(method) == hash(row.load()())
    check_adapter(method)
