"""Schedule: shares -> the rows of each step, once for all mixes.

Every stream walks its own endless sequence of permutations, so no row comes twice before all rows
of its stream came once. The state is how far each stream has walked: with it any step's rows can
be found again, in any process and after any interruption.

Shapes: S = streams, N = rows of one stream in the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.errors import RunError, UsageError
from polytask.mix.base import Mix, Now, Observer, State, Streams
from polytask.mix.spread import offset, spread

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Edges = np.ndarray[tuple[int], np.dtype[np.float64]]

_FIRST: Counts = np.zeros(1, dtype=np.int64)
_ONE: Counts = np.ones(1, dtype=np.int64)


def steps_per_epoch(sizes: Mapping[str, int] | Sequence[int], batch_size: int) -> int:
    """Return the steps that take as many rows as there are in all streams together."""
    rows = sizes.values() if isinstance(sizes, Mapping) else sizes
    return math.ceil(sum(rows) / batch_size)


class Schedule:
    """Which rows feed each step.

    mix: shares of the streams. sizes: rows of each stream, all > 0, by name or in order.
    batch_size: rows of a step. seed: of all that is drawn here; torch's global generator is
    neither read nor moved. steps: those of the whole run, for mixes that vary by run.
    memory: what the mix remembers, part of the state; it changes in `observe` alone.

    One stream: every epoch is a permutation, its last batch as short as it comes. Several: every
    step has exactly `batch_size` rows, and a stream's count in it has the expectation
    share x batch_size, the count being one of the two integers around it.
    """

    def __init__(
        self,
        mix: Mix,
        sizes: Mapping[str, int] | Sequence[int],
        batch_size: int,
        seed: int,
        *,
        steps: int | None = None,
    ) -> None:
        self.streams = Streams.of(sizes)
        if batch_size < 1:
            raise UsageError(f"Schedule: batch_size is {batch_size}; give at least 1.")
        if seed < 0:
            raise UsageError(f"Schedule: seed is {seed}; give an integer >= 0.")
        if steps is not None and steps < 1:
            raise UsageError(f"Schedule: steps is {steps}; give at least 1, or None.")
        if mix.varies == "by run" and steps is None:
            raise UsageError(
                f"{type(mix).__name__} varies over the run and was not told its length; give the "
                "number of updates: steps=..."
            )
        self.mix = mix
        self.sizes: tuple[int, ...] = tuple(self.streams.sizes_S.tolist())
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps
        self.memory: State = mix.start(self.streams)
        self._permutations: dict[int, tuple[int, Counts]] = {}  # stream -> its pass, that order
        self._grid = np.arange(1, batch_size + 1, dtype=np.float64)
        # The stream number S is no stream's, so these are no permutation's numbers.
        self._begin = offset((seed, len(self.sizes), 0))
        self._kept: tuple[State, Edges] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many rows as there are in all streams together."""
        return steps_per_epoch(self.sizes, self.batch_size)

    def start(self) -> Tensor:
        """Return the state before the first step: (S,) int64, rows each stream has given."""
        return torch.zeros(len(self.sizes), dtype=torch.int64)

    def rows(self, step: int, state: Tensor) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """Return [(stream, rows_N)] for the streams that feed this step, and the next state."""
        walked, after = self.walk(step, state)
        return [(s, torch.from_numpy(rows_N)) for s, rows_N in walked], after

    def walk(self, step: int, state: Tensor) -> tuple[list[tuple[int, Counts]], Tensor]:
        """Return what `rows` does, in numpy, which costs a row a tenth."""
        given_S = state.numpy()
        fed, counts = self._fed(step, given_S)
        steps = zip(fed.tolist(), given_S[fed].tolist(), counts.tolist(), strict=True)
        return [(s, self._walk(s, given, n)) for s, given, n in steps], _plus(given_S, fed, counts)

    def after(self, step: int, state: Tensor) -> Tensor:
        """Return the state after a step without finding its rows."""
        given_S = state.numpy()
        return _plus(given_S, *self._fed(step, given_S))

    def observe(self, losses_S: Tensor, step: int) -> None:
        """Show the mix the streams' losses, (S,), NaN where one was not looked at.

        step: updates before this look. Raises UsageError where the mix does not look at losses,
        RunError naming a stream whose loss is infinite.
        """
        if not (self.mix.observes and isinstance(self.mix, Observer)):
            raise UsageError(
                f"{type(self.mix).__name__} does not look at losses; ask `mix.observes` first."
            )
        losses_S = losses_S.detach().to("cpu", torch.float64)
        if losses_S.shape != (len(self.sizes),):
            raise UsageError(
                f"Losses of shape {tuple(losses_S.shape)} came for {len(self.sizes)} streams; give "
                "one per stream, NaN for one that was not looked at."
            )
        for name, loss in zip(self.streams.names, losses_S.tolist(), strict=True):
            if math.isinf(loss):
                raise RunError(f"The loss of stream {name!r} before update {step} is {loss}.")
        self.memory = self.mix.observe(losses_S, self.streams, Now(step, self.steps), self.memory)

    def counts(self, step: int) -> Counts:
        """Return how many rows each stream gives to a step: (S,) int64, summing to batch_size.

        Systematic rounding: the shares lie end to end on a line of length batch_size, and each
        stream takes the grid points i + offset that fall on its part. The offset is uniform over
        seeds and steps, so expectations are exact; from step to step it follows the golden ratio,
        whose points spread so evenly that running totals stay near their expectation too.
        """
        points_S = np.floor(self._edges(step) + spread(self._begin, step)).astype(np.int64)
        np.minimum(points_S, self.batch_size, out=points_S)  # where edge + offset was rounded up
        counts_S: Counts = np.diff(points_S, prepend=0)
        return counts_S

    def _fed(self, step: int, given_S: Counts) -> tuple[Counts, Counts]:
        """Return the streams that feed a step, rising, and how many rows each gives."""
        if len(self.sizes) == 1:  # an epoch ends with a short step
            size = self.sizes[0]
            return _FIRST, np.array([min(self.batch_size, size - int(given_S[0]) % size)])
        if self.batch_size >= len(self.sizes):
            counts_S = self.counts(step)
            fed = np.flatnonzero(counts_S)
            return fed, counts_S[fed]
        # The same counts in a fraction of the time: grid point k is the stream's whose part ends
        # at k or behind it, and whose predecessor's does not.
        ends_S = self._edges(step) + spread(self._begin, step)
        at = np.searchsorted(ends_S, self._grid, side="left")
        if len(at) == 1:
            return at, _ONE
        news = np.flatnonzero(at[1:] != at[:-1]) + 1
        starts = np.concatenate([_FIRST, news])
        return at[starts], np.diff(starts, append=len(at))

    def _edges(self, step: int) -> Edges:
        """Return where each stream's part of the line ends: (S,) float64, the last batch_size."""
        still = self.mix.varies == "never"
        if still and self._kept is not None and self._kept[0] is self.memory:
            return self._kept[1]
        shares_S = self.mix(self.streams, Now(step, self.steps), self.memory).numpy()
        edges_S: Edges = np.cumsum(shares_S)
        sums_to_one = len(shares_S) == len(self.sizes) and abs(edges_S[-1] - 1) <= 1e-6
        if not (sums_to_one and shares_S.min() >= 0):
            raise UsageError(
                f"{type(self.mix).__name__} gave shares {shares_S.tolist()} for step {step}; "
                f"expected {len(self.sizes)} numbers >= 0 that sum to 1."
            )
        edges_S = edges_S / edges_S[-1] * self.batch_size  # the last one exactly batch_size
        if still:
            self._kept = self.memory, edges_S
        return edges_S

    def _walk(self, stream: int, given: int, count: int) -> Counts:
        """Return the next `count` rows of a stream that has given `given` rows so far."""
        size = self.sizes[stream]
        number, start = divmod(given, size)
        if start + count <= size:
            return self._permutation(stream, number)[start : start + count]
        parts: list[Counts] = []
        while count > 0:
            part = self._permutation(stream, number)[start : start + count]
            parts.append(part)
            number, start, count = number + 1, 0, count - len(part)
        return np.concatenate(parts)

    def _permutation(self, stream: int, number: int) -> Counts:
        cached = self._permutations.get(stream)
        if cached is not None and cached[0] == number:
            return cached[1]
        permutation: Counts = _FIRST  # of one row, without asking what costs 20 microseconds
        if self.sizes[stream] > 1:
            draw = np.random.default_rng((self.seed, stream, number))
            permutation = draw.permutation(self.sizes[stream])
        self._permutations[stream] = (number, permutation)
        return permutation


def _plus(given_S: Counts, fed: Counts, counts: Counts) -> Tensor:
    """Return the state with what these streams gave; the one before stays as it is."""
    after_S = given_S.copy()
    after_S[fed] += counts
    return torch.from_numpy(after_S)
