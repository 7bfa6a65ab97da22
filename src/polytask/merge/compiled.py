"""Pieces as the compiled kernels make them: read as they lie in the files, merged, rounded once.

What comes back is what `Pieces` and the method would have made of it, to the last bit. Where the
kernels take no part, or something is not finite, it is None, and torch sees to the piece.

Shapes: P = elements of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polytask.merge.angles import sums_of
from polytask.merge.base import Look, Merge, Mixture, State, Surveyor
from polytask.merge.kernels import CODES, MODELS, Kernels
from polytask.merge.need import WIDEST
from polytask.merge.pieces import Buffers, Pieces, pools
from polytask.merge.plan import Item, Part
from polytask.merge.window import Window


@dataclass
class Compiled:
    """Merges pieces by kernels; used: whether any has been, so far."""

    pieces: Pieces
    kernels: Kernels
    used: bool = False

    def takes(self, item: Item) -> bool:
        """Return whether the kernels know a tensor's dtypes: one in all files, 16 or 32 bits."""
        kinds = {part.dtype for part in item.parts}
        known = len(kinds) == 1 and kinds | {item.entry.dtype} <= CODES.keys()
        return known and len(item.parts) <= MODELS and not self.pieces.wide

    def room(self, item: Item, chunk: int) -> int:
        """Return how many elements as they lie in the files go where `chunk` go widened."""
        return chunk * WIDEST // max(item.parts[0].dtype.itemsize, item.entry.dtype.itemsize)

    def mixed(
        self, item: Item, method: Merge, mixture: Mixture, start: int, count: int, own: Buffers
    ) -> Tensor | None:
        """Return a mixture of the models, (P,), in the result's dtype and in the thread's memory."""
        parts = self.pieces.mixed_parts(item, method)
        rows = [row.values_P for row in _read(parts, start, count, own)]
        out_P = own.raw.one(count, item.entry.dtype).values_P
        if pools(item, parts, mixture):
            finite = self.kernels.pool(rows, out_P)
        else:
            finite = self.kernels.mix(mixture, rows, out_P)
        self.used = True
        return out_P if finite else None


    def look(
        self,
        item: Item,
        method: Surveyor,
        sums: State,
        look: Look,
        start: int,
        count: int,
        own: Buffers,
        seen: bool,
    ) -> bool:
        """Add what one piece holds to the sums; return False where torch has to.

        seen: whether the piece was looked at for NaN in an earlier pass of this process.
        """
        parts = self.pieces.mixed_parts(item, method)
        if len(parts) - method.needs_base > PRODUCTS:
            return False
        rows = [row.values_P for row in _read(parts, start, count, own)]
        if not seen and not all(map(self.kernels.finite, rows)):
            return False
        models = len(rows) - method.needs_base
        self.kernels.products(rows, method.needs_base, sums_of(sums, models))
        self.used = True
        return True


PRODUCTS = 16
"""Models whose inner products the kernels take at most."""


def _read(parts: Sequence[Part], start: int, count: int, own: Buffers) -> tuple[Window, ...]:
    """Return rows of one dtype, as they lie in the files."""
    _, rows = own.pieces.rows(len(parts), count, parts[0].dtype)
    for part, row in zip(parts, rows, strict=True):
        part.read(start, row)
    return rows
