"""Compiled kernels that merge a piece in one pass; absent, all is done by torch, to the same bits.

Shapes: R = rows of a piece, the models; P = elements of a piece.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.kernels import Library, library
from polytask.merge.base import Changes, Mixture, Moved, Signs, Sizes, State

CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""Dtypes of rows and results, as the kernels count them."""

MODELS = 64
"""Rows that the kernels take at most."""


Draws = tuple[Sequence[NDArray[np.unsignedinteger]], int]
"""Each model's draws, (P,), and the largest that keeps an element; none where all are kept."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Elements of several models, (P,) each. places: where they lie in memory."""

    places: Sequence[int]
    count: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.places)


class _Changes(ctypes.Structure):
    """As kernels/merge.c has it."""

    _fields_ = (
        ("rows", ctypes.c_void_p), ("draws", ctypes.c_void_p), ("below", ctypes.c_void_p),
        ("most", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("models", ctypes.c_int32),
        ("dtype", ctypes.c_int32), ("draw_width", ctypes.c_int32),
        ("draw_most", ctypes.c_uint32), ("over", ctypes.c_float),
    )  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """The kernels, as methods on tensors."""

    compiled: Library

    def finite(self, rows: Rows) -> bool:
        """Return whether all elements of all rows are."""
        code, count = CODES[rows.dtype], _long(rows.count)
        return bool(self._call("finite", _all(rows), len(rows), code, count))

    def mix(self, mixture: Mixture, rows: Rows, out_P: Tensor) -> bool:
        """Put a mixture of the rows, in float64, and rounded once; return whether it is finite.

        rows: the tuned ones, then the base where it takes part.
        """
        factors = (*mixture.tuned, mixture.base)[: len(rows)]
        moves = mixture.scale is not None
        return bool(
            self._call(
                "mix", _all(rows), len(rows), CODES[rows.dtype], _doubles(factors),
                ctypes.c_double(mixture.over), int(moves), ctypes.c_double(mixture.scale or 0.0),
                _long(out_P.numel()), _at(out_P), CODES[out_P.dtype],
            )
        )  # fmt: skip

    def pool(self, rows: Rows, out_P: Tensor) -> bool:
        """Put the mean of 1, 2, 4 or 8 rows of bfloat16, summed in float32; return as `mix`."""
        return bool(self._call("pool", _all(rows), len(rows), _long(out_P.numel()), _at(out_P)))

    def products(self, rows: Rows, with_base: bool, sums_QA: Tensor) -> None:
        """Add the products of each row with itself and those after it; see `angles.Angles`.

        with_base: the last row is the base, and is taken from each of the others.
        """
        code, count = CODES[rows.dtype], _long(rows.count)
        models = len(rows) - with_base
        self._call("products", _all(rows), models, int(with_base), code, count, _at(sums_QA))

    def move(self, form: Moved, rows: Rows, draws: Draws, out_P: Tensor) -> bool:
        """Put the moved base, rounded once; return whether it is finite.

        rows: the tuned ones, then the base. draws: see `Draws`.
        """
        scale, result = ctypes.c_float(form.scale), (_at(out_P), CODES[out_P.dtype])
        count = _long(out_P.numel())
        if form.majority is None:
            of = _changes(form.changes, (), rows, draws)
            factors = _doubles(form.weights) if form.weights else None
            over = ctypes.c_float(form.over)
            return bool(self._call("add", of, factors, over, scale, count, *result))
        of = _changes(form.changes, form.weights, rows, draws)
        sizes = [abs(weight) for weight in form.weights]
        least = ctypes.c_float(min((size for size in sizes if size > 0), default=1.0))
        majority = ctypes.c_float(form.majority)
        each = _doubles(sizes) if sizes else None
        return bool(self._call("elect", of, majority, each, least, scale, count, *result))

    def signs(self, look: Signs, rows: Rows, draws: Draws) -> int:
        """Return how many sums of changes are above 0, less how many are below."""
        of = _changes(look.changes, look.weights, rows, draws)
        found: int = self.compiled.function("signs", ctypes.c_int64)(of, _long(rows.count))
        return found

    def count(
        self,
        look: Sizes,
        rows: Rows,
        draws: Draws,
        lines: Sequence[NDArray[np.uint32]],
        sums: State,
    ) -> None:
        """Count the sizes of changes as `ranks.Ranks` does. lines: what `Ranks.lines` says."""
        inside_LB = sums["inside_LB"]
        kept = _at(sums["kept_L"]) if "kept_L" in sums else None
        self._call(
            "count", _changes(look.changes, (), rows, draws), _long(rows.count),
            len(lines[0]) // (len(rows) - 1), *(ctypes.c_void_p(one.ctypes.data) for one in lines),
            _at(sums["above_L"]), _at(inside_LB), kept, _long(inside_LB.shape[1]),
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> int:
        found: int = self.compiled.function(name)(*arguments)
        return found


def kernels() -> Kernels | None:
    """Return the kernels for this machine; None where there are none, see `kernels.missing`."""
    found = library()
    return None if found is None else Kernels(found)


def _at(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())


def _all(rows: Rows) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(rows))(*rows.places)


def _doubles(values: Sequence[float]) -> ctypes.Array[ctypes.c_double]:
    return (ctypes.c_double * len(values))(*values)


def _changes(form: Changes, weights: Sequence[float], rows: Rows, draws: Draws) -> Any:
    """Return a pointer to what the kernels are told of changes."""
    given, most = draws
    ends = (form.below, form.most, weights)
    arrays: list[ctypes.Array[Any]] = [
        _all(rows),
        (ctypes.c_void_p * len(given))(*[one.ctypes.data for one in given]),
        *[(ctypes.c_float * len(values))(*values) for values in ends],
    ]
    places = [ctypes.addressof(array) if len(array) else None for array in arrays]
    made = _Changes(
        *places, len(rows) - 1, CODES[rows.dtype], given[0].itemsize if given else 0, most,
        form.over,
    )  # fmt: skip
    made.arrays = arrays  # held as long as what points to them
    return ctypes.byref(made)


_long = ctypes.c_int64
