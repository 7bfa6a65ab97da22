"""The methods of the room that stand by themselves, and what they need beside a task."""

import inspect

import torch

from polytask.adapt import Method
from polytask.catalog import METHODS

ELSEWHERE = ("mam", "scalearn", "adapter-fusion", "alter")
"""Two methods in one, and those that read what was trained before: test_sources.py."""

ROWS = [
    row
    for row in METHODS
    if row.room == "adapt"
    and row.name not in ELSEWHERE
    and inspect.isclass(row.load())
    and issubclass(row.load(), Method)
]
"""Functions place methods, or work on trained adapters, and some train the base's own weights; they
have tests of their own."""

MANY = 6


def given_for(name: str) -> dict[str, torch.Tensor] | None:
    """Return what a method of its default settings needs of each of 6 rows."""
    if name == "mor1e":
        embedding = torch.linspace(-1, 1, MANY * 384, dtype=torch.float64)
        return {"embedding": embedding.view(MANY, 384)}
    return None
