"""The methods of the room that stand by themselves, and what they need beside a task."""

import inspect

import torch

from polytask.catalog import METHODS

ROWS = [row for row in METHODS if row.room == "adapt" and inspect.isclass(row.load())]
"""Functions place methods, or work on trained adapters; they have tests of their own."""

MANY = 6


def given_for(name: str) -> dict[str, torch.Tensor] | None:
    """Return what a method of its default settings needs of each of 6 rows."""
    if name == "mor1e":
        embedding = torch.linspace(-1, 1, MANY * 384, dtype=torch.float64)
        return {"embedding": embedding.view(MANY, 384)}
    return None
