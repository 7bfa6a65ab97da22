"""Pieces of all models at once, read into reused buffers, widened, and looked at for NaN.

Shapes: M = tuned models, R = M + 1 with the base as row 0, P = elements of one piece.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.errors import DataError
from polytask.merge.base import Merge, Mixture
from polytask.merge.need import Need
from polytask.merge.options import Nonfinite
from polytask.merge.plan import Item, Part, Plan
from polytask.merge.window import Arena


@dataclass
class Buffers:
    """One thread's memory. pieces: all models, widened. raw: one model, as its file has it."""

    pieces: Arena
    raw: Arena

    @classmethod
    def of(cls, need: Need) -> Buffers:
        """Return buffers for pieces of `need.chunk` elements; they grow for whole tensors alone."""
        return cls(Arena(need.piece_bytes), Arena(need.scratch_bytes))


@dataclass
class Pieces:
    """Reads pieces of a plan's tensors.

    wide: work in float64 whatever the method. spoiled: per tensor, the models that are not finite.
    """

    plan: Plan
    nonfinite: Nonfinite
    wide: bool = False
    spoiled: dict[str, set[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(
        self, item: Item, method: Merge, start: int, count: int, own: Buffers, seen: bool = False
    ) -> tuple[Tensor, Tensor, bool]:
        """Return base (empty where it takes no part), tuned models, and whether all is finite.

        seen: whether it was looked at for NaN in an earlier pass of this process.
        They are the thread's buffers: the next call overwrites them.
        """
        dtype = self.dtype(item, method)
        parts = self._parts(item, method)
        rows_RP, rows = own.pieces.rows(len(parts), count, dtype)
        for part, row in zip(parts, rows, strict=True):
            if part.dtype == dtype:
                part.read(start, row)
            else:
                row.values_P.copy_(_raw(part, start, count, own))
        # A sum is not finite where one of its terms is not: one quick pass instead of a slow one.
        finite = (
            (seen and item.name not in self.spoiled)
            or math.isfinite(rows_RP.sum().item())
            or self._finite(item, method, rows_RP)
        )
        if method.needs_base:
            return rows_RP[0], rows_RP[1:], finite
        return rows_RP.new_empty(0), rows_RP, finite

    def sum(
        self, item: Item, method: Merge, mixture: Mixture, start: int, count: int, own: Buffers
    ) -> tuple[Tensor, bool]:
        """Return a mixture of the models, and whether all of them are finite.

        Formed as they are read, in float64 (or where that is as good, see `_exact`, in float32).
        """
        *tuned, base = (*item.parts[self.plan.has_base :], item.parts[0])
        single = _exact(item, tuned, mixture)
        dtype = torch.float32 if single else torch.float64
        (sum_P, one_P), _ = own.pieces.rows(2, count, dtype)
        # Products and sums are rounded apart: fused, which not every processor can, a value beside
        # a tie would round by the machine.
        for number, (part, factor) in enumerate(zip(tuned, mixture.tuned, strict=True)):
            raw_P = _raw(part, start, count, own)
            if number == 0:
                sum_P.copy_(raw_P)
                if factor != 1:
                    sum_P.mul_(factor)
            else:
                sum_P.add_(raw_P if factor == 1 else one_P.copy_(raw_P).mul_(factor))
        if method.needs_base:
            raw_P = _raw(base, start, count, own)
            sum_P.add_(one_P.copy_(raw_P).mul_(mixture.base))
        if mixture.over != 1:
            sum_P.div_(mixture.over)
        if mixture.scale is not None:
            sum_P.mul_(mixture.scale).add_(raw_P)
        if math.isfinite(sum_P.sum().item()):
            return sum_P, True
        merged_P = sum_P.clone()
        return merged_P, self.load(item, method, start, count, own)[2]

    def dtype(self, item: Item, method: Merge) -> torch.dtype:
        """Return the precision a tensor is merged in: wider than the method's for float64 files."""
        return torch.float64 if self.wide or is_wide(item) else method.dtype

    def _parts(self, item: Item, method: Merge) -> tuple[Part, ...]:
        """Return who takes part."""
        return item.parts if method.needs_base else item.parts[self.plan.has_base :]

    def _finite(self, item: Item, method: Merge, rows_RP: Tensor) -> bool:
        """Return whether all is finite after all; where not, raise or take note of it."""
        labels = self.plan.labels if method.needs_base else self.plan.labels[self.plan.has_base :]
        finite = True
        for label, row_P in zip(labels, rows_RP, strict=True):
            if bool(row_P.isfinite().all()):
                continue
            finite = False
            if self.nonfinite == "refuse":
                word = "NaN" if bool(row_P.isnan().any()) else "infinite"
                raise DataError(
                    f"Tensor {item.name!r} of {label} holds values that are {word}. Leave that "
                    "model out, or merge all the same with nonfinite='continue'."
                )
            with self._lock:
                self.spoiled.setdefault(item.name, set()).add(label)
        return finite


def is_wide(item: Item) -> bool:
    """Return whether a tensor is float64 in some model, or in the result."""
    return torch.float64 in (item.entry.dtype, *(part.dtype for part in item.parts))


def _raw(part: Part, start: int, count: int, own: Buffers) -> Tensor:
    raw = own.raw.one(count, part.dtype)
    part.read(start, raw)
    return raw.values_P


def _exact(item: Item, tuned: Sequence[Part], mixture: Mixture) -> bool:
    """Return whether a float32 sum is as good as one in float64.

    It is for a plain mean of 2, 4 or 8 bfloat16 models: 8 bits of fraction each leave a float32
    room for sizes that are 2^13 apart, and the division is exact. What may be lost beyond that
    could only matter where the sum lies that close to halfway between two bfloat16.
    """
    plain = mixture.base == 0 and mixture.scale is None and set(mixture.tuned) == {1.0}
    kinds = {item.entry.dtype, *(part.dtype for part in tuned)}
    return plain and mixture.over in (1, 2, 4, 8) and kinds == {torch.bfloat16}
