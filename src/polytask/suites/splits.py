"""Random splits of rows, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polytask.suites.base import SPLITS, Split, Stream


def frozen_random(seed: int) -> np.random.Generator:
    """Return the random numbers suites are cut with; seed 0 unless a person chose another.

    NumPy reserves the right to change what a Generator gives. A test holds the sums of what this
    one gives, so that no test split moves unseen with an upgrade.
    """
    return np.random.default_rng(seed)


def random_split(
    rows: int, *, val: float, test: float, random: np.random.Generator
) -> dict[Split, Tensor]:
    """Return the row numbers of each split, disjoint, ascending, together all of `rows`.

    val, test: fractions of all rows, rounded to whole rows.
    """
    order_N = torch.from_numpy(random.permutation(rows))
    tests, vals = round(test * rows), round(val * rows)
    parts = torch.split(order_N, [rows - vals - tests, vals, tests])
    return {split: part.sort().values for split, part in zip(SPLITS, parts, strict=True)}


def cut(stream: Stream, rows: dict[Split, Tensor]) -> dict[Split, Stream]:
    """Return the stream's part in each split."""
    return {split: stream.take(rows_N) for split, rows_N in rows.items()}
