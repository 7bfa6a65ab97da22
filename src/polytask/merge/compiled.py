"""Pieces as the compiled kernels make them: taken as they lie in the files, merged, rounded once.

What comes back is what `Pieces` and the method would have made of it, to the last bit. Where the
kernels take no part, or something is not finite, it is None, and torch sees to the piece.

Shapes: P = elements of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polytask.merge.angles import sums_of
from polytask.merge.base import (
    Changes,
    Look,
    Merge,
    Mixture,
    Moved,
    Place,
    Products,
    Signs,
    State,
    Surveyor,
)
from polytask.merge.draws import drawn, width
from polytask.merge.kernels import CODES, MODELS, Draws, Kernels, Rows
from polytask.merge.need import WIDEST
from polytask.merge.pieces import Buffers, Pieces, pools
from polytask.merge.plan import Item, Part
from polytask.merge.ranks import Ranks
from polytask.merge.rounding import all_finite
from polytask.merge.window import Window


@dataclass
class Compiled:
    """Merges pieces by kernels. mapped: see `Need`. used: whether any piece has been, so far."""

    pieces: Pieces
    kernels: Kernels
    mapped: bool
    used: bool = False

    def takes(self, item: Item) -> bool:
        """Return whether the kernels know a tensor's dtypes: one in all files, 16 or 32 bits."""
        kinds = {part.dtype for part in item.parts}
        known = len(kinds) == 1 and kinds | {item.entry.dtype} <= CODES.keys()
        return known and len(item.parts) <= MODELS and not self.pieces.wide

    def knows(self, item: Item, look: Look) -> bool:
        """Return whether the kernels can look at a tensor."""
        few = len(item.parts) <= PRODUCTS or not isinstance(look, Products)
        return few and self.takes(item)

    def room(self, item: Item, form: Mixture | Moved | Look, chunk: int) -> int:
        """Return how many elements as they lie in the files go where `chunk` go widened."""
        most = max(item.parts[0].dtype.itemsize, item.entry.dtype.itemsize)
        if self.mapped and isinstance(form, (Mixture, Products)):  # only a result takes room
            return max(chunk * WIDEST, LONG) // most
        if not isinstance(form, (Mixture, Products)) and form.changes.kept < 1:
            most = max(most, 2 * width(form.changes.kept))  # draws take no more than half of it
        return chunk * WIDEST // most

    def merged(
        self,
        item: Item,
        method: Merge,
        form: Mixture | Moved,
        start: int,
        count: int,
        own: Buffers,
        seen: bool,
    ) -> Window | None:
        """Return a merged piece, (P,), in the result's dtype and in the thread's memory.

        seen: whether what is not finite shows in the result, or was looked for before.
        """
        parts = self.pieces.mixed_parts(item, method)
        rows = _rows(parts, start, count, own)
        if not seen and not self.kernels.finite(rows):
            return None
        out = own.raw.one(count, item.entry.dtype)
        out_P = out.values_P
        if isinstance(form, Moved):
            draws = _draws(form.changes, item, len(rows) - 1, start, count)
            finite = self.kernels.move(form, rows, draws, out_P)
        elif pools(item, parts, form):
            finite = self.kernels.pool(rows, out_P)
        else:
            finite = self.kernels.mix(form, rows, out_P)
        self.used = True
        return out if finite else None

    def look(
        self,
        item: Item,
        method: Surveyor,
        look: Look,
        state: State,
        sums: State,
        start: int,
        count: int,
        own: Buffers,
        seen: bool,
        thin: int = 1,
    ) -> bool:
        """Add what one piece holds to the sums; return False where torch has to.

        seen: whether the piece was looked at for NaN in an earlier pass of this process.
        thin: only the first element in so many is looked at.
        """
        part = -(-count // thin)
        rows = _rows(self.pieces.mixed_parts(item, method), start, part, own)
        self.used = True
        if isinstance(look, Products):
            sums_QA = sums_of(sums, len(rows) - method.needs_base)
            before_QA = sums_QA.clone()
            self.kernels.products(rows, method.needs_base, sums_QA)
            # The squares of what is finite stay finite in float64, and those of all else do not,
            # nor those of changes that float32 has no room for.
            finite = all_finite(sums_QA)
            if not finite:
                sums_QA.copy_(before_QA)
            return finite
        if not seen and not self.kernels.finite(rows):
            return False
        draws = _draws(look.changes, item, len(rows) - 1, start, part)
        if isinstance(look, Signs):
            sums["signs"] += self.kernels.signs(look, rows, draws)
        else:
            RANKS.note(count, state, sums)
            self.kernels.count(look, rows, draws, RANKS.lines(state), sums)
        return True


LONG = 5 << 18
"""Bytes of a result that are made at once of files as they lie; a multiple of GRAIN elements. About
what the second cache holds: half as many, and twice as many, take longer."""

RANKS = Ranks()
"""Sizes have no sign; whether values are kept, the state says."""

PRODUCTS = 16
"""Models whose inner products the kernels take at most."""


def _rows(parts: Sequence[Part], start: int, count: int, own: Buffers) -> Rows:
    """Return elements of one dtype as they lie in the files: there, or read into memory."""
    if own.trails is not None:
        places = [part.place(start, count, own.trails) for part in parts]
        found = [place for place in places if place is not None]
        if len(found) == len(parts):
            return Rows(found, count, parts[0].dtype)
    _, rows = own.pieces.rows(len(parts), count, parts[0].dtype)
    for part, row in zip(parts, rows, strict=True):
        part.read(start, row)
    return Rows([row.values_P.data_ptr() for row in rows], count, parts[0].dtype)


def _draws(form: Changes, item: Item, models: int, start: int, count: int) -> Draws:
    if form.kept == 1:
        return (), 0
    at = Place(item.key, start, item.entry.shape)
    draws, most = drawn(form.kept, models, count, at, form.seed)
    return tuple(draws), int(most)
