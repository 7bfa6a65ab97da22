"""Schedule: shares -> the rows of each step, once for all mixes.

Every stream walks its own endless sequence of permutations, so no row comes twice before all rows
of its stream came once. The state is how far each stream has walked: with it any step's rows can
be found again, in any process and after any interruption.

Shapes: S = streams, N = rows of one stream in the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Mix

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]

GOLDEN = (math.sqrt(5) - 1) / 2


class Schedule:
    """Which rows feed each step.

    mix: shares of the streams. sizes: rows of each stream, all > 0. batch_size: rows of a step.
    seed: of all that is drawn here; torch's global generator is neither read nor moved.

    One stream: every epoch is a permutation, its last batch as short as it comes. Several: every
    step has exactly `batch_size` rows, and a stream's count in it has the expectation
    share x batch_size, the count being one of the two integers around it.
    """

    def __init__(self, mix: Mix, sizes: Sequence[int], batch_size: int, seed: int) -> None:
        if not sizes or min(sizes) < 1:
            raise UsageError(f"Schedule: every stream needs at least one row; sizes are {sizes}.")
        if batch_size < 1:
            raise UsageError(f"Schedule: batch_size is {batch_size}; give at least 1.")
        if seed < 0:
            raise UsageError(f"Schedule: seed is {seed}; give an integer >= 0.")
        self.mix = mix
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self._sizes_S = torch.tensor(self.sizes, dtype=torch.int64)
        self._permutations: dict[int, tuple[int, Tensor]] = {}  # stream -> its pass, that order
        self._offset: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many rows as there are in all streams together."""
        return math.ceil(sum(self.sizes) / self.batch_size)

    def start(self) -> Tensor:
        """Return the state before the first step: (S,) int64, rows each stream has given."""
        return torch.zeros(len(self.sizes), dtype=torch.int64)

    def rows(self, step: int, state: Tensor) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """Return [(stream, rows_N)] for the streams that feed this step, and the next state."""
        if len(self.sizes) == 1:
            given, size = int(state), self.sizes[0]
            count = min(self.batch_size, size - given % size)
            return [(0, self._walk(0, given, count))], state + count
        counts_S = self.counts(step)
        steps = zip(state.tolist(), counts_S.tolist(), strict=True)
        fed = [(s, self._walk(s, given, n)) for s, (given, n) in enumerate(steps) if n]
        return fed, state + torch.from_numpy(counts_S)

    def counts(self, step: int) -> Counts:
        """Return how many rows each stream gives to a step: (S,) int64, summing to batch_size.

        Systematic rounding: the shares lie end to end on a line of length batch_size, and each
        stream takes the grid points i + offset that fall on its part. The offset is uniform over
        seeds and steps, so expectations are exact; from step to step it follows the golden ratio,
        whose points spread so evenly that running totals stay near their expectation too.
        """
        shares_S = self.mix(self._sizes_S, step).numpy()
        edges_S = np.cumsum(shares_S)
        sums_to_one = len(shares_S) == len(self.sizes) and abs(edges_S[-1] - 1) <= 1e-6
        if not (sums_to_one and shares_S.min() >= 0):
            raise UsageError(
                f"{type(self.mix).__name__} gave shares {shares_S.tolist()} for step {step}; "
                f"expected {len(self.sizes)} numbers >= 0 that sum to 1."
            )
        if self._offset is None:
            # The stream number S is no stream's, so these are no permutation's numbers.
            own = np.random.default_rng((self.seed, len(self.sizes), 0))
            self._offset = float(own.random())
        edges_S = edges_S / edges_S[-1] * self.batch_size  # the last one exactly batch_size
        points_S = np.floor(edges_S + (self._offset + step * GOLDEN) % 1).astype(np.int64)
        np.minimum(points_S, self.batch_size, out=points_S)  # where edge + offset was rounded up
        counts_S: Counts = np.diff(points_S, prepend=0)
        return counts_S

    def _walk(self, stream: int, given: int, count: int) -> Tensor:
        """Return the next `count` rows of a stream that has given `given` rows so far."""
        size = self.sizes[stream]
        number, start = divmod(given, size)
        if start + count <= size:
            return self._permutation(stream, number)[start : start + count]
        parts: list[Tensor] = []
        while count > 0:
            part = self._permutation(stream, number)[start : start + count]
            parts.append(part)
            number, start, count = number + 1, 0, count - len(part)
        return torch.cat(parts)

    def _permutation(self, stream: int, number: int) -> Tensor:
        cached = self._permutations.get(stream)
        if cached is not None and cached[0] == number:
            return cached[1]
        drawn = np.random.default_rng((self.seed, stream, number)).permutation(self.sizes[stream])
        permutation = torch.from_numpy(drawn)
        self._permutations[stream] = (number, permutation)
        return permutation
