"""Pieces of all models at once, read into reused buffers, widened, and looked at for NaN.

Shapes: M = tuned models, R = M + 1 with the base as row 0, P = elements of one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import DataError
from polytask.merge.base import Merge, Mixture
from polytask.merge.mapped import Trails
from polytask.merge.need import Need
from polytask.merge.options import Nonfinite
from polytask.merge.plan import Item, Part, Plan
from polytask.merge.rounding import all_finite
from polytask.merge.window import Arena


@dataclass
class Buffers:
    """One thread's memory. pieces: all models, widened. raw: one model, as its file has it.

    trails: what it holds of files where they lie; None where it shall read them instead.
    """

    pieces: Arena
    raw: Arena
    trails: Trails | None

    @classmethod
    def of(cls, need: Need) -> Buffers:
        """Return buffers for pieces of `need.chunk` elements; they grow for whole tensors alone."""
        trails: Trails | None = {} if need.mapped else None
        return cls(Arena(need.piece_bytes), Arena(need.scratch_bytes), trails)

    def let_go(self) -> None:
        """Hold nothing of files where they lie: what torch does with a piece takes its room."""
        for trail in (self.trails or {}).values():
            trail.file.let_go(trail.begin, trail.end)
        if self.trails:
            self.trails.clear()


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
    ) -> tuple[Tensor, Tensor]:
        """Return base (empty where it takes no part) and tuned models.

        seen: whether it was looked at for NaN in an earlier pass of this process.
        They are the thread's buffers: the next call overwrites them.
        """
        own.let_go()
        dtype = self.dtype(item, method)
        parts = self._parts(item, method)
        rows_RP, rows = own.pieces.rows(len(parts), count, dtype)
        for part, row in zip(parts, rows, strict=True):
            if part.dtype == dtype:
                part.read(start, row)
            else:
                row.values_P.copy_(_raw(part, start, count, own))
        if not seen and not all_finite(rows_RP):
            self._note(item, method, rows_RP)
        if method.needs_base:
            return rows_RP[0], rows_RP[1:]
        return rows_RP.new_empty(0), rows_RP

    def finite(self, item: Item, method: Merge, start: int, count: int, own: Buffers) -> bool:
        """Return whether all models are finite there."""
        base_P, tuned_MP = self.load(item, method, start, count, own)
        return all_finite(base_P) and all_finite(tuned_MP)

    def mixed(
        self, item: Item, method: Merge, mixture: Mixture, start: int, count: int, own: Buffers
    ) -> Tensor:
        """Return a mixture of the models, not looked at for NaN; it is not finite where one is not.

        Formed as they are read, in float64; or at once in the result's dtype, see `_pooled`.
        """
        own.let_go()
        parts = self.mixed_parts(item, method)
        if pools(item, parts, mixture):
            raw_MP, rows = own.pieces.rows(len(parts), count, torch.bfloat16)
            for part, row in zip(parts, rows, strict=True):
                part.read(start, row)
            return _pooled(raw_MP)
        wide_2P, _ = own.pieces.rows(2, count, torch.float64)
        return mixture.of((_raw(part, start, count, own) for part in parts), wide_2P)

    def mixed_parts(self, item: Item, method: Merge) -> tuple[Part, ...]:
        """Return who takes part in a mixture: the tuned models, then the base if it does."""
        return (*item.parts[self.plan.has_base :], *item.parts[: method.needs_base])

    def dtype(self, item: Item, method: Merge) -> torch.dtype:
        """Return the precision a tensor is merged in: wider than the method's for float64 files."""
        return torch.float64 if self.wide or is_wide(item) else method.dtype

    def _parts(self, item: Item, method: Merge) -> tuple[Part, ...]:
        """Return who takes part."""
        return item.parts if method.needs_base else item.parts[self.plan.has_base :]

    def _note(self, item: Item, method: Merge, rows_RP: Tensor) -> None:
        """Raise where a model is not finite, or take note of it."""
        labels = self.plan.labels if method.needs_base else self.plan.labels[self.plan.has_base :]
        for label, row_P in zip(labels, rows_RP, strict=True):
            if all_finite(row_P):
                continue
            if self.nonfinite == "refuse":
                word = "NaN" if bool(row_P.isnan().any()) else "infinite"
                raise DataError(
                    f"Tensor {item.name!r} of {label} holds values that are {word}. Leave that "
                    "model out, or merge all the same with nonfinite='continue'."
                )
            with self._lock:
                self.spoiled.setdefault(item.name, set()).add(label)


def is_wide(item: Item) -> bool:
    """Return whether a tensor is float64 in some model, or in the result."""
    return torch.float64 in (item.entry.dtype, *(part.dtype for part in item.parts))


def _raw(part: Part, start: int, count: int, own: Buffers) -> Tensor:
    raw = own.raw.one(count, part.dtype)
    part.read(start, raw)
    return raw.values_P


def pools(item: Item, parts: Sequence[Part], mixture: Mixture) -> bool:
    """Return whether `_pooled` forms this mixture as well as float64 would.

    It does for a plain mean of 2, 4 or 8 bfloat16 models: 8 bits of fraction each leave a float32
    room for sizes that are 2^13 apart, and the division is exact. What may be lost beyond that
    could only matter where the sum lies that close to halfway between two bfloat16.
    """
    plain = mixture.base == 0 and mixture.scale is None and set(mixture.tuned) == {1.0}
    kinds = {item.entry.dtype, *(part.dtype for part in parts)}
    return plain and mixture.over == len(parts) in (1, 2, 4, 8) and kinds == {torch.bfloat16}


def _pooled(raw_MP: Tensor) -> Tensor:
    """Return the mean of rows of bfloat16, summed in float32 and rounded once, (P,).

    Average pooling over the models is what torch has to do that in one pass over all rows.
    """
    models, count = raw_MP.shape
    pixels_PM = raw_MP.view(1, models, 1, count).permute(0, 3, 1, 2)
    return functional.avg_pool2d(pixels_PM, (models, 1)).view(-1)
