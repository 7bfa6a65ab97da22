"""The walk through a model: read a piece, let the method merge it, write it, in bounded memory.

Methods that only look at elements get pieces of `Need.chunk` elements, whatever the tensor. What a
method must know of the whole model it gathers in passes before; of a tensor, in passes over that
tensor. Neither the size of the pieces nor the number of threads changes a bit of the result.

Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.base import Merge, Mixture, Moved, Place, Sizes, State, Surveyor
from polytask.merge.compiled import Compiled
from polytask.merge.kernels import kernels
from polytask.merge.need import Need
from polytask.merge.options import Nonfinite
from polytask.merge.output import Output
from polytask.merge.pieces import Buffers, Pieces, is_wide
from polytask.merge.plan import Item, Plan
from polytask.merge.progress import Progress, Silent
from polytask.merge.rounding import all_finite, check_range, nearest
from polytask.merge.window import window

SPAN = 64
"""Pieces of a tensor that one thread takes at a time."""

MethodOf = Callable[[str], Merge]
"""A tensor's name -> the method with the settings it has there."""

T = TypeVar("T")


@dataclass
class Stream:
    """One merge: a plan, a method, and where the result goes. `run` does it.

    method_of: may differ in its settings from tensor to tensor, unless it looks at the whole model.
    """

    plan: Plan
    method_of: MethodOf
    output: Output
    need: Need
    nonfinite: Nonfinite = "refuse"
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self._seen = False
        self._items = [item for item in self.plan.items if item.merged and item.entry.numel]
        # A survey of the whole model is told one precision for all that it sees.
        wide = self._surveyor() is not None and any(map(is_wide, self._items))
        self._pieces = Pieces(self.plan, self.nonfinite, wide)
        found = kernels()
        self._compiled = None if found is None else Compiled(self._pieces, found, self.need.mapped)
        self._buffers = [Buffers.of(self.need) for _ in range(self.need.threads)]

    @property
    def spoiled(self) -> dict[str, set[str]]:
        """Per tensor the models in which it is not finite; known after `run`."""
        return self._pieces.spoiled

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels merged any piece; known after `run`."""
        return self._compiled is not None and self._compiled.used

    def run(self, state: State | None = None, keep: Callable[[State], None] | None = None) -> None:
        """Merge everything that the output does not have yet.

        state: what a survey of the whole model found in an earlier process. keep: told of it, where
            it was made now. Raises DataError that names tensor and model where a value is not
            finite, RunError where a result leaves its dtype's range or cannot be written.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # ours are the threads; torch's would cut sums by their number
        try:
            if state is None:
                state = self._survey()
                if state and keep is not None:
                    keep(state)
            left = [item for item in self.plan.items if not self.output.done(item.name)]
            self.progress.phase("merging", sum(item.entry.numel for item in left))
            _spread(self._cut(left), partial(self._merge, state), self._buffers)
        finally:
            torch.set_num_threads(before)

    def _surveyor(self) -> Surveyor | None:
        """Return the method, where it looks at the whole model before it merges."""
        methods = [self.method_of(item.name) for item in self._items]
        if not methods or not isinstance(methods[0], Surveyor) or methods[0].over != "model":
            return None
        for method, item in zip(methods, self._items, strict=True):
            if method != methods[0]:
                raise UsageError(
                    f"{type(method).__name__} looks at the whole model at once, so its settings "
                    f"cannot differ between {self._items[0].name!r} and {item.name!r}; give one "
                    "value."
                )
        return methods[0]

    def _survey(self) -> State:
        """Return what the method learns from the whole model; empty where it does not look."""
        method = self._surveyor()
        if method is None:
            return {}
        state = method.begin(self._tuned, self._pieces.dtype(self._items[0], method))
        total = sum(item.entry.numel for item in self._items)
        number = 0
        while not method.settled(state):
            number += 1
            self.progress.phase(f"looking, pass {number}", total)
            sums = {id(own): method.blank(state) for own in self._buffers}
            _spread(self._items, partial(self._look, method, state, sums), self._buffers)
            first, *others = sums.values()
            for other in others:  # counts: the order they are added in does not matter
                for name, value in other.items():
                    first[name] += value
            self._seen |= method.sample(state) == 1
            state = method.settle(state, first)
        return state

    def _look(
        self, method: Surveyor, state: State, sums: dict[int, State], item: Item, own: Buffers
    ) -> None:
        thin = method.sample(state)
        self._look_through(item, method, state, sums[id(own)], own, self._seen, thin)

    def _look_through(
        self,
        item: Item,
        method: Surveyor,
        state: State,
        sums: State,
        own: Buffers,
        seen: bool,
        thin: int,
    ) -> None:
        """Let a method look at a tensor, by the compiled kernels where they know what it looks for.

        thin: only at the first element in so many of each piece.
        """
        total = item.entry.numel
        step = total if method.reach == "tensor" else self.need.chunk
        look = method.looks(state)
        # Of values that are all in one piece, methods find the ranked ones at once.
        at_once = isinstance(look, Sizes) and method.over == "tensor" and step >= total
        quick = None if look is None or at_once or is_wide(item) else self._compiled
        if quick is None or look is None or not quick.knows(item, look):
            self._look_slowly(item, method, state, sums, 0, total, own, seen, thin)
            return
        for start, count in _chunks(0, total, step if thin > 1 else quick.room(item, look, step)):
            if quick.look(item, method, look, state, sums, start, count, own, seen, thin):
                self._looked(method, count)
            else:
                self._look_slowly(item, method, state, sums, start, count, own, seen, thin)

    def _look_slowly(
        self,
        item: Item,
        method: Surveyor,
        state: State,
        sums: State,
        start: int,
        count: int,
        own: Buffers,
        seen: bool,
        thin: int,
    ) -> None:
        """Let a method look at a stretch of a tensor."""
        step = count if method.reach == "tensor" else self.need.chunk
        for begin, size in _chunks(start, count, step):
            part = -(-size // thin)
            base, tuned_M = self._shaped(item, method, begin, part, own, seen)
            at = Place(item.key, begin, item.entry.shape, stands_for=size if thin > 1 else 0)
            method.look(base, tuned_M, at, state, sums)
            self._looked(method, size)

    def _looked(self, method: Surveyor, elements: int) -> None:
        """Note progress, of surveys of the model; those of a tensor belong to its merge."""
        if method.over == "model":
            self._advance(elements)

    @property
    def _tuned(self) -> int:
        return len(self.plan.labels) - self.plan.has_base

    def _cut(self, items: Sequence[Item]) -> Iterator[tuple[Item, int, int]]:
        """Yield stretches of tensors for the threads to take."""
        for item in items:
            whole = item.merged and _whole(self.method_of(item.name))
            size = max(1, item.entry.numel if whole else SPAN * self.need.chunk)
            cuts = list(_chunks(0, item.entry.numel, size)) or [(0, 0)]
            self._left[item.name] = len(cuts)
            for start, count in cuts:
                yield item, start, count

    def _merge(self, state: State, work: tuple[Item, int, int], own: Buffers) -> None:
        item, start, count = work
        if not item.merged:
            self._copy(item, start, count, own)
        elif count:
            method = self.method_of(item.name)
            if isinstance(method, Surveyor) and _over_tensor(method):
                state = self._survey_tensor(item, method, own)
            mixture = None if is_wide(item) else method.mixture(self._tuned, state)
            form = mixture or (None if is_wide(item) else method.formed(self._tuned, state))
            quick = self._compiled
            if quick is None or form is None or not quick.takes(item):
                self._slow(item, method, state, mixture, start, count, own)
            else:
                self._quick(quick, item, method, state, form, start, count, own)
        with self._lock:
            self._left[item.name] -= 1
            last = self._left[item.name] == 0
        if last:
            self.output.finish(item.name)

    def _quick(
        self,
        quick: Compiled,
        item: Item,
        method: Merge,
        state: State,
        form: Mixture | Moved,
        start: int,
        count: int,
        own: Buffers,
    ) -> None:
        """Merge a stretch by the compiled kernels, and what is not finite by torch."""
        seen = isinstance(form, Mixture) or self._shows(method)
        for at, size in _chunks(start, count, quick.room(item, form, self.need.chunk)):
            piece = quick.merged(item, method, form, at, size, own, seen)
            if piece is None:
                mixture = form if isinstance(form, Mixture) else None
                self._slow(item, method, state, mixture, at, size, own)
            else:
                self.output.write(item.name, at, piece)
                self._advance(size)

    def _slow(
        self,
        item: Item,
        method: Merge,
        state: State,
        mixture: Mixture | None,
        start: int,
        count: int,
        own: Buffers,
    ) -> None:
        """Merge a stretch by torch."""
        step = count if method.reach == "tensor" else self.need.chunk
        for at, size in _chunks(start, count, step):
            if mixture is None:
                merged = self._piece(item, method, at, size, state, own)
            else:
                merged = self._pieces.mixed(item, method, mixture, at, size, own)
            self._write(item, method, at, size, merged, own)

    def _piece(
        self, item: Item, method: Merge, start: int, count: int, state: State, own: Buffers
    ) -> Tensor:
        base, tuned_M = self._shaped(item, method, start, count, own, self._shows(method))
        return method.piece(base, tuned_M, Place(item.key, start, item.entry.shape), state)

    def _shows(self, method: Merge) -> bool:
        """Return whether what is not finite shows in the result, or was looked for before."""
        # Without a survey it shows, see `Merge.piece`.
        shows = method.reach == "elements" and not isinstance(method, Surveyor)
        return shows or self._seen or _over_tensor(method)

    def _write(
        self, item: Item, method: Merge, start: int, count: int, merged: Tensor, own: Buffers
    ) -> None:
        values_P = nearest(merged, item.entry.dtype).reshape(-1)
        if not all_finite(values_P):
            merged_P = merged.reshape(-1).clone()  # out of the buffers, which are read into again
            finite = self._pieces.finite(item, method, start, count, own)
            check_range(merged_P, values_P, item.name, finite)
        self.output.write(item.name, start, window(values_P.contiguous()))
        self._advance(count)

    def _survey_tensor(self, item: Item, method: Surveyor, own: Buffers) -> State:
        """Return what the method learns from one tensor."""
        state = method.begin(self._tuned, self._pieces.dtype(item, method))
        total, seen = item.entry.numel, False
        while not method.settled(state):
            sums = method.blank(state)
            step = total if method.reach == "tensor" else self.need.chunk
            thin = 1 if step >= total else method.sample(state)  # a tensor in one piece is all
            self._look_through(item, method, state, sums, own, seen, thin)
            state, seen = method.settle(state, sums), seen or thin == 1
        return state

    def _shaped(
        self, item: Item, method: Merge, start: int, count: int, own: Buffers, seen: bool
    ) -> tuple[Tensor, Tensor]:
        """Return a piece; in the tensor's shape, where the method reaches for all of it."""
        base, tuned_M = self._pieces.load(item, method, start, count, own, seen)
        if method.reach == "tensor":
            shape = item.entry.shape
            base = base.view(shape) if method.needs_base else base
            tuned_M = tuned_M.view(len(tuned_M), *shape)
        return base, tuned_M

    def _copy(self, item: Item, start: int, count: int, own: Buffers) -> None:
        for at, size in _chunks(start, count, self.need.chunk):
            out = own.pieces.one(size, item.entry.dtype)
            item.parts[0].read(at, out)
            self.output.write(item.name, at, out)
            self._advance(size)

    def _advance(self, elements: int) -> None:
        with self._lock:
            self.progress.advance(elements)


def _whole(method: Merge) -> bool:
    """Return whether one thread must have a whole tensor."""
    return method.reach == "tensor" or _over_tensor(method)


def _over_tensor(method: Merge) -> bool:
    return isinstance(method, Surveyor) and method.over == "tensor"


def _chunks(start: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield start and count of pieces; `most` is a multiple of GRAIN, or a whole tensor."""
    for at in range(start, start + count, max(1, most)):
        yield at, min(most, start + count - at)


def _spread(
    work: Iterable[T], do: Callable[[T, Buffers], None], buffers: Sequence[Buffers]
) -> None:
    """Do all the work, by one thread per buffer; the first error stops all and is raised here."""
    if len(buffers) == 1:
        for one in work:
            do(one, buffers[0])
        return
    left, lock = iter(work), threading.Lock()
    errors: list[BaseException] = []
    stop = threading.Event()

    def run(own: Buffers) -> None:
        try:
            while not stop.is_set():
                with lock:
                    one = next(left, None)
                if one is None:
                    return
                do(one, own)
        except BaseException as error:  # whatever it is, the thread that waits raises it
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(own,), daemon=True) for own in buffers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C reaches this thread alone
        stop.set()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
